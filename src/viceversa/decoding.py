"""Reading one more token in every row, the way to the next: three engines with one result.

`Plain` is the model's own forward over a preallocated cache. `Graphed` is the same in buffers that
never move, so that a GPU replays a token as one CUDA graph. `Fused`, for a small Llama on the CPU,
where the time goes into calls and memory more than arithmetic, reads the same weights with half the
operations, and holds a prompt once for the group that shares it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from viceversa.logprobs import positions
from viceversa.models.base import Adapter, autocast_dtype

Work = Callable[[Tensor], None]
"""All that is done for the t-th token, of one that is on the device."""
Replay = Callable[[], None]

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
        self.keys, self.values = self._buffer(key_states), self._buffer(value_states)
        self.is_initialized = True

    def _buffer(self, states: Tensor) -> Tensor:
        """For `states` [B, H, N, D] and those to come, in the dtype that attention reads them in.

        Autocast would round all that was kept to its own at every token.
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

    def repeat(self, work: Callable[[int], None], t: int, tokens: int) -> None:
        """work(t), which reads `tokens` tokens."""
        work(t)

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
        self.keys.index_copy_(2, self.place, key_states.to(self.keys.dtype))
        self.values.index_copy_(2, self.place, value_states.to(self.values.dtype))
        return self.keys[:, :, : self.seen], self.values[:, :, : self.seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return self.seen


class Graphed:
    """As `Plain`. Attention reaches over whole strides of the cache, masked; one graph a stride,
    of all that is done for a token."""

    def __init__(self, adapter: Adapter, prompts: Prompts, stride: int = GRAPH_STRIDE):
        plain = Plain(adapter, prompts)
        embeds = prompts.embeds
        self.adapter, self.stride, self.length = adapter, stride, embeds.shape[1]
        self.place = torch.full((1,), self.length, device=embeds.device)
        self.t = torch.zeros_like(self.place)
        cached: Any = plain.cache.layers
        self.layers = [_FixedLayer(x.keys, x.values, self.place) for x in cached]
        for layer in cached:  # a weight of zero times what was never written must be zero
            layer.keys[:, :, self.length :] = 0
            layer.values[:, :, self.length :] = 0
        self.position, self.hidden = plain.position.unsqueeze(1), plain.hidden
        self.open = F.pad(plain.mask, (0, prompts.capacity), value=True)  # [B, cache]: not padding
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """Begin anew: they speak of the buffers that were."""
        self.warm: set[tuple[int, ...]] = set()
        self.graphs: dict[tuple[int, ...], Replay | None] = {}
        self.capture = self._new_capture()

    def _new_capture(self) -> Callable[[Work, Tensor], Replay | None]:
        return _Capture() if self.place.device.type == "cuda" else _uncaptured

    def read(self, embeds: Tensor) -> None:
        for token in embeds.split(1, dim=1):
            seen = self._seen(self.length)
            for layer in self.layers:
                layer.seen = seen
            reached = torch.arange(seen, device=self.place.device) <= self.place
            mask = (self.open[:, :seen] & reached)[:, None, None]
            cache = Cache(layers=list(self.layers))
            self.hidden.copy_(self.adapter.backbone(token, mask, self.position, cache)[:, -1])
            self.place += 1
            self.position += 1
            self.length += 1

    def _seen(self, length: int) -> int:
        return min(self.stride * (length // self.stride + 1), self.open.shape[1])

    def repeat(self, work: Work, t: int, tokens: int) -> None:
        """work(t), which reads `tokens` tokens: the first of its kind as it is, which warms up what
        capturing asks for, the others as a graph."""
        self.t.fill_(t)
        begin, end = self.length, self.length + tokens
        kind = (self._seen(begin), self._seen(end - 1), tokens)
        if kind in self.warm and kind not in self.graphs:
            self.graphs[kind] = self.capture(work, self.t)
            self.length = begin  # a captured step has not happened
        self.warm.add(kind)
        replay = self.graphs.get(kind)
        if replay is None:
            work(self.t)
        else:
            replay()
        self.length = end

    def keep(self, rows: Tensor) -> None:
        for layer in self.layers:
            assert layer.keys is not None and layer.values is not None
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.hidden, self.open = self.hidden[rows], self.open[rows]
        self.position = self.position[rows]
        self._forget_graphs()


def _uncaptured(work: Work, t: Tensor) -> None:
    """Outside a GPU there are no graphs."""


@cache
def _capture_stream(device: torch.device) -> Any:
    """One for all captures: cuBLAS keeps a workspace for each stream that it has seen."""
    return torch.cuda.Stream(device)


class _Capture:
    """Work on a GPU that can be called again as one CUDA graph.

    All share one memory pool: that of a graph that is kept, as a pool goes with its last graph.
    """

    def __init__(self) -> None:
        self.graph: Any = None

    def __call__(self, work: Work, t: Tensor) -> Replay | None:
        """What does work(t) again; None, with a warning, where it cannot be captured."""
        for last in (False, True):
            try:
                return self._captured(work, t)
            except torch.OutOfMemoryError:
                if last:
                    raise
            except RuntimeError as error:
                reason = str(error).split(".")[0]
                slower = f"decoding without a CUDA graph, which is slower: {reason}"
                warnings.warn(slower, stacklevel=2)
                return None
            # the allocator cannot give back what it keeps for others while a capture is under way
            torch.cuda.empty_cache()

    def _captured(self, work: Work, t: Tensor) -> Replay:
        """Not by `torch.cuda.graph`, which gives all free memory back each time, and leaves its
        stream the current one where a capture fails."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self.graph is None else self.graph.pool()
        with torch.cuda.stream(_capture_stream(t.device)):
            # what other threads do, as NCCL's watchdog, must not spoil it
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                work(t)
            except BaseException:
                with suppress(RuntimeError):  # of the capture, which the first error has ended
                    graph.capture_end()
                raise
            graph.capture_end()
        self.graph = graph
        return graph.replay


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
    if autocast_dtype("cpu") is not None:  # it would round the products of weights, too
        return False
    weights = list(layers.parameters())
    biased = any(isinstance(m, nn.Linear) and m.bias is not None for m in layers.modules())
    # in bfloat16 a LoRA added to its weight would be rounded off
    plain = model.config.hidden_act == "silu" and all(w.dtype == torch.float32 for w in weights)
    return plain and not biased and sum(w.nbytes for w in weights) <= FUSED_BYTES


class _FusedLayer:
    """The weights of one layer, those that read the same input side by side, with what is linear
    before them: the weights of a norm, the scale of attention, the order of turned numbers."""

    def __init__(self, layer: Any, pairs: Tensor):
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value = (
            _weight(attention.get_submodule(f"{x}_proj")).unflatten(0, (-1, len(pairs)))
            for x in "qkv"
        )
        qkv = torch.cat([query[:, pairs] * attention.scaling, key[:, pairs], value]).flatten(0, 1)
        self.qkv = _after(layer.input_layernorm, qkv)
        self.out = _weight(attention.o_proj).T
        gate_up = torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)])
        self.gate_up = _after(layer.post_attention_layernorm, gate_up)
        self.down = _weight(mlp.down_proj).T
        self.prefix_keys = self.prefix_values = self.own = torch.empty(0)


def _weight(linear: Any) -> Tensor:
    """With its LoRA, if it has one."""
    base = linear.base_layer.weight if hasattr(linear, "base_layer") else linear.weight
    for name in getattr(linear, "active_adapters", ()):
        base = base + linear.get_delta_weight(name)
    return base


def _after(norm: Any, weight: Tensor) -> Tensor:
    """Weights that read what `_unit` leaves to do of this norm."""
    return weight * (norm.weight * weight.shape[1] ** 0.5)


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """An RMS norm without its weights, and without the root of the width."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)


class Fused:
    """As `Plain`. Axes: S groups, K key heads, G rows of a group, R query heads of a key head.

    Two numbers that a position turns stand side by side: turning is one complex product.
    """

    def __init__(self, adapter: Adapter, prompts: Prompts):
        model: Any = adapter.text_model
        cache = DynamicCache()
        self.norm, self.hidden = model.norm, prompts.read(adapter, cache)
        of, embeds, capacity = prompts.prompt_of, prompts.embeds, prompts.capacity
        self.length, self.shape = 0, (len(of), prompts.group_size)
        self.hides = ~prompts.mask[of][:, None, None] if prompts.padded else None
        """[S, 1, 1, L], True on padding."""
        most = torch.arange(embeds.shape[1] + capacity, device=embeds.device).unsqueeze(0)
        cosine, sine = model.rotary_emb(embeds, most)
        half = sine.shape[-1] // 2
        self.turns = torch.complex(cosine[0, :, :half], sine[0, :, :half]).unsqueeze(1)
        self.position = prompts.mask.sum(-1)[prompts.rows]
        self.least = embeds.new_tensor((embeds.shape[2] * model.norm.variance_epsilon) ** 0.5)
        pairs = torch.arange(2 * half, device=embeds.device).view(2, half).T.flatten()
        self.layers = [_FusedLayer(layer, pairs) for layer in model.layers]
        kept: Any = cache.layers
        for mine, theirs in zip(self.layers, kept, strict=True):
            mine.prefix_keys, mine.prefix_values = theirs.keys[of][..., pairs], theirs.values[of]
            heads, width = theirs.keys.shape[1], theirs.keys.shape[3]
            # keys, then values
            mine.own = embeds.new_empty(2, len(of), heads, prompts.group_size, capacity, width)

    def read(self, embeds: Tensor) -> None:
        for token in embeds.unbind(1):
            x, turn = token, self.turns[self.position]
            for layer in self.layers:
                x = self._attended(layer, x, turn)
                gate, up = F.linear(_unit(x, self.least), layer.gate_up).chunk(2, dim=-1)
                x = torch.addmm(x, F.silu(gate) * up, layer.down)
            self.length += 1
            self.position = self.position + 1
        self.hidden = F.rms_norm(x, x.shape[-1:], self.norm.weight, self.norm.variance_epsilon)

    def _attended(self, layer: _FusedLayer, x: Tensor, turn: Tensor) -> Tensor:
        groups, group = self.shape
        _, _, heads, _, _, width = layer.own.shape
        qkv = F.linear(_unit(x, self.least), layer.qkv).view(len(x), -1, width)
        torch.view_as_complex(qkv[:, :-heads].unflatten(-1, (-1, 2))).mul_(turn)
        query, own = qkv.view(groups, group, -1, width).split(
            [qkv.shape[1] - 2 * heads, 2 * heads], 2
        )
        layer.own[..., self.length, :] = own.unflatten(2, (2, heads)).permute(2, 0, 3, 1, 4)
        keys, values = layer.own[..., : self.length + 1, :]
        query = query.unflatten(2, (heads, -1)).transpose(1, 2)
        weights = self._weights(layer, query, keys)
        prefix = layer.prefix_values.shape[2]
        out = torch.matmul(weights[..., prefix:], values)
        shared = weights[..., :prefix].flatten(2, 3)
        out += torch.matmul(shared, layer.prefix_values).view_as(out)
        return torch.addmm(x, out.transpose(1, 2).reshape(len(x), -1), layer.out)

    def _weights(self, layer: _FusedLayer, query: Tensor, keys: Tensor) -> Tensor:
        """[S, K, G, R, prompt and own tokens]."""
        shared = torch.matmul(query.flatten(2, 3), layer.prefix_keys.transpose(-1, -2))
        if self.hides is not None:
            shared = shared.masked_fill(self.hides, -torch.inf)
        own = torch.matmul(query, keys.transpose(-1, -2))
        return torch.cat([shared.view(*own.shape[:-1], -1), own], dim=-1).softmax(-1)

    def repeat(self, work: Callable[[int], None], t: int, tokens: int) -> None:
        work(t)

    def keep(self, rows: Tensor) -> None:
        group = self.shape[1]
        of = rows // group
        for layer in self.layers:
            layer.prefix_keys = layer.prefix_keys[of]
            layer.prefix_values = layer.prefix_values[of]
            layer.own = layer.own.transpose(2, 3).flatten(1, 2)[:, rows].unsqueeze(3)
        if self.hides is not None:
            self.hides = self.hides[of]
        self.shape = (len(rows), 1)
        self.hidden, self.position = self.hidden[rows], self.position[rows]
