"""The audit: measures a model's self-reward on each source of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from viceversa.audit import measures
from viceversa.audit.groups import Judge, caption_tokens
from viceversa.audit.measures import (
    ACCURACY,
    GAIN,
    LENGTH,
    MIXED,
    MORE,
    RANKING,
    SPREAD,
    Figures,
    Sources,
    told,
)
from viceversa.audit.pairs import corrupt, of_pairs, score
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import caption
from viceversa.scenes.rewards import verifier
from viceversa.scenes.spec import KINDS, Spec, draw_specs
from viceversa.types import DIRECTIONS, Direction, Example, opposite

#: N of best-of-N, as far as the group goes.
BEST_OF = (1, 2, 4, 8)


def audit(
    judge: Judge,
    pairs: tuple[Sequence[str], Tensor] | None = None,
    prompts: Sequence[str] = (),
    pictures: Sequence[Tensor] = (),
    scenes: int = 64,
) -> Sources:
    """Measure a model's self-reward on captions with their pictures, and on unpaired inputs.

    Pictures are uint8 [3, H, W], those of `pairs` [N, 3, H, W]. Where nothing is given, on so many
    `scenes` of the built-in world.
    """
    sources: dict[str, dict[Direction, Figures]] = {}
    if pairs is not None:
        scored = score(judge.adapter, corrupt(*pairs, judge.seed))
        sources["pairs"] = {
            d: of_pairs(scored, d, judge.reward.own(d), judge.adapter.image_tokens)
            for d in DIRECTIONS
        }
    unpaired: dict[Direction, list[Example]] = {
        "t2i": [Example(i, "t2i", text=text) for i, text in enumerate(prompts)],
        "i2t": [Example(i, "i2t", pixels=pixels) for i, pixels in enumerate(pictures)],
    }
    if any(unpaired.values()):
        sources["unpaired"] = {d: of_unpaired(judge, some) for d, some in unpaired.items() if some}
    return sources or {"scenes": of_scenes(judge, scenes_of(scenes, judge.seed))}


def scenes_of(inputs: int, seed: int) -> list[Spec]:
    """Draw specs to audit on, of all kinds in turn; those of evaluation are others."""
    return draw_specs(f"audit/{seed}", -(-inputs // len(KINDS)), "tune")[:inputs]


def of_scenes(judge: Judge, specs: Sequence[Spec]) -> dict[Direction, Figures]:
    """Sample and verify both directions on the same specs of the built-in world, and measure."""
    kinds = [s.kind for s in specs]
    names = {"t2i": [caption(s) for s in specs], "i2t": [s.key() for s in specs]}
    sampled = {d: judge.sample(examples_of(d, specs)) for d in DIRECTIONS}
    right = {d: verifier(sampled[d]).bool().numpy() for d in DIRECTIONS}
    found: dict[Direction, Figures] = {}
    for d in DIRECTIONS:
        rewards = judge.rate(sampled[d])
        found[d] = of_labelled(rewards, right[d], right[opposite(d)], kinds, names[d])
        if d == "i2t":
            length = measures.length_within(rewards, caption_tokens(sampled[d]), names[d])
            found[d] |= told({LENGTH: length})
    return found


def of_labelled(
    rewards: np.ndarray,
    right: np.ndarray,
    judged: np.ndarray,
    kinds: Sequence[str],
    names: Sequence[str],
) -> Figures:
    """Measure a direction whose outputs are verified.

    Rewards and whether an output is right, [P, G]; `judged` is whether the other direction's
    outputs are, which judges this one. `kinds` and `names` are of the P inputs.
    """
    name = np.array(names)
    sizes = [n for n in BEST_OF if n <= right.shape[1]]
    best = {n: measures.best_of(rewards, right, n) for n in sizes}
    more = judged.mean(1) - right.mean(1)
    found = {
        RANKING: measures.ranking(rewards, right, name),
        MIXED: measures.mixed(right, name),
        **{f"best of {n} is right": measures.mean(shares, name) for n, shares in best.items()},
        GAIN: measures.mean(best[sizes[-1]] - best[1], name),
    }
    for kind in dict.fromkeys(kinds):
        of = np.flatnonzero(np.array(kinds) == kind)
        found[f"{RANKING}/{kind}"] = measures.ranking(rewards[of], right[of], name[of])
        found[f"{ACCURACY}/{kind}"] = measures.mean(right[of].mean(1), name[of], share=True)
        found[f"{MORE}/{kind}"] = measures.mean(more[of])
    return told(found)


def of_unpaired(judge: Judge, examples: Sequence[Example]) -> Figures:
    """Measure a direction on inputs without labels: spread within groups against noise."""
    sampled = judge.sample(examples)
    rewards = judge.rate(sampled)
    noise = judge.phrasing_noise(sampled, rewards)
    spread = measures.spread_over_noise(rewards, noise)
    length = None
    if sampled.direction == "i2t":
        length = measures.length_within(rewards, caption_tokens(sampled))
    return told({SPREAD: spread, LENGTH: length})
