"""Reading one more token in every row, the way to the next: three engines with one result.

`Plain` is the model's own forward over a preallocated cache. `Graphed` is the same in buffers that
never move, so that a GPU replays a token as one CUDA graph. `Fused`, for a small Llama on the CPU,
where the time goes into calls and memory more than arithmetic, reads the same weights with half the
operations, and holds a prompt once for the group that shares it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from viceversa.logprobs import positions
from viceversa.models.base import Adapter

#: Tokens that attention reaches over at a time in a graph: some are masked, so that graphs are few.
GRAPH_STRIDE = 128
#: Rows of a cache that are gathered at once.
REORDERED_ROWS = 16
#: Bytes of weights that `Fused` may copy.
FUSED_BYTES = 2**29
#: Layers whose arithmetic `Fused` knows, by the name of their class.
FUSED_LAYERS = ("LlamaDecoderLayer", "Emu3DecoderLayer")


class _Layer(CacheLayerMixin):
    """Keys and values in buffers of fixed capacity; attention sees only the filled part."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.capacity, width)
        self.values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

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
    """What an engine reads first. The rows that it decodes are consecutive groups of one prompt."""

    embeds: Tensor
    """[P, L, D]."""
    mask: Tensor
    """[P, L] bool, False on padding at the left."""
    prompt_of: Tensor
    """[S]: the prompt of each group."""
    group_size: int
    capacity: int
    """Tokens that may follow."""

    @cached_property
    def padded(self) -> bool:
        return not bool(self.mask.all())

    @cached_property
    def rows(self) -> Tensor:
        """[B]: the prompt of each row."""
        return self.prompt_of.repeat_interleave(self.group_size)

    def read(self, adapter: Adapter, cache: Cache) -> Tensor:
        """Into the cache, P rows; the hidden states that predict the next tokens, [B, D]."""
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
        """[B, D]: what predicts the next token."""
        self.cache.reorder(prompts.rows)
        self.mask = prompts.mask[prompts.rows]
        self.position = self.mask.sum(-1)

    def read(self, embeds: Tensor) -> None:
        """The same few tokens in each row, [B, N, D]."""
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

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self.cache.reorder(rows)
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]
        self.position = self.position[rows]


class _FixedLayer(CacheLayerMixin):
    """Keys and values written at the place a tensor names; attention sees the first `seen`."""

    def __init__(self, keys: Tensor, values: Tensor, place: Tensor):
        super().__init__()
        self.keys, self.values, self.place, self.seen = keys, values, place, 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.seen


class Graphed:
    """As `Plain`. Attention reaches over whole strides of the cache, masked; one graph a stride."""

    def __init__(self, adapter: Adapter, prompts: Prompts, stride: int = GRAPH_STRIDE):
        plain = Plain(adapter, prompts)
        embeds = prompts.embeds
        self.adapter, self.stride, self.length = adapter, stride, embeds.shape[1]
        self.place = torch.full((1,), self.length, device=embeds.device)
        cached: Any = plain.cache.layers
        self.layers = [_FixedLayer(x.keys, x.values, self.place) for x in cached]
        for layer in cached:  # a weight of zero times what was never written must be zero
            layer.keys[:, :, self.length :] = 0
            layer.values[:, :, self.length :] = 0
        self.position, self.hidden = plain.position.unsqueeze(1), plain.hidden
        self.open = F.pad(plain.mask, (0, prompts.capacity), value=True)  # [B, cache]: not padding
        self.embeds = embeds.new_empty(len(self.hidden), 1, embeds.shape[2])
        self.graphs: dict[int, Callable[[], None]] = {}

    def read(self, embeds: Tensor) -> None:
        for token in embeds.split(1, dim=1):
            self.embeds.copy_(token)
            seen = min(self.stride * (self.length // self.stride + 1), self.open.shape[1])
            if seen not in self.graphs:
                self.graphs[seen] = self._graph(seen)
            self.graphs[seen]()
            self.place += 1
            self.position += 1
            self.length += 1

    def _graph(self, seen: int) -> Callable[[], None]:
        """One token over the first `seen` places: to be called, and called again."""

        def one_token() -> None:
            for layer in self.layers:
                layer.seen = seen
            reached = torch.arange(seen, device=self.place.device) <= self.place
            mask = (self.open[:, :seen] & reached)[:, None, None]
            hidden = self.adapter.backbone(
                self.embeds, mask, self.position, Cache(layers=list(self.layers))
            )
            self.hidden.copy_(hidden[:, -1])

        if self.embeds.device.type != "cuda":
            return one_token
        waiting = torch.cuda.Stream()
        waiting.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(waiting):  # warm up, as capturing asks; twice the same is once
            one_token()
            one_token()
        torch.cuda.current_stream().wait_stream(waiting)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            one_token()
        return graph.replay

    def keep(self, rows: Tensor) -> None:
        for layer in self.layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.hidden, self.open = self.hidden[rows], self.open[rows]
        self.position, self.embeds = self.position[rows], self.embeds[rows]
        self.graphs.clear()  # they speak of the buffers that were


def engine_of(adapter: Adapter) -> Any:
    """The engine to decode with: the fastest that serves."""
    if adapter.device.type == "cuda":
        return Graphed
    return Fused if fusable(adapter) else Plain


def fusable(adapter: Adapter) -> bool:
    """Whether `Fused` can stand in for `Plain`, and is worth its copy of the weights."""
    model: Any = adapter.text_model
    layers = model.layers
    if adapter.device.type != "cpu" or type(layers[0]).__name__ not in FUSED_LAYERS:
        return False
    weights = list(layers.parameters())
    biased = any(isinstance(m, nn.Linear) and m.bias is not None for m in layers.modules())
    # in bfloat16 a LoRA added to its weight would be rounded off
    plain = model.config.hidden_act == "silu" and all(w.dtype == torch.float32 for w in weights)
    return plain and not biased and sum(w.nbytes for w in weights) <= FUSED_BYTES


class _FusedLayer:
    """The weights of one layer, those that read the same input side by side."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = torch.cat([_weight(attention.get_submodule(f"{x}_proj")) for x in "qkv"])
        self.out = _weight(attention.o_proj).T
        self.gate_up = torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)])
        self.down = _weight(mlp.down_proj).T
        self.before, self.after = layer.input_layernorm, layer.post_attention_layernorm
        self.scaling = attention.scaling
        self.prefix_keys = self.prefix_values = self.keys = self.values = torch.empty(0)


def _weight(linear: Any) -> Tensor:
    """With its LoRA, if it has one."""
    base = linear.base_layer.weight if hasattr(linear, "base_layer") else linear.weight
    for name in getattr(linear, "active_adapters", ()):
        base = base + linear.get_delta_weight(name)
    return base


def _norm(x: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


class Fused:
    """As `Plain`. Axes: S groups, K key heads, G rows of a group, R query heads of a key head."""

    def __init__(self, adapter: Adapter, prompts: Prompts):
        model: Any = adapter.text_model
        self.model, self.layers = model, [_FusedLayer(layer) for layer in model.layers]
        cache = DynamicCache()
        self.hidden = prompts.read(adapter, cache)
        of, embeds, capacity = prompts.prompt_of, prompts.embeds, prompts.capacity
        self.length, self.shape = 0, (len(of), prompts.group_size)
        self.hides = ~prompts.mask[of][:, None, None] if prompts.padded else None
        """[S, 1, 1, L], True on padding."""
        kept: Any = cache.layers
        for mine, theirs in zip(self.layers, kept, strict=True):
            mine.prefix_keys, mine.prefix_values = theirs.keys[of], theirs.values[of]
            heads, width = theirs.keys.shape[1], theirs.keys.shape[3]
            room = (len(of), heads, prompts.group_size, capacity, width)
            mine.keys, mine.values = theirs.keys.new_empty(room), theirs.values.new_empty(room)
        self.position = prompts.mask.sum(-1)[prompts.rows]
        most = torch.arange(embeds.shape[1] + capacity, device=embeds.device).unsqueeze(0)
        cosine, sine = model.rotary_emb(embeds, most)
        half = sine.shape[-1] // 2
        self.cosine = cosine[0].unsqueeze(1)
        self.sine = torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1).unsqueeze(1)

    def read(self, embeds: Tensor) -> None:
        for token in embeds.unbind(1):
            x = token
            cosine, sine = self.cosine[self.position], self.sine[self.position]
            for layer in self.layers:
                x = self._attended(layer, x, cosine, sine)
                gate, up = F.linear(_norm(x, layer.after), layer.gate_up).chunk(2, dim=-1)
                x = torch.addmm(x, F.silu(gate) * up, layer.down)
            self.length += 1
            self.position = self.position + 1
        self.hidden = _norm(x, self.model.norm)

    def _attended(self, layer: _FusedLayer, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        groups, group = self.shape
        _, kv_heads, _, _, width = layer.keys.shape
        qkv = F.linear(_norm(x, layer.before), layer.qkv).view(len(x), -1, width)
        turning, value = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        turned = torch.addcmul(turning * cosine, turning.roll(width // 2, -1), sine)
        query, key = turned[:, :-kv_heads], turned[:, -kv_heads:]
        layer.keys[:, :, :, self.length] = key.view(groups, group, kv_heads, width).transpose(1, 2)
        layer.values[:, :, :, self.length] = value.view(groups, group, kv_heads, width).transpose(
            1, 2
        )
        query = query.reshape(groups, group, kv_heads, -1, width).transpose(1, 2) * layer.scaling
        weights = self._weights(layer, query)
        prefix = layer.prefix_values.shape[2]
        own = layer.values[:, :, :, : self.length + 1]
        out = torch.matmul(weights[..., prefix:], own)
        shared = weights[..., :prefix].flatten(2, 3)
        out += torch.matmul(shared, layer.prefix_values).view_as(out)
        return torch.addmm(x, out.transpose(1, 2).reshape(len(x), -1), layer.out)

    def _weights(self, layer: _FusedLayer, query: Tensor) -> Tensor:
        """[S, K, G, R, prompt and own tokens]."""
        shared = torch.matmul(query.flatten(2, 3), layer.prefix_keys.transpose(-1, -2))
        if self.hides is not None:
            shared = shared.masked_fill(self.hides, -torch.inf)
        own = torch.matmul(query, layer.keys[:, :, :, : self.length + 1].transpose(-1, -2))
        both = torch.cat([shared.view(*own.shape[:-1], -1), own], dim=-1)
        return both.softmax(-1, dtype=torch.float32).to(query.dtype)

    def keep(self, rows: Tensor) -> None:
        group = self.shape[1]
        of = rows // group
        for layer in self.layers:
            layer.prefix_keys = layer.prefix_keys[of]
            layer.prefix_values = layer.prefix_values[of]
            layer.keys = layer.keys.transpose(1, 2).flatten(0, 1)[rows].unsqueeze(2)
            layer.values = layer.values.transpose(1, 2).flatten(0, 1)[rows].unsqueeze(2)
        if self.hides is not None:
            self.hides = self.hides[of]
        self.shape = (len(rows), 1)
        self.hidden, self.position = self.hidden[rows], self.position[rows]
