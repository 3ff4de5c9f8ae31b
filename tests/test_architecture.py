"""A package imports only what stands before it in the data flow."""

from __future__ import annotations

import ast
from pathlib import Path

import viceversa

ROOT = Path(viceversa.__file__).parent

#: Top to bottom, as the data flows. A package may import what stands above it.
ORDER = [
    "types",
    "files",
    "config",
    "models",
    "data",
    "judges",
    "inference",
    "rl",
    "scenes",
    "report",
    "measure",
    "publish",
    "training",
    "pretrain",
    "plan",
    "audit",
    "benchmarks",
    "api",
    "cli",
    "__main__",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    found.pop("__init__", None)
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("viceversa"):
            inner = (node.module or "").removeprefix("viceversa").removeprefix(".")
            names |= {f"{inner}.{alias.name}".lstrip(".") for alias in node.names}
    return names


def package(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_its_place() -> None:
    assert {package(name) for name in modules()} == set(ORDER)


def test_imports_point_upwards() -> None:
    for name, path in modules().items():
        for other in imports(path):
            above = ORDER.index(package(other)) <= ORDER.index(package(name))
            assert above, f"{name} imports {other}"


#: Longest file of the package, lines.
LONGEST = 400


def test_no_file_is_too_long_to_read() -> None:
    for name, path in modules().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= LONGEST, f"{name} has {lines} lines"


def test_logits_become_logprobs_in_one_place() -> None:
    """log_softmax, logsumexp and cross_entropy on logits appear in logprobs.py alone."""
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        used = any(w in text for w in ("log_softmax", "logsumexp", "cross_entropy"))
        assert used == (name == "inference.logprobs"), name


def test_what_a_newcomer_reads_fits_an_afternoon() -> None:
    lines = {p.name: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.glob("rl/*.py")}
    assert sum(lines.values()) <= 1200, lines


#: Words that a description of a thing begins with, in place of a verb.
NOUNS = {"a", "an", "any", "each", "every", "how", "mean", "no", "nats", "of", "one", "the", "what"}
NOUNS |= {"as", "at", "by", "for", "from", "in", "on", "to", "whether", "where", "which", "with"}


def test_docstrings_of_functions_begin_with_what_they_do() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            first, *_ = (ast.get_docstring(node) or "Return").split()
            if not first.strip(",:").isalpha() or first.lower() in NOUNS:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {first}")
    assert not wrong, "\n".join(wrong)
