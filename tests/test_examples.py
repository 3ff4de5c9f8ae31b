"""Every example runs, in a few steps, and is short enough to read at a glance."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

#: The example's own run, in less time.
QUICK = {
    "eval.specs_per_kind": 1,
    "eval.held_out_per_kind": 1,
    "data.prompts_per_step": 4,
    "data.images_per_step": 4,
    "eval.held_out_inputs": 2,
}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_it_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


def test_first_steps(tmp_path: Path) -> None:
    run = load("first_steps").main(steps=1, output=str(tmp_path / "run"), **QUICK)
    assert (tmp_path / "run" / "after.png").exists()
    assert run.report.exists()
    assert set(run.figures) >= {"base", "tuned"}


def test_custom_reward(tmp_path: Path) -> None:
    example = load("custom_reward")
    first = example.main(steps=2, output=str(tmp_path / "run"))
    assert len(first.metrics) == 2
    again = example.main(steps=3, output=str(tmp_path / "run"), resume=True)
    assert [row["step"] for row in again.metrics] == [1, 2, 3]


@pytest.mark.slow
def test_custom_loss(tmp_path: Path) -> None:
    run = load("custom_loss").main(steps=1, output=str(tmp_path / "run"), **QUICK)
    row = run.metrics[-1]
    assert 0 < row["t2i/weight"] <= 1
    assert row["grad_norm"] > 0
