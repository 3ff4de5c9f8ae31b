"""Engines read one more token in every row and predict the next; all give one result.

`Plain`, here, is the model's own forward. `Graphed` (graphs.py) replays a token as one CUDA graph.
`Fused` (fused.py) is for a Llama on the CPU. All hold a prompt once for its rows (shared.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from viceversa.inference.reading import positions
from viceversa.inference.shared import Index, SharedCache, shared_attention
from viceversa.models.base import Adapter


@dataclass(frozen=True)
class Prompts:
    """The prompts that an engine reads first."""

    embeds: Tensor
    """[P, L, D]."""
    mask: Tensor
    """[P, L] bool, False on padding at the left."""
    of: Sequence[int]
    """Prompt of each row, [B]."""
    capacity: int
    """Tokens that may follow a prompt."""


class Plain:
    """The model's own forward, with an attention that reads a prompt once for all of its rows."""

    def __init__(self, adapter: Adapter, prompts: Prompts, stride: int = 1):
        self.adapter, self.stride, self.capacity = adapter, stride, prompts.capacity
        self.length = 0
        """Tokens that each row has read after its prompt."""
        self.cache = SharedCache(adapter.layers)
        padded = not bool(prompts.mask.all())
        hidden = adapter.backbone(
            prompts.embeds,
            prompts.mask if padded else None,
            positions(prompts.mask),
            self.cache,
        )[:, -1]
        self.cache.begin(prompts.of, prompts.capacity)
        rows = torch.tensor(prompts.of, device=hidden.device)
        self.hidden = hidden[rows]
        """[B, D] hidden states that predict the next tokens."""
        self.position = prompts.mask.sum(-1)[rows].unsqueeze(1)
        """[B, 1], of the next token."""
        self.padding = ~prompts.mask[rows] if padded or stride > 1 else None
        """[B, L]; None where attention reaches all that there is."""

    def read(self, embeds: Tensor) -> None:
        """Read the same few tokens in each row, [B, N, D]."""
        for token in embeds.split(1, dim=1):
            seen = self.seen(self.length)
            self.cache.at(self._place(), seen)
            self.hidden.copy_(self._forward(token, self._hides(seen)))
            self.position += 1
            self.length += 1

    def seen(self, length: int) -> int:
        """Count the written places that attention reaches: whole strides of them."""
        return min(self.stride * (length // self.stride + 1), self.capacity)

    def _place(self) -> Index:
        return slice(self.length, self.length + 1)

    def _hides(self, seen: int) -> Tensor | None:
        """Tell which places attention must not reach, [B, 1, 1, L + seen]."""
        if self.padding is None:
            return None
        own = torch.arange(seen, device=self.padding.device) > self._last()
        return torch.cat([self.padding, own.expand(len(self.padding), -1)], dim=1)[:, None, None]

    def _last(self) -> Tensor | int:
        return self.length

    def _forward(self, token: Tensor, hides: Tensor | None) -> Tensor:
        """Read one token in each row, [B, 1, D] -> [B, D]."""
        with shared_attention(self.adapter.text_model):
            return self.adapter.backbone(
                token, hides, self.position, self.cache, shared=self.cache
            )[:, -1]

    def repeat(self, work: Callable[[int], None], t: int, tokens: int) -> None:
        """Do work(t), which reads `tokens` tokens."""
        work(t)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.keep(rows)
        self.hidden, self.position = self.hidden[rows], self.position[rows]
        self.padding = None if self.padding is None else self.padding[rows]
