"""Files that others wrote are data: nothing in them is run, and a run leaves nothing to unpickle.

The source is read for calls that could; then real folders with code in them are loaded.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch

from builders import random_janus, save
from viceversa.cli import main
from viceversa.config import ModelConfig
from viceversa.models import load_adapter

ROOT = Path(__file__).resolve().parent.parent
IMPORTERS = [ROOT / "src/viceversa" / name for name in ("config/objects.py", "__init__.py")]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str], int]]:
    """Name as written, arguments as written by place and keyword, line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {str(place): ast.unparse(value) for place, value in enumerate(node.args)}
            given |= {k.arg or "**": ast.unparse(k.value) for k in node.keywords}
            yield ast.unparse(node.func), given, node.lineno


def dangers(source: str) -> list[str]:
    """Calls that unpickle, run, or import what a file says; `line: call`."""
    found = []
    for name, given, line in calls(ast.parse(source)):
        last = name.rpartition(".")[2]
        wrong = (
            name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            or name.startswith(("pickle.", "dill.", "cloudpickle.", "marshal.", "joblib."))
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name == "yaml.load" and given.get("1") != "_Loader")  # of config, a SafeLoader
            or last
            in ("unsafe_load", "full_load", "import_module", "get_class_from_dynamic_module")
            or given.get("trust_remote_code", "False") != "False"
            or given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
            or (
                name.startswith("Auto")
                and last in ("from_pretrained", "from_config")
                and "trust_remote_code" not in given
            )
        )
        if wrong:
            found.append(f"{line}: {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_be_run(path: Path) -> None:
    found = dangers(path.read_text(encoding="utf-8"))
    # a reward or loss of the user's own by its import path, and the package's own names
    if path in IMPORTERS:
        (call,) = found
        assert call.endswith("import_module")
    else:
        assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "pickle.loads(content)",
        "AutoProcessor.from_pretrained(path)",
        "Model.from_pretrained(path, trust_remote_code=True)",
        "yaml.load(text, yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "importlib.import_module(name)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_what_could_is_found(line: str) -> None:
    assert len(dangers(line)) == 1


class Run:
    """Makes a folder where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was-run",)


CODE = "import os\nos.mkdir('was-run')\nclass Mine: ...\n"


def with_code(folder: Path) -> None:
    """Every file that may name code of the model's own names some."""
    (folder / "mine.py").write_text(CODE)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE)
    names = {
        "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText"),
        "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
        "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    }
    for name, classes in names.items():
        tree = json.loads((folder / name).read_text())
        tree["auto_map"] = dict.fromkeys(classes, "mine.Mine")
        (folder / name).write_text(json.dumps(tree))


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model's folder in the current one."""
    monkeypatch.chdir(tmp_path)
    adapter = random_janus()
    save(adapter, Path("model"))
    return Path("model")


def test_code_of_a_model_is_not_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after asking either: nobody is asked."""
    with_code(model)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    load_adapter(ModelConfig("model"))
    assert main(["plan", "--model", "model"]) in (0, 1)
    assert not Path("was-run").exists()


def test_a_run_is_gone_on_from_without_unpickling(model: Path) -> None:
    """Its folder holds no training_args.bin; a pickle planted in its checkpoint is not run."""
    small = ["model.path=model", "schedule=t2i"]
    small += ["data.prompts_per_step=1", "data.images_per_step=1", "data.scenes_size=4"]
    small += ["sampling.group_size=2", "eval.specs_per_kind=0"]
    options = [f"--set={option}" for option in (*small, "train.save_steps=1")]
    assert main(["train", "--steps", "1", "--output", "run", *options]) == 0
    written = [path.name for path in Path("run").rglob("*")]
    assert "training_args.bin" not in written
    pickled = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
    assert {n for n in written if n.endswith((".bin", ".pt", ".pth", ".pkl"))} == set(pickled)
    for name in pickled:
        torch.save({"state": Run()}, Path("run", "checkpoint-1", name))
        with suppress(UnpicklingError):
            main(["train", "--resume", "--steps", "2", "--output", "run"])
        assert not Path("was-run").exists()
