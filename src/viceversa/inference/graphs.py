"""The engine for GPUs: a token of decoding as one CUDA graph, in buffers that never move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from viceversa.inference.engines import Plain, Prompts
from viceversa.models.base import Adapter

Work = Callable[[Tensor], None]
"""Does all that one token asks for; takes its number, a tensor on the device."""
Replay = Callable[[], None]

#: Tokens that attention reaches over at a time in a graph: some are masked, so that graphs are few.
GRAPH_STRIDE = 128


class _FixedLayer(CacheLayerMixin):
    """Keys and values, written where a tensor says; attention sees the first `seen`."""

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
    """Does as `Plain` does, and captures all that is done for a token as a CUDA graph.

    Attention reaches over whole strides of the cache, masked, so that one graph serves a stride.
    """

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
        """Begin anew, after buffers have moved: graphs hold their addresses."""
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
        """Do work(t), which reads `tokens` tokens.

        The first of a kind runs as it is, to warm up for the capture; the others run as a graph.
        """
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
    """Stand in for a capture where there is no GPU: there are no graphs."""


@cache
def _capture_stream(device: torch.device) -> Any:
    """Return one stream for all captures: cuBLAS keeps a workspace for each that it has seen."""
    return torch.cuda.Stream(device)


class _Capture:
    """Captures work on a GPU as CUDA graphs, which share one memory pool.

    The last graph is kept, for a pool goes with the last of its graphs.
    """

    def __init__(self) -> None:
        self.graph: Any = None

    def __call__(self, work: Work, t: Tensor) -> Replay | None:
        """Return a function that does work(t) again; None, with a warning, where there is none."""
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
        """Capture work(t); return a function that replays it.

        `torch.cuda.graph` gives all free memory back each time, and leaves its stream the current
        one where a capture fails.
        """
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
