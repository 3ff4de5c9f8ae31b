"""What a model makes of held-out inputs, and how the model itself and the base judge it.

No label takes part. Every figure is one number an input, so that models are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

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
    own: tuple[float, ...]
    """Of each input, nats a token: its mean log-likelihood given an output, by the model that wrote
    the outputs."""


def decodings(adapter: Adapter, direction: Direction, config: Config) -> dict[str, SamplingConfig]:
    """Return how outputs are sampled: as in `training`, and in `use` where that differs.

    Pictures are drawn with the guidance of the model's own generation settings, captions take the
    likeliest words.
    """
    training = replace(config.sampling, group_size=config.eval.held_out_group)
    if direction == "i2t":
        greedy = replace(training, temperature=0.0, group_size=1, top_k=0, top_p=1.0)
        return {"training": training, "use": greedy}
    settings = getattr(adapter.model, "generation_config", None)
    guidance = float(getattr(settings, "guidance_scale", None) or 1.0)
    use = replace(training, temperature=1.0, guidance=guidance, top_k=0, top_p=1.0)
    return {"training": training} | ({"use": use} if use != training else {})


def write(
    adapter: Adapter, examples: Sequence[Example], sampling: SamplingConfig, seed: int
) -> Written:
    """Have the model write outputs, and read each of its own back."""
    parts = []
    for start in range(0, len(examples), AT_ONCE):
        parts.append(rollout(adapter, examples[start : start + AT_ONCE], sampling, seed))
    own = [judge_part(adapter, part, sampling.instruction).mean(1) for part in parts]
    return Written(tuple(parts), tuple(torch.cat(own).tolist()))


def judge_part(adapter: Adapter, part: Rollout, instruction: str) -> Tensor:
    """Return the dual reward of each output under this model, [P, G] nats a token."""
    return dual_reward(adapter, part, instruction).float().cpu()


def measures(written: Written, judge: Callable[[Rollout], Tensor]) -> dict[str, list[float]]:
    """Return every measure, one number an input; `judge` is the base's reward, [P, G]."""
    found: dict[str, list[float]] = {"own_likelihood": list(written.own)}
    for part in written.parts:
        rewards = judge(part)
        of_part = {"base_likelihood": rewards.mean(1)}
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
    ids = part.completions.completion_ids.masked_fill(~part.completions.completion_mask, -1)
    groups = ids.view(-1, part.group_size, ids.shape[1])
    apart = groups.unsqueeze(1) != groups.unsqueeze(2)
    share = apart.float().mean(-1) if part.direction == "t2i" else apart.any(-1).float()
    pairs = part.group_size * (part.group_size - 1)
    return (share.sum((1, 2)) / pairs).cpu()


def _variety(part: Rollout) -> Tensor:
    """Return how far outputs of different inputs lie apart, [P] from 0 to 1, as `_diversity` does.

    Sharpening makes a group alike; a collapsed model writes the same whatever it is given.
    """
    ids = part.completions.completion_ids.masked_fill(~part.completions.completion_mask, -1)
    first = ids[:: part.group_size]
    apart = first.unsqueeze(0) != first.unsqueeze(1)
    share = apart.float().mean(-1) if part.direction == "t2i" else apart.any(-1).float()
    return (share.sum(1) / max(len(first) - 1, 1)).cpu()


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
