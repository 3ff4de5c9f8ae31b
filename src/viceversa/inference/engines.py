"""Engines read one more token in every row and predict the next; all give one result.

`Plain`, here, is the model's own forward over a preallocated cache. `Graphed` (graphs.py) replays a
token as one CUDA graph. `Fused` (fused.py) is for a small Llama on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from viceversa.inference.reading import positions
from viceversa.models.base import Adapter, autocast_dtype

#: Rows of a cache that are gathered at once.
REORDERED_ROWS = 16


class _Layer(CacheLayerMixin):
    """Keys and values in buffers of fixed capacity; attention sees only the filled part."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: Tensor) -> Tensor:
        """Allocate room for `states` [B, H, N, D] and those to come, in attention's dtype.

        In another, autocast would round all that is kept at every token.
        """
        batch, heads, _, width = states.shape
        dtype = autocast_dtype(states.device.type) or states.dtype
        return states.new_empty(batch, heads, self.capacity, width, dtype=dtype)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder(self, rows: Tensor) -> None:
        assert self.keys is not None and self.values is not None
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        self.keys = keys.new_empty(len(rows), *self.keys.shape[1:])
        self.values = values.new_empty(len(rows), *self.values.shape[1:])
        for start in range(0, len(rows), REORDERED_ROWS):  # the copies on the way stay small
            some = slice(start, start + REORDERED_ROWS)
            self.keys[some, :, : self.length] = keys[rows[some]]
            self.values[some, :, : self.length] = values[rows[some]]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class PreallocatedCache(Cache):
    """A KV cache that never copies what it holds, except to reorder its rows."""

    def __init__(self, layers: int, capacity: int):
        super().__init__(layers=[_Layer(capacity) for _ in range(layers)])

    def reorder(self, rows: Tensor) -> None:
        """Keep, drop or repeat rows of the batch."""
        for layer in self.layers:
            layer.reorder(rows)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Prompts:
    """The prompts that an engine reads first; its rows are consecutive groups of one prompt."""

    embeds: Tensor
    """[P, L, D]."""
    mask: Tensor
    """[P, L] bool, False on padding at the left."""
    prompt_of: Tensor
    """[S] index of each group's prompt."""
    group_size: int
    capacity: int
    """Tokens that may follow a prompt."""

    @cached_property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @cached_property
    def rows(self) -> Tensor:
        """Index of each row's prompt, [B]."""
        return self.prompt_of.repeat_interleave(self.group_size)

    def read(self, adapter: Adapter, cache: Cache) -> Tensor:
        """Read the P prompts into the cache; return what predicts the next tokens, [B, D]."""
        mask = self.mask if self.padded else None
        hidden = adapter.backbone(self.embeds, mask, positions(self.mask), cache)
        return hidden[self.rows, -1]


class Plain:
    """The model's own forward."""

    def __init__(self, adapter: Adapter, prompts: Prompts):
        self.adapter, self.padded = adapter, prompts.padded
        whole = prompts.embeds.shape[1] + prompts.capacity
        self.cache = PreallocatedCache(adapter.layers, whole)
        self.hidden = prompts.read(adapter, self.cache)
        """[B, D] hidden states that predict the next tokens."""
        self.cache.reorder(prompts.rows)
        self.mask = prompts.mask[prompts.rows]
        self.position = self.mask.sum(-1)

    def read(self, embeds: Tensor) -> None:
        """Read the same few tokens in each row, [B, N, D]."""
        n = embeds.shape[1]
        if self.padded:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), n)], dim=1)
        self.hidden = self.adapter.backbone(
            embeds,
            self.mask if self.padded else None,
            self.position.unsqueeze(1) + torch.arange(n, device=embeds.device),
            self.cache,
        )[:, -1]
        self.position = self.position + n

    def repeat(self, work: Callable[[int], None], t: int, tokens: int) -> None:
        """Do work(t), which reads `tokens` tokens."""
        work(t)

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.reorder(rows)
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]
        self.position = self.position[rows]
