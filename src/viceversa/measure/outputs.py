"""What a model makes of held-out inputs, and how the model itself and the base judge it.

No label takes part. Every figure is one number an input, so that models are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from viceversa.config import Config, SamplingConfig
from viceversa.models.base import Adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.types import Direction, Example, Rollout

#: Inputs that are sampled and judged at once.
AT_ONCE = 8


@dataclass(frozen=True)
class Written:
    """Outputs of one model for held-out inputs of one direction, some inputs at a time."""

    parts: tuple[Rollout, ...]
    own: tuple[Tensor, ...]
    """[P, G] of each part: the dual reward by the model that wrote the outputs, nats a token."""


def decodings(adapter: Adapter, direction: Direction, config: Config) -> dict[str, SamplingConfig]:
    """Return how outputs are sampled: as in `training`, and in `use` where that differs.

    Pictures are drawn with the guidance of the model's own generation settings, captions take the
    likeliest words.
    """
    training = replace(config.sampling, group_size=config.eval.held_out_group)
    if direction == "i2t":
        greedy = replace(training, temperature=0.0, group_size=1, top_k=0, top_p=1.0)
        return {"training": training, "use": greedy}
    use = replace(training, temperature=1.0, guidance=adapter.own_guidance, top_k=0, top_p=1.0)
    return {"training": training} | ({"use": use} if use != training else {})


def write(
    adapter: Adapter,
    examples: Sequence[Example],
    sampling: SamplingConfig,
    seed: int,
    batch_rows: int = 256,
) -> Written:
    """Have the model write outputs, and read each of its own back, `batch_rows` at once."""
    parts = [rollout(adapter, part, sampling, seed) for part in in_parts(examples)]
    return Written(tuple(parts), judged(adapter, parts, sampling.instruction, batch_rows))


def in_parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """Split inputs into parts of AT_ONCE, the last one of fewer.

    None but a sole input is alone: how far outputs lie apart is measured within a part.
    """
    ends = [*range(0, len(examples), AT_ONCE), len(examples)]
    if len(ends) > 2 and ends[-1] - ends[-2] == 1:
        ends[-2] -= 1
    return [examples[start:end] for start, end in pairwise(ends)]


def judged(
    adapter: Adapter, parts: Sequence[Rollout], instruction: str, batch_rows: int = 256
) -> tuple[Tensor, ...]:
    """Return the dual reward of each output under this model, [P, G] nats a token a part.

    `batch_rows` are read at once; it never changes the result.
    """
    return tuple(dual_reward(adapter, p, instruction, batch_rows).float().cpu() for p in parts)


def measures(written: Written, by_base: Sequence[Tensor]) -> dict[str, list[float]]:
    """Return every measure, one number an input; `by_base` is the base's reward of each part."""
    found: dict[str, list[float]] = {}
    for part, own, rewards in zip(written.parts, written.own, by_base, strict=True):
        of_part = {"own_likelihood": own.mean(1), "base_likelihood": rewards.mean(1)}
        of_part["gap"] = of_part["own_likelihood"] - of_part["base_likelihood"]
        if part.group_size > 1:
            of_part["best_of_gain"] = rewards.amax(1) - rewards.mean(1)
            of_part["diversity"] = _diversity(part)
            of_part["entropy"] = _entropy(part)
        of_part["variety"] = _variety(part)
        if part.direction == "i2t":
            of_part |= _of_captions(part)
        for name, values in of_part.items():
            found.setdefault(name, []).extend(values.tolist())
    return found


def _entropy(part: Rollout) -> Tensor:
    """Estimate the entropy of a token from those drawn, [P] nats a token."""
    mask = part.completions.completion_mask
    sums = -(part.drawn_logprobs * mask).sum(-1).view(-1, part.group_size)
    return (sums.sum(1) / mask.sum(-1).view_as(sums).sum(1)).cpu()


def _diversity(part: Rollout) -> Tensor:
    """Return how far the outputs of a group lie apart, [P] from 0 to 1: over all pairs.

    Of pictures the share of image tokens that differ, of captions the share of pairs that differ.
    """
    pairs = part.group_size * (part.group_size - 1)
    return _apart(part).sum((1, 2)) / pairs


def _variety(part: Rollout) -> Tensor:
    """Return how far outputs of different inputs lie apart, [P] from 0 to 1, as `_diversity` does.

    Sharpening makes a group alike; a collapsed model writes the same whatever it is given.
    """
    inputs = len(part.examples)
    firsts = part.completions.select(slice(None, None, part.group_size))
    (apart,) = _apart(replace(part, completions=firsts, group_size=inputs))
    return apart.sum(1) / max(inputs - 1, 1)


def _apart(part: Rollout) -> Tensor:
    """Return how far any two outputs of a group lie apart, [P, G, G] from 0 to 1."""
    ids = part.completions.completion_ids.masked_fill(~part.completions.completion_mask, -1)
    groups = ids.view(-1, part.group_size, ids.shape[1])
    differ = groups.unsqueeze(1) != groups.unsqueeze(2)
    return (differ.float().mean(-1) if part.direction == "t2i" else differ.any(-1).float()).cpu()


def _of_captions(part: Rollout) -> dict[str, Tensor]:
    assert part.truncated is not None
    group = part.group_size
    starts = range(0, len(part.texts), group)
    grouped = [" ".join(part.texts[i : i + group]).split() for i in starts]
    return {
        "caption_tokens": part.completions.completion_mask.sum(-1).view(-1, group).float().mean(1),
        "never_stops": part.truncated.view(-1, group).float().mean(1),
        "distinct_words": torch.tensor([len(set(w)) / max(len(w), 1) for w in grouped]),
    }


def texts_and_pictures(written: Written) -> Iterator[tuple[Example, str, Tensor | None]]:
    """Yield each input with its first output: a caption, or the pixels of a picture."""
    for part in written.parts:
        for number, example in enumerate(part.examples):
            row = number * part.group_size
            if part.direction == "i2t":
                yield example, part.texts[row], None
            else:
                yield example, "", None if part.pixels is None else part.pixels[row]
