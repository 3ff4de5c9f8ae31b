"""A frozen scorer reads a pair of input and output once; rewards are as if it read every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import random_janus
from small_runs import config, trained, trainer
from viceversa.config import RewardConfig, SamplingConfig
from viceversa.inference.known import KnownRewards, pairs_of
from viceversa.inference.snapshot import Scorer
from viceversa.rl import rewards
from viceversa.rl.rewards import DualReward, dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.training.run import probe
from viceversa.types import DIRECTIONS, Direction, Rollout


def drawn(adapter: Any, direction: Direction, step: int = 0) -> Rollout:
    settings = SamplingConfig(group_size=3, max_caption_tokens=8)
    inputs = examples_of(direction, draw_specs(0, 1, "train"))[:2]
    return rollout(adapter, inputs, settings, 0, step)


def joined(one: Rollout, other: Rollout) -> Rollout:
    """Half of the second rollout's outputs are those of the first one."""
    half = torch.arange(len(one.completions)) % 2 == 0
    ids, mask = other.completions.completion_ids.clone(), other.completions.completion_mask.clone()
    longest = max(ids.shape[1], one.completions.completion_ids.shape[1])

    def mixed(of_one: torch.Tensor, of_other: torch.Tensor) -> torch.Tensor:
        wide = [torch.nn.functional.pad(x, (0, longest - x.shape[1])) for x in (of_one, of_other)]
        return torch.where(half.unsqueeze(1), *wide)

    first = one.completions
    completions = replace(
        first,
        completion_ids=mixed(first.completion_ids, ids),
        completion_mask=mixed(first.completion_mask, mask),
    )
    pairs = zip(half.tolist(), one.texts, other.texts, strict=False)
    texts = tuple(mine if kept else theirs for kept, mine, theirs in pairs)
    pixels = truncated = None
    if one.pixels is not None and other.pixels is not None:
        pixels = torch.where(half.view(-1, 1, 1, 1), one.pixels, other.pixels)
    if one.truncated is not None and other.truncated is not None:
        truncated = torch.where(half, one.truncated, other.truncated)
    return replace(other, completions=completions, texts=texts, pixels=pixels, truncated=truncated)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_what_was_read_is_not_read_again(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_janus()
    options = RewardConfig(scorer="frozen", t2i_own=0.5, i2t_own=1.0)
    scorer = Scorer(adapter.model, "frozen")
    scorer.start()
    reward = DualReward(adapter, options, scorer)
    first = drawn(adapter, direction)
    second = joined(first, drawn(adapter, direction, step=1))
    read: list[int] = []
    honest = rewards.read_back

    def counted(adapter: Any, prompts: Any, *rest: Any) -> torch.Tensor:
        read.append(len(prompts))
        return honest(adapter, prompts, *rest)

    own = options.own(direction)
    wanted = [dual_reward(adapter, r, "", own=own) for r in (first, second)]
    news = [len(pairs_in(first)), len(pairs_in(second) - pairs_in(first))]
    monkeypatch.setattr(rewards, "read_back", counted)
    found = [reward(r) for r in (first, second)]
    assert read == news and 0 < news[1] <= 3
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(reward(second), found[1])
    assert read == news


def pairs_in(one: Rollout) -> set[bytes]:
    return set(pairs_of(one, torch.arange(len(one.completions))))


@pytest.mark.parametrize("kind", ["live", "average"])
def test_a_scorer_that_changes_remembers_nothing(kind: str) -> None:
    adapter = random_janus()
    scorer = Scorer(adapter.model, kind)
    scorer.start()
    reward = DualReward(adapter, RewardConfig(scorer=kind), scorer)  # type: ignore[arg-type]
    sampled = drawn(adapter, "t2i")
    before = reward(sampled)
    with torch.no_grad():
        adapter.model.lm_head.weight.mul_(1.5)
    scorer.start()
    assert not torch.allclose(reward(sampled), before)


def test_pairs_differ_by_all_that_the_scorer_reads() -> None:
    adapter = random_janus()
    one = drawn(adapter, "i2t")
    row = torch.tensor([1])
    asked = replace(one, examples=tuple(replace(e, text="what is this?") for e in one.examples))
    swapped = replace(one, examples=one.examples[::-1])
    ids = one.completions.completion_ids.clone()
    ids[1, 0] += 1
    other = replace(one, completions=replace(one.completions, completion_ids=ids))
    drawing = replace(one, direction="t2i")
    found = [pairs_of(r, row)[0] for r in (one, asked, swapped, other, drawing)]
    assert len(set(found)) == 5
    assert pairs_of(one, row) == found[:1]


def test_the_pairs_that_were_looked_up_longest_ago_are_forgotten() -> None:
    known = KnownRewards(most=2)
    first, second, third = (bytes([n]) * 16 for n in range(3))
    known.add([first, second], torch.tensor([0.1, 0.2]))
    known.look_up([first])
    known.add([third], torch.tensor([0.3]))
    assert known.look_up([first, second, third]).isnan().tolist() == [False, True, False]
    again = KnownRewards(most=2)
    again.load(known.state())
    assert torch.equal(again.look_up([first, third]), torch.tensor([0.1, 0.3]))
    empty = KnownRewards()
    empty.load(KnownRewards().state())
    assert empty.look_up([first]).isnan().all()


def test_a_probe_of_the_first_step_leaves_nothing_known(tmp_path: Path) -> None:
    """Its second pass, which is timed, and the step itself score as if nothing had been."""
    one = trainer(config(tmp_path, "reward.scorer=frozen"))
    assert one.step.known is not None
    probe(one)
    assert not len(one.step.known.state()["pairs"])


def test_a_resumed_run_knows_what_was_known(tmp_path: Path) -> None:
    """Of inputs that come again in every step."""
    given = ["reward.scorer=frozen", "data.scenes_size=4", "steps=2", "train.save_steps=1"]
    _, one = trained(config(tmp_path, *given))
    assert one.step.known is not None
    kept = one.step.known.state()
    assert len(kept["pairs"]) > 8
    one.step.known.load(KnownRewards().state())
    one.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert one.state.global_step == 2
    for name, value in one.step.known.state().items():
        assert torch.equal(value, kept[name])
