"""Rollouts: a group of sampled outputs for each input, decoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.inference.logprobs import evaluating
from viceversa.inference.sampler import DrawKeys, Sampled, sample
from viceversa.models.base import Adapter
from viceversa.types import Completion, Example, PromptBatch, Rollout


def rollout(
    adapter: Adapter,
    examples: Sequence[Example],
    config: SamplingConfig,
    seed: int = 0,
    step: int = 0,
) -> Rollout:
    """Sample `config.group_size` outputs for each example; all examples share one direction.

    A row's random numbers depend on `seed`, `step`, its example's id and its place in the group.
    `config.batch_rows` bounds the rows decoded at once and never changes the result.
    """
    direction = examples[0].direction
    if any(e.direction != direction for e in examples):
        raise ValueError("one rollout holds one direction")
    prompts = input_prompts(adapter, examples, config.instruction)
    group = config.group_size
    per_batch = max(1, config.batch_rows // group)
    drawn = _sample_numbers(examples, group)
    parts: list[Sampled] = []
    with evaluating(adapter.model):
        for start in range(0, len(examples), per_batch):
            rows = drawn[start * group : (start + per_batch) * group]
            keys = DrawKeys(seed, step, rows)
            chosen = prompts.select(slice(start, start + per_batch))
            parts.append(sample(adapter, chosen, keys, config))
        completions = Completion(
            _concatenate([p.completions.completion_ids for p in parts]),
            _concatenate([p.completions.completion_mask for p in parts]),
        )
        image = direction == "t2i"
        return Rollout(
            direction,
            tuple(examples),
            group,
            prompts,
            completions,
            _concatenate([p.drawn_logprobs for p in parts]),
            texts=() if image else tuple(adapter.decode_texts(completions)),
            pixels=decode_images(adapter, completions.completion_ids) if image else None,
            truncated=None if image else torch.cat([p.truncated for p in parts]),
            step=step,
        )


def _sample_numbers(examples: Sequence[Example], group: int) -> tuple[tuple[int, int], ...]:
    """Return (example_id, sample) of each row: where an input comes again, the samples count on.

    Among the inputs of one process: it cannot see that another one has the same input, whose
    outputs then come out the same.
    """
    times: Counter[int] = Counter()
    found: list[tuple[int, int]] = []
    for example in examples:
        first = group * times[example.example_id]
        found += [(example.example_id, first + g) for g in range(group)]
        times[example.example_id] += 1
    return tuple(found)


def input_prompts(adapter: Adapter, examples: Sequence[Example], instruction: str) -> PromptBatch:
    """Template the examples: prompts to draw, or pictures with their question or instruction."""
    if examples[0].direction == "t2i":
        return adapter.prompts("t2i", [e.text or "" for e in examples])
    asked = [e.text or instruction or adapter.default_instruction for e in examples]
    if adapter.reads_image_ids:
        return adapter.prompts("i2t", asked, image_ids=input_image_ids(adapter, examples))
    pixels = torch.stack([e.pixels for e in examples if e.pixels is not None])
    return adapter.prompts("i2t", asked, pixels)


def input_image_ids(adapter: Adapter, examples: Sequence[Example]) -> Tensor:
    """Return the image ids of the examples' pictures, [P, N]: as known, or encoded now."""
    known = [e.image_ids for e in examples if e.image_ids is not None]
    if len(known) == len(examples):
        return torch.stack(known).to(adapter.device)
    pixels = torch.stack([e.pixels for e in examples if e.pixels is not None])
    return adapter.image_ids(pixels.to(adapter.device))


def decode_images(adapter: Adapter, image_ids: Tensor) -> Tensor | None:
    """Decode image ids [B, N] to uint8 [B, 3, H, W], a picture that comes twice once.

    None where the model has no decoder.
    """
    if not adapter.draws_pixels:
        return None
    different, which = image_ids.unique(dim=0, return_inverse=True)
    parts = different.split(adapter.pictures_at_once)
    return torch.cat([adapter.decode_images(ids) for ids in parts])[which]


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """Join [B_i, T_i] to [sum B_i, max T_i], padded at the right with 0 (False)."""
    length = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[1])) for p in parts])
