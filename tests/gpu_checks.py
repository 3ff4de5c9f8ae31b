"""What only a GPU can show: `python gpu_checks.py CHECK` runs one, in a process that may use it.

The other tests pin the CPU (conftest.py); test_gpu.py starts these.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from builders import ADAPTERS
from viceversa.cli import main
from viceversa.config import LoraConfig, SamplingConfig
from viceversa.inference import graphs as decoding
from viceversa.inference.engines import Plain
from viceversa.inference.graphs import Graphed
from viceversa.inference.logprobs import completion_logprobs, evaluating
from viceversa.models import make_adapter
from viceversa.models.base import Adapter
from viceversa.models.lora import add_lora
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.types import DIRECTIONS, Direction, Rollout

DEVICE = torch.device("cuda", 0)
DRAWN = SamplingConfig(
    group_size=8, max_caption_tokens=24, guidance=1.5, top_k=60, top_p=0.97, temperature=1.2
)


def on_gpu(name: str, dtype: torch.dtype = torch.float32, lora: bool = False) -> Adapter:
    """A tiny random model whose captions go on for a while."""
    adapter = ADAPTERS[name]()
    with torch.no_grad():
        adapter.model.lm_head.weight[adapter.stop_id] *= 0.6
    moved = adapter.model.to(DEVICE, dtype)
    adapter = make_adapter(moved, adapter.processor, adapter.image_size)
    if lora:
        add_lora(adapter, LoraConfig(rank=4), "")
        for weight in (p for n, p in adapter.model.named_parameters() if "lora_B" in n):
            torch.nn.init.normal_(weight, std=0.1)
    return adapter


def drawn(adapter: Adapter, direction: Direction, engine: Any, autocast: bool = False) -> Rollout:
    examples = examples_of(direction, draw_specs(0, 1, "train"))[:4]
    with (
        mock.patch("viceversa.inference.sampler.engine_of", return_value=engine),
        torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast),
    ):
        return rollout(adapter, examples, DRAWN, seed=0, step=0)


def same_rows(one: Rollout, other: Rollout) -> float:
    """The share of rows that are alike: a number at a rounding edge may be drawn otherwise."""
    ids, others = one.completions.completion_ids, other.completions.completion_ids
    width = min(ids.shape[1], others.shape[1])
    return float((ids[:, :width] == others[:, :width]).all(-1).float().mean())


class Captures(decoding._Capture):
    """Counts the captures of all engines, and those that failed."""

    done = failed = 0

    def __call__(self, work: Any, t: Tensor) -> Any:
        replay = super().__call__(work, t)
        Captures.done += replay is not None
        Captures.failed += replay is None
        return replay


def graphs_draw_as_the_plain_engine() -> None:
    """Every model, both directions, rows that leave; nothing falls back to running without."""
    for name in ADAPTERS:
        adapter = on_gpu(name)
        for direction in DIRECTIONS:
            Captures.done = Captures.failed = 0
            with mock.patch.object(decoding, "_Capture", Captures):
                graphed = drawn(adapter, direction, partial(Graphed, stride=12))
            assert Captures.done >= 2 and not Captures.failed, (name, direction)
            share = same_rows(graphed, drawn(adapter, direction, Plain))
            assert share > 0.9, (name, direction, share)


def graphs_draw_as_step_by_step_in_bfloat16() -> None:
    """With LoRA, with autocast and without."""
    for name in ADAPTERS:
        adapter = on_gpu(name, torch.bfloat16, lora=True)
        for direction in DIRECTIONS:
            for autocast in (False, True):
                graphed = drawn(adapter, direction, partial(Graphed, stride=12), autocast)
                none = decoding._uncaptured
                with mock.patch.object(Graphed, "_new_capture", return_value=none):
                    other = drawn(adapter, direction, partial(Graphed, stride=12), autocast)
                share = same_rows(graphed, other)
                assert share > 0.9, (name, direction, autocast, share)


def a_failed_capture_leaves_no_trace() -> None:
    """Nor does it keep the next one from working."""
    t, total = torch.full((1,), 3, device=DEVICE), torch.zeros(1, device=DEVICE)

    def adds(t: Tensor) -> None:
        total.add_(t)

    def waits(t: Tensor) -> None:
        total.add_(t.item())

    adds(t)  # what is captured has to have run
    total.zero_()
    before = torch.cuda.current_stream()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert decoding._Capture()(waits, t) is None
    assert "without a CUDA graph" in str(said[0].message)
    assert torch.cuda.current_stream() == before
    replay = decoding._Capture()(adds, t)
    assert replay is not None
    assert total.item() == 0
    for _ in range(2):
        replay()
    assert total.item() == 6


def memory_is_given_back() -> None:
    """Without the garbage collector: what a rollout leaves is the rollout."""
    adapter = on_gpu("janus")
    drawn(adapter, "t2i", Graphed)
    gc.collect()
    gc.disable()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        found = drawn(adapter, "t2i", Graphed)
        del found
    assert torch.cuda.memory_allocated() <= before + 2**20


def log_probs_equal_the_cpus() -> None:
    """Of the same outputs, in float32; and their rewards."""
    for name in ADAPTERS:
        adapter, near = on_gpu(name), ADAPTERS[name]()
        with torch.no_grad():
            near.model.lm_head.weight[near.stop_id] *= 0.6
        for direction in DIRECTIONS:
            far = drawn(adapter, direction, Graphed)
            same = drawn(near, direction, Plain)
            same = replace(same, completions=to_cpu(far.completions), texts=far.texts)
            if far.pixels is not None:
                same = replace(same, pixels=far.pixels.cpu())
            if far.truncated is not None:
                same = replace(same, truncated=far.truncated.cpu())
            with evaluating(adapter.model), evaluating(near.model):
                one = completion_logprobs(adapter, far.prompts, far.completions)
                other = completion_logprobs(near, same.prompts, same.completions)
                rewards = dual_reward(adapter, far, ""), dual_reward(near, same, "")
            torch.testing.assert_close(one.cpu(), other, atol=1e-2, rtol=1e-3)
            torch.testing.assert_close(rewards[0].cpu(), rewards[1], atol=1e-2, rtol=1e-3)


def to_cpu(completions: Any) -> Any:
    return replace(
        completions,
        completion_ids=completions.completion_ids.cpu(),
        completion_mask=completions.completion_mask.cpu(),
    )


def the_command_trains_and_resumes() -> None:
    """The built-in model, all weights and LoRA in bfloat16, GRPO and SimPO."""
    small = ["data.prompts_per_step=4", "data.images_per_step=4", "sampling.group_size=4"]
    small += ["data.scenes_size=16", "train.save_steps=1", "eval.specs_per_kind=2"]
    lora = ["lora.rank=4", "model.dtype=bfloat16", "loss.name=simpo"]
    for options in ([], ["train.bf16=true", "loss.name=grpo"], lora):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            settings = [f"--set={option}" for option in small + options]
            assert main(["train", "--output", str(out), "--steps", "2", *settings]) == 0, options
            assert json.loads((out / "env.json").read_text())["device"] != "cpu"
            assert main(["train", "--resume", "--output", str(out), "--steps", "3"]) == 0, options
            rows = (out / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(row)["step"] for row in rows] == [1, 2, 3], options


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        graphs_draw_as_the_plain_engine,
        graphs_draw_as_step_by_step_in_bfloat16,
        a_failed_capture_leaves_no_trace,
        memory_is_given_back,
        log_probs_equal_the_cpus,
        the_command_trains_and_resumes,
    )
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]()
