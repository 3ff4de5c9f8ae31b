"""An output that a group holds several times is computed once, and counts as often, in any loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import random_janus
from test_replay import CASES, GROUP, double_janus, fixed_reward, fixed_rollout
from viceversa.config import LoraConfig, load_config
from viceversa.data.sources import load_questions, load_sources
from viceversa.data.stream import Stream
from viceversa.inference import logprobs, reading
from viceversa.inference.distinct import distinct_rows
from viceversa.inference.logprobs import completion_logprobs
from viceversa.inference.reading import Written
from viceversa.models.lora import add_lora
from viceversa.rl.metrics import merged, values
from viceversa.rl.rows import parts_of
from viceversa.rl.step import Step
from viceversa.training.replay import Replay
from viceversa.types import ALONE, Completion, Example, Rollout

KL = ["loss.t2i_kl=0.1", "loss.i2t_kl=0.2"]
REPLAY = ["replay.questions=scenes", "replay.per_step=6", "replay.max_answer_tokens=4"]
LOSSES = {**CASES, "grpo two updates kl": [*CASES["grpo two updates"], *KL], "replay": REPLAY}
#: Micro-steps, and the most rows of a backward pass: the last one cuts through groups.
WHOLE, *CUTS = (1, 64), (2, 64), (1, 3)
CUT = [(case, cut) for case in ("grpo kl", "simpo", "raft", "replay") for cut in CUTS]


def with_copies(drawn: Rollout) -> Rollout:
    """Of each group's four outputs, the last is the first one and, in every other, all but one."""
    first = torch.arange(len(drawn.examples)).unsqueeze(1) * GROUP
    same = torch.tensor([[0, 1, 2, 0], [0, 0, 2, 0]]).repeat(len(drawn.examples) // 2, 1)
    rows = (first + same).flatten()
    kept = {
        "completions": drawn.completions.select(rows),
        "drawn_logprobs": drawn.drawn_logprobs[rows],
    }
    return replace(drawn, **kept)


class Learned:
    """One step's loss, metrics and gradients, and the rows that went through the layers."""

    def __init__(self, overrides: list[str], out: Path, parts: int, most: int):
        fixed = ["model.path=tiny", "steps=2", f"output_dir={out}", "data.scenes_size=8"]
        fixed += ["data.prompts_per_step=4", "data.images_per_step=4"]
        fixed += [f"sampling.group_size={GROUP}", "reward.scorer=frozen"]
        settings = load_config(None, [*fixed, *overrides])
        adapter, self.read = double_janus(), 0
        stream: Any = Stream(
            settings, load_sources(settings, adapter.image_size), 1, load_questions(settings)
        )
        asked = stream.questions
        replay = Replay(adapter, settings.replay, asked, settings.seed) if asked else None
        step = Step(adapter, settings, {"dual": fixed_reward}, replay=replay)

        def sample(examples: Sequence[Example], number: int) -> Rollout:
            return with_copies(fixed_rollout(adapter, examples, number))

        step.sample = sample  # type: ignore[method-assign]
        step.keep_start()
        micros, found = step.rows(stream[0], 0, parts)
        with torch.no_grad():  # away from what sampled, and from the reference
            for parameter in adapter.trainable_parameters():
                parameter.mul_(1.01)
        honest = reading.read

        def counted(adapter: Any, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
            self.read += len(written.of)
            return honest(adapter, embeds, mask, written)

        metrics = [found]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logprobs, "read", counted)
            for micro in micros:
                for part in parts_of(micro, most, step.algorithm.unit, ALONE):
                    losses, own = step.losses(part, step.logprobs(part))
                    torch.stack(list(losses.values())).sum().backward()
                    metrics.append(own)
        self.metrics = {
            name: value
            for name, value in values(merged(metrics)).items()
            if not name.endswith("_seconds")
        }
        trained = adapter.trainable_parameters()
        self.gradients = [p.grad for p in trained if p.grad is not None]


@cache
def without_merging(case: str) -> Learned:
    with TemporaryDirectory() as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "drops", lambda model: True)
        return Learned(LOSSES[case], Path(out), *WHOLE)


@pytest.mark.parametrize(("case", "cut"), [*((case, WHOLE) for case in LOSSES), *CUT])
def test_loss_and_gradients_are_those_of_every_row_computed(
    case: str, cut: tuple[int, int], tmp_path: Path
) -> None:
    once, whole = Learned(LOSSES[case], tmp_path, *cut), without_merging(case)
    # in float64, but for the model's norms, which round to float32
    assert once.metrics == pytest.approx(whole.metrics, rel=1e-7, abs=1e-9)
    for mine, theirs in zip(once.gradients, whole.gradients, strict=True):
        assert (mine - theirs).norm() <= 1e-6 * theirs.norm()
    if case == "grpo" and cut == WHOLE:
        assert (once.read, whole.read) == (2 * (2 * 3 + 2 * 2), 2 * 16)


def test_share_of_distinct_rows_is_told(tmp_path: Path) -> None:
    metrics = Learned(CASES["grpo"], tmp_path, 1, 64).metrics
    assert metrics["t2i/rows"] == metrics["i2t/rows"] == 16
    assert metrics["t2i/distinct_rows"] == 10 / 16
    # captions of one token may be alike by chance
    assert metrics["i2t/distinct_rows"] <= 10 / 16


def test_rows_are_distinct_by_prompt_and_by_the_tokens_that_count() -> None:
    ids = torch.tensor([[1, 2], [1, 3], [1, 2], [1, 2], [1, 2]])
    mask = torch.tensor([[1, 0], [1, 0], [1, 1], [1, 1], [1, 1]]).bool()
    rows, which = distinct_rows(Completion(ids, mask), torch.tensor([0, 0, 0, 0, 1]))
    assert sorted(rows.tolist()) in ([0, 2, 4], [0, 3, 4], [1, 2, 4], [1, 3, 4])
    assert which[0] == which[1] and which[2] == which[3]
    assert len({*which.tolist()}) == 3
    assert torch.tensor([0, 0, 0, 0, 1])[rows].tolist() == [0, 0, 1]


def test_where_the_model_drops_at_random_every_row_is_computed() -> None:
    """Copies of a row then have unlike log-probs, which a loss averages."""
    adapter = random_janus()
    add_lora(adapter, LoraConfig(rank=4, dropout=0.5), "base")
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    prompts = adapter.prompts("t2i", ["a red ring"])
    rows = adapter.image_completion(torch.zeros(3, adapter.image_tokens, dtype=torch.long))
    adapter.model.train()
    torch.manual_seed(0)
    dropped = completion_logprobs(adapter, prompts, rows).sum(-1)
    assert len({*dropped.tolist()}) == 3
    adapter.model.eval()
    alike = completion_logprobs(adapter, prompts, rows).sum(-1)
    assert len({*alike.tolist()}) == 1
