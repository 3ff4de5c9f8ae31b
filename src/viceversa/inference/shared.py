"""Attention over a prompt that its rows share: its keys and values are held once.

Axes: P prompts, L tokens of a prompt, B rows, K key heads, R query heads of a key head, C tokens
that a row may write itself, D numbers of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin

from viceversa.models.base import autocast_dtype

#: Name of `_attend` among transformers' kinds of attention. No mask is registered under it, so the
#: model makes none and passes on the one that it gets.
SHARED = "viceversa_shared"
#: Keys from which a CPU multiplies a query faster as a column than as a row.
MANY_KEYS = 64

Index = slice | Tensor


def _index(places: Sequence[int], device: torch.device) -> Index:
    """Return a slice, whose tensors are views, where places count up one by one."""
    first = places[0]
    if list(places) == list(range(first, first + len(places))):
        return slice(first, first + len(places))
    return torch.tensor(places, device=device)


@dataclass(frozen=True)
class _Block:
    """Prompts with like numbers of rows: attention to them is one matrix product."""

    prompts: slice
    rows: Index
    """N * M rows: the last one again where a prompt has fewer than M."""
    shape: tuple[int, int]
    """(N, M)."""

    def add(self, total: Tensor, x: Tensor, shared: Tensor) -> None:
        """Add x [B, K, R, X] times [P, K, X, Y] to its rows of total [B, K, R, Y]."""
        heads = x.shape[2]
        x = x[self.rows].unflatten(0, self.shape).transpose(1, 2).flatten(2, 3)
        product = torch.matmul(x, shared[self.prompts])
        product = product.unflatten(2, (self.shape[1], heads)).transpose(1, 2)
        if isinstance(self.rows, slice):
            total[self.rows].unflatten(0, self.shape).add_(product)
        else:  # a row that comes again gets the same once more
            total[self.rows] += product.flatten(0, 1)


class Groups:
    """Tell which rows share a prompt; `of` is the prompt of each row.

    Prompts of unlike numbers of rows go to different blocks: less than half of a block is filler.
    """

    def __init__(self, of: Sequence[int], device: torch.device):
        rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(of):
            rows.setdefault(prompt, []).append(row)
        blocks: list[list[int]] = []
        for prompt in sorted(rows, key=lambda p: -len(rows[p])):
            if not blocks or 2 * len(rows[prompt]) < len(rows[blocks[-1][0]]):
                blocks.append([])
            blocks[-1].append(prompt)
        blocks = sorted(sorted(block, key=lambda p: rows[p]) for block in blocks)
        order = [prompt for block in blocks for prompt in block]
        self.prompts = _index(order, device)
        """The prompts that have rows, block by block."""
        self.of = [order.index(prompt) for prompt in of]
        """Place of each row's prompt among them."""
        self.blocks: list[_Block] = []
        for block in blocks:
            most, first = max(len(rows[p]) for p in block), order.index(block[0])
            filled = [r for p in block for r in rows[p] + rows[p][-1:] * (most - len(rows[p]))]
            prompts = slice(first, first + len(block))
            self.blocks.append(_Block(prompts, _index(filled, device), (len(block), most)))

    def add(self, total: Tensor, x: Tensor, shared: Tensor) -> None:
        """Add to total [B, K, R, Y] each row of x [B, K, R, X] times its prompt's [P, K, X, Y]."""
        for block in self.blocks:
            block.add(total, x, shared)


class SharedLayer(CacheLayerMixin):
    """Keys and values of the prompts, [P, K, L, D], then those that rows write, [B, K, C, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_keys = self.prompt_values = torch.empty(0)
        self.place: Index = slice(0)
        """Where the next token is written."""
        self.seen = 0
        """Written places that attention reaches; 0 while prompts are read."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None:
            self.prompt_keys, self.prompt_values = _kept(key_states), _kept(value_states)
            return key_states, value_states
        self.keys[:, :, self.place] = key_states.to(self.keys.dtype)
        self.values[:, :, self.place] = value_states.to(self.values.dtype)
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def begin(self, rows: int, capacity: int) -> None:
        """Make room for what rows write: zeros, which a weight of zero leaves zero."""
        _, heads, _, width = self.prompt_keys.shape
        self.keys = self.prompt_keys.new_zeros(rows, heads, capacity, width)
        self.values = self.prompt_values.new_zeros(rows, heads, capacity, width)
        self.is_initialized = True

    def keep(self, prompts: Index, rows: Tensor) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]
        # copies: a view would hold the prompts that go
        self.prompt_keys = self.prompt_keys[prompts].clone()
        self.prompt_values = self.prompt_values[prompts].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen or query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1 if self.keys is None else self.keys.shape[2]


def _kept(states: Tensor) -> Tensor:
    """Copy to the layout of a matrix product and, under autocast, to the type that it reads.

    In another type, all that is kept would be rounded again at every token.
    """
    dtype = autocast_dtype(states.device.type) or states.dtype
    return states.to(dtype).contiguous()


class SharedCache(Cache):
    """A KV cache that holds a prompt once, however many rows go on from it."""

    layers: list[SharedLayer]  # type: ignore[assignment]
    groups: Groups

    def __init__(self, layers: int):
        super().__init__(layers=[SharedLayer() for _ in range(layers)])

    @property
    def written_bytes(self) -> int:
        """Bytes of the room for what rows write."""
        kept = [x for layer in self.layers for x in (layer.keys, layer.values)]
        return sum(x.nbytes for x in kept if x is not None)

    def begin(self, of: Sequence[int], capacity: int) -> None:
        """Go on from the prompts that were read: `of` is each row's, `capacity` its tokens."""
        self.groups = Groups(of, self.layers[0].prompt_keys.device)
        for layer in self.layers:
            layer.begin(len(of), capacity)
            layer.prompt_keys = layer.prompt_keys[self.groups.prompts]
            layer.prompt_values = layer.prompt_values[self.groups.prompts]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone; a prompt that has none left goes."""
        of = [self.groups.of[row] for row in rows.tolist()]
        self.groups = Groups(of, rows.device)
        for layer in self.layers:
            layer.keep(self.groups.prompts, rows)

    def at(self, place: Index, seen: int) -> None:
        """Write the next token at `place`; attention reaches the first `seen`."""
        for layer in self.layers:
            layer.place, layer.seen = place, seen

    def attended(
        self, layer: int, query: Tensor, keys: Tensor, values: Tensor, hides: Tensor | None
    ) -> Tensor:
        """Attend from one token a row, query [B, K, R, D] times the scale -> [B, K, R, D].

        keys, values [B, K, seen, D]: the rows' own. hides [B, 1, 1, L + seen] bool: not to be
        attended to; None: nothing.
        """
        kept = self.layers[layer]
        length = kept.prompt_keys.shape[2]
        scores = query.new_zeros(*query.shape[:3], length + keys.shape[2])
        self.groups.add(scores[..., :length], query, kept.prompt_keys.mT)
        scores[..., length:] = _products(query, keys)
        if hides is not None:
            scores.masked_fill_(hides, -torch.inf)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        out = torch.matmul(weights[..., length:], values)
        self.groups.add(out, weights[..., :length], kept.prompt_values)
        return out


def _products(query: Tensor, keys: Tensor) -> Tensor:
    """Multiply queries [B, K, R, D] with keys [B, K, C, D] -> [B, K, R, C]."""
    if query.device.type != "cpu" or keys.shape[2] < MANY_KEYS:
        return torch.matmul(query, keys.mT)
    # contiguous first: a column of stride 1 takes 2.7 times as long as this one (288 keys)
    return torch.matmul(keys, query.contiguous().mT).mT


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    shared: SharedCache,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers asks of a kind of attention: [B, K * R, 1, D] -> [B, 1, K * R, D]."""
    rows, heads, _, width = query.shape
    grouped = (query * scaling).to(key.dtype).reshape(rows, key.shape[1], -1, width)
    out = shared.attended(module.layer_idx, grouped, key, value, attention_mask)
    return out.reshape(rows, 1, heads, width), None


AttentionInterface.register(SHARED, _attend)


@contextmanager
def shared_attention(text_model: Any) -> Iterator[None]:
    """Have the model attend by `_attend`, which takes the cache as the argument `shared`."""
    config = text_model.config
    before = config._attn_implementation
    config._attn_implementation = {"": SHARED}  # not that of the configs inside
    try:
        yield
    finally:
        config._attn_implementation = {"": before}
