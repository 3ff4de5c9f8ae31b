"""A module imports only what stands before it in the data flow."""

from __future__ import annotations

import ast
from pathlib import Path

import viceversa

ROOT = Path(viceversa.__file__).parent

#: Top to bottom, as the data flows. A module may import what stands above it.
ORDER = [
    "types",
    "files",
    "config",
    "arguments",
    "checkpoint",
    "lock",
    "scenes.spec",
    "scenes.render",
    "scenes.language",
    "scenes.verify",
    "scenes",
    "cache",
    "memory",
    "hub",
    "prompts",
    "images",
    "data",
    "models.base",
    "models.loading",
    "models.janus",
    "models.single",
    "models.emu3",
    "models.chameleon",
    "models.tiny",
    "models.lora",
    "models",
    "models.geometry",
    "image_ids",
    "logprobs",
    "snapshot",
    "parallel",
    "decoding",
    "rollout",
    "rewards",
    "advantages",
    "losses",
    "trainer",
    "evaluate",
    "report",
    "codec",
    "pretrain",
    "progress",
    "interrupt",
    "run",
    "ledger",
    "simulate",
    "gpus",
    "plan",
    "defaults",
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
            for alias in node.names:
                full = f"{inner}.{alias.name}".lstrip(".")
                names.add(full if full in ORDER else inner)
    return names


def test_every_module_has_its_place() -> None:
    assert sorted(modules()) == sorted(ORDER)


def test_imports_point_upwards() -> None:
    for name, path in modules().items():
        for other in imports(path):
            assert ORDER.index(other) < ORDER.index(name), f"{name} imports {other}"


def test_report_imports_no_torch() -> None:
    text = (ROOT / "report.py").read_text(encoding="utf-8")
    assert "import torch" not in text


def test_logits_become_logprobs_in_one_place() -> None:
    """log_softmax, logsumexp and cross_entropy on logits appear in logprobs.py alone."""
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        used = any(w in text for w in ("log_softmax", "logsumexp", "cross_entropy"))
        assert used == (name == "logprobs"), name
