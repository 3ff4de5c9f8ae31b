"""The bundled model: what a user loads, and that it is what the recipe's record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import JanusForConditionalGeneration, JanusProcessor

from viceversa.cli import main
from viceversa.config import EvalConfig, ModelConfig, SamplingConfig
from viceversa.data.pictures import to_numpy
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.models.loading import builtin_path
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.evaluate import evaluate_scenes
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import SPLITS, draw_specs
from viceversa.scenes.verify import verify_pictures


def test_plain_from_pretrained_loads_it() -> None:
    model = JanusForConditionalGeneration.from_pretrained(builtin_path())
    processor = JanusProcessor.from_pretrained(builtin_path())
    assert model.dtype == torch.float32
    config: Any = model.config
    assert processor.num_image_tokens == config.vq_config.num_patches**2


def test_weights_are_float32_and_small() -> None:
    file = builtin_path() / "model.safetensors"
    assert file.stat().st_size <= 25e6
    with safe_open(file, "pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
            assert weights.get_slice(name).get_dtype() == "F32", name


@torch.no_grad()
@pytest.mark.parametrize("per_kind", [50, pytest.param(240, marks=pytest.mark.slow)])
def test_tokenizer_round_trips_stay_right(builtin: Adapter, per_kind: int) -> None:
    """At least 97 % of 1,050 own pictures (slow: of 5,040), every kind and split."""
    specs = [s for split in SPLITS for s in draw_specs("round trip", per_kind, split)]
    pixels = [e.pixels for e in examples_of("i2t", specs) if e.pixels is not None]
    back = builtin.decode_images(builtin.encode_images(torch.stack(pixels)))
    right = verify_pictures(to_numpy(back), specs)
    assert sum(right) / len(right) >= 0.97


@pytest.mark.slow
def test_figures_are_those_of_the_record(builtin: Adapter) -> None:
    """Drawing, captions and questions, measured again, lie in the recorded intervals."""
    record = json.loads((builtin_path() / "pretrain.json").read_text())["figures"]
    figures = evaluate_scenes(builtin, EvalConfig(specs_per_kind=300))
    for task in ("t2i", "i2t", "questions"):
        low, high = record[task]["interval"]
        assert low <= figures[task]["accuracy"] <= high, task


@pytest.mark.slow
def test_training_raises_the_reward_by_the_untrained_scorer(
    builtin: Adapter, tmp_path: Path
) -> None:
    """Twenty-five steps: new drawings of fixed prompts please the base model more than its own."""
    quiet = ["--set=eval.specs_per_kind=0", "--set=eval.held_out_inputs=0"]
    quiet += ["--set=train.learning_rate=1e-4", "--set=schedule=t2i"]
    assert main(["train", "--steps", "25", "--output", str(tmp_path / "run"), *quiet]) == 0
    tuned = load_adapter(ModelConfig(path=str(tmp_path / "run" / "checkpoint-25")))
    examples = examples_of("t2i", draw_specs("slow tier", 15, "tune"))
    means = []
    for adapter in (builtin, tuned):
        drawn = rollout(adapter, examples, SamplingConfig(group_size=8), seed=0, step=0)
        means.append(float(dual_reward(builtin, drawn, "").mean()))
    assert means[1] > means[0]
