"""Every example runs, in a few steps, and is short enough to read at a glance."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import viceversa as vv
from builders import SIZE, random_liquid, save
from inference import test_parity as parity
from small_runs import weights
from viceversa.models import ADAPTERS
from viceversa.types import Example

#: The example's own run, in less time.
QUICK = {
    "eval.specs_per_kind": 1,
    "eval.held_out_per_kind": 1,
    "data.prompts_per_step": 4,
    "data.images_per_step": 4,
    "eval.held_out_inputs": 2,
    "data.scenes_size": 64,
    "sampling.group_size": 4,
}
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
#: Lines of an example; of a model that transformers lacks, its class and its adapter.
MOST, MOST_OF_A_MODEL = 40, 100


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"examples.{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_it_is_short(path: Path) -> None:
    most = MOST_OF_A_MODEL if path.stem == "new_model" else MOST
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


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


# --- a model of one's own ---------------------------------------------------------------------


def test_the_page_counts_the_lines_of_a_new_model() -> None:
    """The table of docs/extend.md: the model, the adapter, the registration and the rest."""
    text = (EXAMPLES / "new_model.py").read_text(encoding="utf-8")
    config, model, adapter, *registering = [
        (node.end_lineno or 0) - node.lineno + 1
        for node in ast.parse(text).body[1:]
        if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert registering == [1, 1]
    all_lines = len(text.splitlines())
    parts = [config + model, adapter, 2]
    page = (EXAMPLES.parent / "docs/extend.md").read_text(encoding="utf-8")
    _, _, said = page.partition(f"It has {all_lines} lines:")
    found = [int(n) for n in re.findall(r"^\| (\d+) \|", said, re.MULTILINE)]
    assert found == [*parts, all_lines - sum(parts)]


@pytest.fixture(scope="module")
def liquid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the tiny random model of examples/new_model.py, which is registered."""
    folder = tmp_path_factory.mktemp("liquid")
    save(random_liquid(load("new_model")), folder)
    yield folder
    del ADAPTERS["liquid"]


@torch.no_grad()
def test_a_new_model_scores_as_its_class_does(
    liquid: Path, prompts_in: list[Example], pictures_in: list[Example]
) -> None:
    adapter = vv.load(liquid).adapter
    parity.check_image_against_cross_entropy(adapter, prompts_in)
    parity.check_text_against_labels_loss(adapter, pictures_in)
    for examples in (prompts_in[:3], pictures_in[:3]):
        parity.check_against_cached_decoding(adapter, examples)
    parity.check_guided_against_cached_decoding(adapter, prompts_in)
    parity.check_codes_are_the_nearest(adapter, pictures_in)
    parity.check_a_picture_is_read_as_its_codes(adapter, pictures_in)


@torch.no_grad()
def test_faults_of_a_new_model_are_caught(
    liquid: Path, prompts_in: list[Example], pictures_in: list[Example]
) -> None:
    """The codes' ids off by one; the codec's own look-up, by distance in place of angle."""
    adapter: Any = vv.load(liquid).adapter
    adapter.image_token_ids = adapter.image_token_ids + 1
    parity.must_fail(lambda: parity.check_image_against_cross_entropy(adapter, prompts_in))
    codec = adapter.image_tokenizer
    adapter.encode_images = lambda pixels: codec.encode(adapter.scaled(pixels)).image_tokens.view(
        len(pixels), -1
    )
    parity.must_fail(lambda: parity.check_codes_are_the_nearest(adapter, pictures_in))


def test_a_new_model_draws_and_captions(liquid: Path) -> None:
    model = vv.load(liquid)
    pictures = model.draw(["a red circle", "two squares"], n=2, guidance=2.0)
    assert [[p.size for p in row] for row in pictures] == [[(SIZE, SIZE)] * 2] * 2
    captions = model.caption([*pictures[0], *pictures[1]], temperature=1.0, max_tokens=8)
    assert len(captions) == 4 and len(set(captions)) > 1


def test_a_new_model_learns(liquid: Path, tmp_path: Path) -> None:
    """Its weights move and its codec does not; a checkpoint is as good as what was trained."""
    model = vv.load(liquid)
    before = weights(model.adapter)
    options = {"eval.specs_per_kind": 0, "eval.held_out_inputs": 0, "sampling.group_size": 4}
    options |= {f"data.{kind}_per_step": 2 for kind in ("prompts", "images")}
    pictures = [p for row in model.draw("a red circle", n=4) for p in row]
    run = vv.train(
        model,
        prompts=["a red circle", "two blue squares"],
        images=pictures,
        steps=2,
        output=tmp_path / "run",
        options=options,
    )
    after = weights(model.adapter)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert len(moved) == len(model.adapter.trainable_parameters())
    assert not any("vqmodel" in name for name in moved)
    assert run.checkpoint is not None
    again = vv.load(run.checkpoint)
    asked = ["a red circle"] * 4, pictures
    torch.testing.assert_close(vars(again.score(*asked)), vars(model.score(*asked)))
