"""How a prompt and what was written after it go through the backbone: apart, shared, or packed.

A group's prompt is read once. Which of two ways is taken, shapes alone decide (`packs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper
from transformers import DynamicCache

from viceversa.inference.sharding import is_sharded
from viceversa.models.base import Adapter


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token among the unpadded ones, [B, L]."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Written:
    """Embedded tokens of R rows, each written after one of P prompts."""

    embeds: Tensor
    """[R, S, D]."""
    mask: Tensor
    """[R, S] bool, False on the padding at the right."""
    of: Tensor
    """[R] int64: the prompt of each row, ascending."""
    even: bool
    """Whether every prompt has as many rows."""


def read(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Hidden states from the last prompt token on, [R, 1 + S, D].

    embeds [P, L, D], mask [P, L] bool, False on the padding at the left.
    """
    (prompts, length), (rows, tokens) = mask.shape, written.mask.shape
    if tokens and rows > prompts and packs(adapter, prompts, length, rows, tokens):
        return packed(adapter, embeds, mask, written)
    if not tokens or rows == prompts or takes_one_pass(adapter.model):
        return apart(adapter, embeds, mask, written)
    return shared(adapter, embeds, mask, written)


def packs(adapter: Adapter, prompts: int, length: int, rows: int, tokens: int) -> bool:
    """Tell whether a group's rows are read in one sequence, each row blind to the others.

    Where that makes no more attention scores than rows apart would: for short texts after a
    picture, not for pictures after a short text. It needs an attention that takes any mask.
    """
    together = length + tokens * rows / prompts
    fewer = prompts * together**2 <= rows * (length + tokens) ** 2
    return fewer and adapter.text_model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def takes_one_pass(model: Any) -> bool:
    """Tell whether gradients want one pass through the layers: no cache can be shared then.

    - Where the backward pass runs layers again: transformers' own flag drops the keys and values of
      such a layer; accelerate's wrapper, which it puts around layers for FSDP, would append them to
      the cache twice.
    - Where layers are sharded: each pass gathers them, and a process whose rows are all alike would
      make fewer passes than the others, which would wait for ever.
    """
    if not torch.is_grad_enabled():
        return False
    wrapped = any(isinstance(m, CheckpointWrapper) for m in model.modules())
    return is_sharded(model) or (model.training and (wrapped or model.is_activation_checkpointing))


def apart(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Read every row by itself, its prompt again with it."""
    length, padded = mask.shape[1], not bool(mask.all())
    whole = torch.cat([mask[written.of], written.mask], dim=1)
    tokens = torch.cat([embeds[written.of], written.embeds], dim=1)
    return adapter.backbone(tokens, whole if padded else None, positions(whole))[:, length - 1 :]


def shared(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Read a prompt once, and repeat its keys and values for each of its rows."""
    length, padded = mask.shape[1], not bool(mask.all())
    whole = torch.cat([mask[written.of], written.mask], dim=1)
    cache = DynamicCache()
    last = adapter.backbone(embeds, mask if padded else None, positions(mask), cache)[:, -1:]
    cache.batch_select_indices(written.of)
    hidden = adapter.backbone(
        written.embeds, whole if padded else None, positions(whole)[:, length:], cache
    )
    return torch.cat([last[written.of], hidden], dim=1)


def packed(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Read a prompt and all of its rows in one sequence: no key is copied, no cache kept.

    A row's tokens stand without gaps behind those of the row before. Each sees the prompt and its
    own row, at the positions that it would have alone.
    """
    (prompts, length), of = mask.shape, written.of.unsqueeze(1).expand_as(written.mask)
    place = length + _places(written, prompts)
    counted = written.mask
    whole = bool(counted.all()) and written.even
    width = length + counted.numel() // prompts if whole else int(place.max()) + 1
    at = of[counted], place[counted]

    def joined(of_prompts: Tensor, of_written: Tensor) -> Tensor:
        shape = (prompts, width - length, *of_prompts.shape[2:])
        joined = torch.cat([of_prompts, of_prompts.new_zeros(shape)], dim=1)
        return joined.index_put(at, of_written[counted].to(joined.dtype))

    rows = torch.arange(len(of), device=of.device).unsqueeze(1).expand_as(of)
    row = joined(mask.long() - 1, rows + 1)  # 0: the prompt; below: padding at its left
    steps = positions(mask)
    own = steps[:, -1:][written.of] + 1 + torch.arange(of.shape[1], device=of.device)
    hidden = adapter.backbone(joined(embeds, written.embeds), _sees(row), joined(steps, own))
    last = hidden[:, length - 1 : length][written.of]
    return torch.cat([last, hidden[of, place]], dim=1)


def _places(written: Written, prompts: int) -> Tensor:
    """Find places of tokens among those after the same prompt, [R, S]; padding takes none.

    That of padding is one in the sequence, but means nothing.
    """
    counts = written.mask.sum(-1)
    ends = counts.cumsum(0)
    of_prompt = counts.new_zeros(prompts).index_add(0, written.of, counts)
    start = (of_prompt.cumsum(0) - of_prompt)[written.of]
    within = (written.mask.long().cumsum(-1) - 1).clamp_min(0)
    return (ends - counts - start).unsqueeze(1) + within


def _sees(row: Tensor) -> Tensor:
    """Let tokens see the prompt (0) and their row up to themselves, [P, W] -> [P, 1, W, W]."""
    same = (row.unsqueeze(1) == 0) | (row.unsqueeze(1) == row.unsqueeze(2))
    return same.tril().unsqueeze(1)
