"""The audit: measures a model's self-reward on each source of evidence, and decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from viceversa.audit import measures
from viceversa.audit.groups import (
    Groups,
    Judge,
    as_examples,
    scene_groups,
    scenes_of,
    unpaired_groups,
)
from viceversa.audit.measures import Estimate
from viceversa.audit.pairs import Scored, corrupt, kinds_of, length_bias, rates, score
from viceversa.audit.verdict import Measured, Verdict, decide
from viceversa.config import RewardConfig
from viceversa.models.base import Adapter
from viceversa.types import DIRECTIONS, Direction, opposite

#: N of best-of-N, as far as the group goes.
BEST_OF = (1, 2, 4, 8)


@dataclass(frozen=True)
class Inputs:
    """What to audit on; all empty: the built-in world."""

    pairs: tuple[Sequence[str], Tensor] | None = None
    """Captions and their pictures, uint8 [N, 3, H, W]."""
    prompts: Sequence[str] = ()
    images: Sequence[Tensor] = ()
    scenes: int = 64
    """Inputs of the built-in world, where there are none of the user's."""


@dataclass(frozen=True)
class Audit:
    """What was measured, by source and direction, and the verdict."""

    sources: Mapping[str, Mapping[Direction, Measured]]
    accuracy: Mapping[str, Mapping[str, Estimate]]
    """Of `reading` and `drawing`, skill by skill: who knows more."""
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        return {
            "sources": {
                source: {d: asdict(m) for d, m in measured.items()}
                for source, measured in self.sources.items()
            },
            "accuracy": {d: {k: asdict(e) for k, e in m.items()} for d, m in self.accuracy.items()},
            "verdict": asdict(self.verdict),
        }


def audit(
    adapter: Adapter,
    inputs: Inputs,
    group_size: int = 8,
    reward: RewardConfig | None = None,
    seed: int = 0,
) -> Audit:
    """Audit a model's self-reward; `reward` weighs its second term (default: it has none)."""
    judge = Judge(adapter, group_size, reward or RewardConfig(), seed)
    sources: dict[str, Mapping[Direction, Measured]] = {}
    accuracy: dict[str, Mapping[str, Estimate]] = {}
    if inputs.pairs is not None:
        scored = score(adapter, corrupt(*inputs.pairs, seed), judge.scored_rows)
        sources["pairs"] = {
            d: of_pairs(scored, d, judge.reward.own(d), adapter.image_tokens) for d in DIRECTIONS
        }
        accuracy = knowledge(scored)
    given: dict[Direction, Sequence[Any]] = {"t2i": inputs.prompts, "i2t": inputs.images}
    unpaired: dict[Direction, Measured] = {
        d: of_unpaired(unpaired_groups(judge, as_examples(d, some)))
        for d, some in given.items()
        if len(some)
    }
    if unpaired:
        sources["unpaired"] = unpaired
    if not sources:
        groups = scene_groups(judge, scenes_of(inputs.scenes, seed))
        sources["scenes"] = {d: of_labelled(groups[d], groups[opposite(d)]) for d in DIRECTIONS}
        accuracy = {
            "reading": accuracies(groups["i2t"]),
            "drawing": accuracies(groups["t2i"]),
        }
    return Audit(sources, accuracy, decide(sources))


def by_skill(groups: Groups) -> dict[str, np.ndarray]:
    """Return the places of each skill's inputs among the P."""
    skills = np.array(groups.skills)
    return {k: np.flatnonzero(skills == k) for k in dict.fromkeys(groups.skills)}


def of_labelled(groups: Groups, judge: Groups) -> Measured:
    """Measure a direction whose outputs are verified; `judge` holds the other one's groups."""
    right, rewards, names = groups.right, groups.rewards, groups.names
    assert right is not None and judge.right is not None
    skills, teaches = {}, {}
    for kind, rows in by_skill(groups).items():
        some = [names[r] for r in rows]
        if found := measures.ranking(rewards[rows], right[rows], some):
            skills[kind] = found
        more = measures.mean(judge.right[rows].mean(1) - right[rows].mean(1))
        if more is not None:
            teaches[kind] = more
    sizes = [n for n in BEST_OF if n <= right.shape[1]]
    curves = {n: measures.best_of(rewards, right, n) for n in sizes}
    means = {n: measures.mean(c, names) for n, c in curves.items()}
    return Measured(
        ranking=measures.ranking(rewards, right, names),
        skills=skills,
        headroom=measures.headroom(right, names),
        best_of={n: e for n, e in means.items() if e is not None},
        gain=measures.mean(curves[sizes[-1]] - curves[1], names),
        teaches=teaches,
        length=length_of(groups),
    )


def length_of(groups: Groups) -> Estimate | None:
    """Estimate how rewards go with text length: captions within groups, prompts across inputs."""
    if groups.direction == "i2t":
        return measures.length_within(groups.rewards, groups.lengths, groups.names)
    return measures.length_across(groups.rewards.mean(1), groups.lengths[:, 0])


def accuracies(groups: Groups) -> dict[str, Estimate]:
    """Estimate a direction's accuracy at temperature 1, skill by skill."""
    assert groups.right is not None
    found = {}
    for kind, rows in by_skill(groups).items():
        names = [groups.names[r] for r in rows]
        shares = groups.right[rows].mean(1)
        estimate = measures.ratio(shares, np.ones(len(rows)), names, share=True)
        if estimate is not None:
            found[kind] = estimate
    return found


def of_unpaired(groups: Groups) -> Measured:
    """Measure a direction on inputs without labels: spread within groups against noise."""
    noise = {
        name: found
        for name, draws in groups.noises
        if (found := measures.spread_over_noise(groups.rewards, draws, groups.names))
    }
    return Measured(noise=noise, length=length_of(groups))


def of_pairs(scored: Scored, direction: Direction, own: float, image_tokens: int) -> Measured:
    """Measure how often a right pair beats its corruptions in one direction."""
    rewards = scored.rewards(direction, own, image_tokens)
    kinds = kinds_of(direction)
    found = {kind: rates(scored, rewards, [kind]) for kind in kinds}
    return Measured(
        ranking=rates(scored, rewards, kinds),
        skills={kind: e for kind, e in found.items() if e is not None},
        length=length_bias(scored, rewards) if direction == "i2t" else None,
    )


def knowledge(scored: Scored) -> dict[str, Mapping[str, Estimate]]:
    """Estimate how often each direction finds the right caption likelier than a changed one.

    Reading: the caption given the picture. Drawing: the picture given the caption.
    """
    likelihoods = {"reading": scored.reading, "drawing": scored.drawing}
    return {
        name: {k: e for k in kinds_of("i2t") if (e := rates(scored, values, [k])) is not None}
        for name, values in likelihoods.items()
    }
