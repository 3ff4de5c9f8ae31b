"""The engine for GPUs: a token of decoding as one CUDA graph, in buffers that never move."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from viceversa.inference.engines import Plain, Prompts
from viceversa.models.base import Adapter

Work = Callable[[Tensor], None]
"""Does all that one token asks for; takes its number, a tensor on the device."""
Replay = Callable[[], None]

#: Tokens that attention reaches over at a time in a graph: some are masked, so that graphs are few.
GRAPH_STRIDE = 128


class Graphed(Plain):
    """Does as `Plain` does, and captures all that is done for a token as a CUDA graph.

    Attention reaches over whole strides of what a row may write, masked, so that one graph serves a
    stride.
    """

    def __init__(self, adapter: Adapter, prompts: Prompts, stride: int = GRAPH_STRIDE):
        super().__init__(adapter, prompts, stride)
        self.place = torch.zeros(1, dtype=torch.long, device=self.hidden.device)
        self.t = torch.zeros_like(self.place)
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """Begin anew, after buffers have moved: graphs hold their addresses."""
        self.warm: set[tuple[int, ...]] = set()
        self.graphs: dict[tuple[int, ...], Replay | None] = {}
        self.capture = self._new_capture()

    def _new_capture(self) -> Callable[[Work, Tensor], Replay | None]:
        return _Capture() if self.place.device.type == "cuda" else _uncaptured

    def _forward(self, token: Tensor, hides: Tensor | None) -> Tensor:
        hidden = super()._forward(token, hides)
        self.place += 1
        return hidden

    def _place(self) -> Tensor:
        return self.place

    def _last(self) -> Tensor:
        return self.place

    def repeat(self, work: Work, t: int, tokens: int) -> None:
        """Do work(t), which reads `tokens` tokens.

        The first of a kind runs as it is, to warm up for the capture; the others run as a graph.
        """
        self.t.fill_(t)
        begin, end = self.length, self.length + tokens
        kind = (self.seen(begin), self.seen(end - 1), tokens)
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
        super().keep(rows)
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
