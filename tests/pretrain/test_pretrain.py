"""Building the bundled model: it resumes to the same weights, and its tokenizer can learn."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from viceversa.config import ConfigError, ModelConfig
from viceversa.models import load_adapter
from viceversa.models.janus import JanusAdapter
from viceversa.pretrain import codec, tiny
from viceversa.pretrain import pretrain as pt
from viceversa.pretrain.codec import (
    codec_loss,
    drop_spare_codes,
    patch_groups,
    quantise,
    random_grids,
)
from viceversa.pretrain.pretrain import batch_rows, draw_batch
from viceversa.pretrain.recipe import PretrainConfig


def recipe(out: Path) -> PretrainConfig:
    small = PretrainConfig(
        codec_steps=4, codec_batch_size=4, steps=4, drawn_per_step=4, read_per_step=4
    )
    return replace(small, output=str(out), checkpoint_every=2)


class StopError(Exception):
    pass


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Measure nothing at the end, and have every step count."""
    patch.setattr(pt, "evaluate_scenes", lambda *a: {})
    patch.setattr(pt, "summary", lambda figures: "")
    patch.setattr(codec, "RESEED_EVERY", 1)
    patch.setattr(pt, "LOG_EVERY", 1)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("never-stopped")
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        pt.pretrain(recipe(folder), Console(file=io.StringIO()))
    return folder


@pytest.mark.parametrize("stage", ["tokenizer", "model"])
def test_pretraining_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never_stopped: Path, stage: str
) -> None:
    """Stopped after a checkpoint in either stage and started again, or never stopped."""
    shorten(monkeypatch)
    console = Console(record=True, file=io.StringIO())
    honest = pt.update

    def stop(schedule: Any, losses: Any, name: str, step: int) -> dict[str, float]:
        if name == stage and step == 4:
            raise StopError
        return honest(schedule, losses, name, step)

    monkeypatch.setattr(pt, "update", stop)
    with pytest.raises(StopError):
        pt.pretrain(recipe(tmp_path), console)
    monkeypatch.setattr(pt, "update", honest)
    pt.pretrain(recipe(tmp_path), console)
    assert f"{stage}: resumed at step 2" in console.export_text()
    folders = (never_stopped, tmp_path)
    a, b = (torch.load(f / "model.pt", weights_only=True)["module"] for f in folders)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    rows = [log_rows(folder / "model") for folder in folders]
    assert rows[0] == rows[1]  # each step once, though one was logged and then lost
    assert [(row["stage"], row["step"]) for row in rows[0]] == [
        (name, step) for name in ("tokenizer", "model") for step in range(1, 5)
    ]
    parts = rows[0][-1]["image"] + rows[0][-1]["text"]
    assert rows[0][-1]["loss"] == pytest.approx(parts, abs=5e-4)  # all three of five decimals


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The log beside the weights; of its seconds, only that they are there."""
    rows = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    assert all(row.pop("seconds") > 0 for row in rows)
    return rows


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    """The loss is: the square root has none at 0."""
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    schedule = pt.schedule_of(layer, 2, 1.0, 0.0)
    with pytest.raises(
        FloatingPointError, match=r"model: loss is 0.0, gradient norm inf at step 1"
    ):
        pt.update(schedule, {"loss": layer.weight.sqrt().sum()}, "model", 1)
    assert layer.weight == 0


def test_another_recipe_is_not_resumed(never_stopped: Path) -> None:
    with pytest.raises(ConfigError, match="seed=0, not 1"):
        pt.pretrain(replace(recipe(never_stopped), seed=1), Console(file=io.StringIO()))


def test_a_checkpoint_of_a_gpu_is_gone_on_with_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tensors are marked as those of a GPU."""
    shorten(monkeypatch)
    console = Console(record=True, file=io.StringIO())
    small = replace(recipe(tmp_path), codec="builtin")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        pt.pretrain(small, console)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pt.pretrain(small, console)
    assert "model: resumed at step 4" in console.export_text()


def test_pretraining_never_shows_held_out_specs() -> None:
    for step in range(20):
        for spec in draw_batch(PretrainConfig(), step):
            assert spec.split == "train"
            assert not spec.held_out


def test_pretraining_rows_cover_both_directions_and_blanked_prompts() -> None:
    processor = tiny.build_processor()
    adapter = JanusAdapter(tiny.build_model(tiny.build_config(processor, 32, 1)).eval(), processor)
    drawn, blanked, read = batch_rows(
        adapter, PretrainConfig(drawn_per_step=20, read_per_step=20), 0
    )
    assert (len(drawn[0]), len(blanked[0]), len(read[0])) == (18, 2, 20)
    kept = {adapter.bos_id, adapter.boi_id, adapter.pad_id}
    assert set(blanked[0].prompt_ids[blanked[0].attention_mask].tolist()) == kept
    assert read[0].direction == "i2t"
    rows = batch_rows(adapter, PretrainConfig(drawn_per_step=2, read_per_step=1), 0)
    assert [len(prompts) for prompts, _ in rows] == [1, 1, 1]  # the fewest that are taken


def test_codec_gradient_reaches_the_encoder_and_the_codes() -> None:
    """transformers' own forward cuts both off; ours goes straight through the look-up."""
    torch.manual_seed(0)
    vq = tiny.build_model(tiny.build_config(tiny.build_processor(), 32, 1)).model.vqmodel
    loss, ids = codec_loss(vq, random_grids(np.random.default_rng(0), 4))
    loss.backward()
    assert ids.shape == (4, 36)
    for parameter in (vq.encoder.conv_in.weight, vq.quantize.embedding.weight):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_spare_codes_are_dropped() -> None:
    """No more codes are kept than there are different patches; the others all lie in one place."""
    torch.manual_seed(0)
    vq = tiny.build_model(tiny.build_config(tiny.build_processor(), 32, 1)).model.vqmodel
    pixels = random_grids(np.random.default_rng(0), 32)
    groups = patch_groups(pixels, 6)
    assert groups.shape == (32 * 36,)
    with torch.no_grad():
        kept = drop_spare_codes(vq, pixels)
        _, _, ids = quantise(vq, vq.quant_conv(vq.encoder(pixels)))
    assert kept <= int(groups.max()) + 1
    assert len(ids.unique()) <= kept + 1


def test_the_image_tokenizer_of_a_finished_model_is_taken(tmp_path: Path, monkeypatch: Any) -> None:
    shorten(monkeypatch)
    console = Console(file=io.StringIO())
    folder = pt.pretrain(replace(recipe(tmp_path / "a"), codec="builtin"), console)
    found, given = load_adapter(ModelConfig(path=str(folder))), load_adapter(ModelConfig())
    wanted: Any = given.image_tokenizer.state_dict()
    for name, value in found.image_tokenizer.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    rows = [json.loads(line) for line in (folder / "pretrain.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"model"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"read_weights": (1.0, 2.0)}, r"^--read-weights is 1.0 2.0; it takes 7 weights"),
        ({"drawn_weights": (0.0,) * 7}, r"^--drawn-weights .*of which one is above 0"),
        ({"drawn_weights": (-1.0, *(1.0,) * 6)}, r"^--drawn-weights .*of 0 or more"),
        ({"read_weights": (float("nan"), *(1.0,) * 6)}, r"^--read-weights is nan"),
        ({"read_per_step": 0}, r"^--read-per-step is 0; it must be at least 1"),
        ({"drawn_per_step": 1}, r"^--drawn-per-step is 1; it must be at least 2"),
    ],
)
def test_a_recipe_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pt.check_recipe(replace(PretrainConfig(), **wrong))


def test_a_codec_of_another_geometry_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(image_tokenizer=torch.nn.Linear(1, 1))
    monkeypatch.setattr(pt, "load_adapter", lambda _: other)
    with pytest.raises(ConfigError, match=r"--codec is 'other', whose image tokenizer is of anoth"):
        pt.pretrain(replace(recipe(tmp_path / "a"), codec="other"), Console(file=io.StringIO()))
