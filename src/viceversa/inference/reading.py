"""How a prompt and what was written after it go through the backbone: packed, branched, or apart.

A group's prompt is read once, in one pass through the layers: so it is under activation
checkpointing too, which keeps no cache, and processes that share layers make as many passes.
Which of two ways is taken, shapes alone decide (`packs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from viceversa.models.base import Adapter

#: Name of `_attend` among transformers' kinds of attention: "sdpa", and in branches where asked.
BRANCHES = "viceversa_branches"


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
    kind = adapter.text_model.config._attn_implementation  # type: ignore[union-attr]
    takes_any_mask = kind in ("sdpa", BRANCHES)
    if not tokens or rows == prompts or not takes_any_mask:
        return apart(adapter, embeds, mask, written)
    if packs(prompts, length, rows, tokens):
        return packed(adapter, embeds, mask, written)
    return branched(adapter, embeds, mask, written)


def packs(prompts: int, length: int, rows: int, tokens: int) -> bool:
    """Tell whether a group's rows are read in one sequence, each row blind to the others.

    Where that makes no more attention scores than rows apart would: for short texts after a
    picture, not for pictures after a short text.
    """
    together = length + tokens * rows / prompts
    return prompts * together**2 <= rows * (length + tokens) ** 2


def apart(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Read every row by itself, its prompt again with it."""
    length, padded = mask.shape[1], not bool(mask.all())
    whole = torch.cat([mask[written.of], written.mask], dim=1)
    tokens = torch.cat([embeds[written.of], written.embeds], dim=1)
    return adapter.backbone(tokens, whole if padded else None, positions(whole))[:, length - 1 :]


def branched(adapter: Adapter, embeds: Tensor, mask: Tensor, written: Written) -> Tensor:
    """Read prompts and rows one behind the other, and let attention tell them apart.

    A row sees its prompt's keys and values, of which `_attend` makes it a copy, and its own.
    Raises TypeError where the model's attention is not transformers'.
    """
    config: Any = adapter.text_model.config
    config._attn_implementation = {"": BRANCHES}  # for good: a backward pass may run layers again
    branches, steps = Branches(mask, written), positions(mask)
    hidden = adapter.backbone(
        branches.joined(embeds, written.embeds.to(embeds.dtype)),
        mask.new_ones(1, 1, 1, 1),  # one of four axes is passed on as it is, and not read
        branches.joined(steps, _positions_after(steps, written)),
        branches=branches,
    )
    if not branches.taken:
        raise TypeError(
            f"the layers of {type(adapter.text_model).__name__} do not pass `branches` on: they "
            "must get attention by transformers' AttentionInterface, and hand it keyword arguments"
        )
    prompts, rows = branches.cut(hidden)
    return torch.cat([prompts[:, -1:][written.of], rows], dim=1)


class Branches:
    """P prompts of L tokens and R rows of S tokens, which one sequence holds one by one."""

    def __init__(self, mask: Tensor, written: Written):
        tokens, length = written.mask.shape[1], mask.shape[1]
        self.of = written.of
        self.shapes = mask.shape, written.mask.shape
        self.taken = False
        """Whether attention was cut."""
        ones = mask.new_ones(max(length, tokens), max(length, tokens)).tril()
        seen = mask[:, None, None]
        row_seen = seen[self.of]
        if bool(mask.all()):  # without padding all see alike
            seen, row_seen = seen[:1], row_seen[:1]
        itself = torch.eye(length, dtype=torch.bool, device=mask.device)
        #: [P or 1, 1, L, L]; padding sees itself, for one that sees nothing has no attention
        self.prompt_sees = seen & ones[:length, :length] | itself
        own = ones[:tokens, :tokens].expand(len(row_seen), 1, -1, -1)
        #: [R or 1, 1, S, L + S]
        self.row_sees = torch.cat([row_seen.expand(-1, -1, tokens, -1), own], dim=-1)

    def joined(self, prompts: Tensor, rows: Tensor) -> Tensor:
        """Put [P, L, ...] and [R, S, ...] into one sequence, [1, P * L + R * S, ...]."""
        return torch.cat([prompts.flatten(0, 1), rows.flatten(0, 1)]).unsqueeze(0)

    def cut(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `joined`."""
        (prompts, length), (rows, tokens) = self.shapes
        first, second = sequence[0].split([prompts * length, rows * tokens])
        return first.unflatten(0, (prompts, length)), second.unflatten(0, (rows, tokens))

    def cut_heads(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """Cut [1, H, T, D] -> [P, H, L, D] and [R, H, S, D].

        Those of prompts are copied: a view would keep all of the sequence for the backward pass.
        """
        prompts, rows = self.cut(sequence.transpose(1, 2))
        return prompts.clone().transpose(1, 2), rows.transpose(1, 2)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    branches: Branches | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks of a kind of attention: [B, H, T, D] -> [B, T, H, D]."""
    if branches is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    branches.taken = True
    (q, row_q), (k, row_k), (v, row_v) = (branches.cut_heads(x) for x in (query, key, value))
    of_prompts, _ = sdpa_attention_forward(module, q, k, v, branches.prompt_sees, **more)
    keys, values = (
        torch.cat([p.index_select(0, branches.of), r], 2) for p, r in ((k, row_k), (v, row_v))
    )
    of_rows, _ = sdpa_attention_forward(module, row_q, keys, values, branches.row_sees, **more)
    return branches.joined(of_prompts, of_rows), None


AttentionInterface.register(BRANCHES, _attend)
AttentionMaskInterface.register(BRANCHES, sdpa_mask)


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
    after = _positions_after(steps, written)
    hidden = adapter.backbone(joined(embeds, written.embeds), _sees(row), joined(steps, after))
    last = hidden[:, length - 1 : length][written.of]
    return torch.cat([last, hidden[of, place]], dim=1)


def _positions_after(steps: Tensor, written: Written) -> Tensor:
    """Count on from the prompts' positions [P, L], [R, S]."""
    own = torch.arange(written.mask.shape[1], device=steps.device)
    return steps[:, -1:][written.of] + 1 + own


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
