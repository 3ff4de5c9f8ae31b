"""What a CUDA graph does, on the CPU: the operations of a step, recorded once and then repeated.

Python does not run again. What the step took from the host stays as it was when recorded, and a
tensor is looked for where it lay: what would go wrong as a graph gives other numbers here, or an
AssertionError.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from viceversa.inference.graphs import Graphed, _Capture


class Gpu:
    """Stands in for the parts of `torch.cuda` that capture a graph."""

    def __init__(self) -> None:
        self.stream_now = "default"
        self.errors: list[Callable[[], Exception]] = []
        """Make what goes wrong in the next captures, one each."""
        self.captured = self.replayed = self.emptied = 0
        self.pools: list[weakref.WeakSet[Graph]] = []
        """The graphs of each memory pool."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Have `Graphed` capture, for as long as `patch` lasts."""
        patch.setattr(Graphed, "_new_capture", lambda engine: _Capture())
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "Stream", lambda device: "side")
        for name in ("stream", "empty_cache"):
            patch.setattr(torch.cuda, name, getattr(self, name))

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    def empty_cache(self) -> None:
        self.emptied += 1


class Graph:
    """Stands in for `torch.cuda.CUDAGraph`."""

    def __init__(self, gpu: Gpu):
        self.gpu = gpu

    def pool(self) -> int:
        return self.in_pool

    def capture_begin(self, pool: int | None, capture_error_mode: str) -> None:
        assert self.gpu.stream_now == "side", "the default stream cannot be captured"
        assert capture_error_mode == "thread_local", "other threads would spoil the capture"
        self.in_pool = len(self.gpu.pools) if pool is None else pool
        if pool is None:
            self.gpu.pools.append(weakref.WeakSet())
        graphs = self.gpu.pools[self.in_pool]
        assert pool is None or len(graphs), "a pool goes with its last graph"
        graphs.add(self)
        self.error = self.gpu.errors.pop(0) if self.gpu.errors else None
        self.recording = Recording(self.error)
        self.recording.__enter__()

    def capture_end(self) -> None:
        self.recording.__exit__(None, None, None)
        self.recording.undo()
        if self.error is not None:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.gpu.captured += 1

    def replay(self) -> None:
        assert self.gpu.stream_now == "default"
        self.gpu.replayed += 1
        self.recording.replay()


class Place:
    """Where a tensor lies; does not keep it there, as a graph knows no more than an address."""

    def __init__(self, tensor: Tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.dtype, self.offset = tensor.dtype, tensor.storage_offset()
        self.size, self.stride = tensor.size(), tensor.stride()

    def tensor(self) -> Tensor:
        assert not self.storage.expired(), "the recorded step uses a tensor that is gone"
        storages: Any = torch.UntypedStorage
        storage = storages._new_with_weak_ptr(self.storage.cdata)
        return torch.empty(0, dtype=self.dtype).set_(storage, self.offset, self.size, self.stride)


class Recording(TorchDispatchMode):
    """Notes the operations that run in it. `undo` what they did, then `replay` them.

    With an `error`, the first of them raises what it makes.
    """

    def __init__(self, error: Callable[[], Exception] | None = None):
        super().__init__()
        self.error = error
        self.calls: list[tuple[Any, list[Any], Any, dict[int, Tensor]]] = []
        """Operation, arguments and their structure, and the tensors that it makes by their place
        among all that it returns."""
        self.made: dict[int, Any] = {}
        """Storages that operations make: the graph's own memory."""
        self.before: dict[int, tuple[Any, Any]] = {}
        """Storages that operations change, and what they held."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.error is not None:
            raise self.error()
        _refuse(op, args)
        given, structure = tree_flatten((args, kwargs))
        held = [self._held(x) if isinstance(x, Tensor) else x for x in given]
        self._keep(_changed(op, args, kwargs))
        found = op(*args, **kwargs)
        inputs = {_key(x) for x in given if isinstance(x, Tensor)}
        returned = enumerate(tree_leaves(found))
        made = {i: x for i, x in returned if isinstance(x, Tensor) and _key(x) not in inputs}
        self.made.update({_key(x): x.untyped_storage() for x in made.values()})
        if made or op._schema.is_mutable:  # else a view, which is a place and no work
            self.calls.append((op, held, structure, made))
        return found

    def _held(self, tensor: Tensor) -> Tensor | Place:
        return tensor if _key(tensor) in self.made else Place(tensor)

    def _keep(self, changed: list[Tensor]) -> None:
        for storage in (x.untyped_storage() for x in changed):
            self.before.setdefault(storage._cdata, (storage, storage.clone()))

    def undo(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)
        self.before.clear()

    def replay(self) -> None:
        # what autocast casts is among the operations
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for op, held, structure, made in self.calls:
                given = [x.tensor() if isinstance(x, Place) else x for x in held]
                args, kwargs = tree_unflatten(given, structure)
                returned = tree_leaves(op(*args, **kwargs))
                for i, tensor in made.items():
                    tensor.copy_(returned[i])


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _changed(op: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that the operation writes to."""
    names = [x.name for x in op._schema.arguments if x.alias_info and x.alias_info.is_write]
    given = dict(zip((x.name for x in op._schema.arguments), args, strict=False)) | kwargs
    return _tensors([given.get(name) for name in names])


def _refuse(op: Any, args: Any) -> None:
    """Raise AssertionError for what cannot be captured: to wait for the GPU, to copy to it."""
    aten: Any = torch.ops.aten
    if op in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        waits = any(x.dtype == torch.bool for x in _tensors(args[1]))
    else:
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(op.tags)
    assert not waits, f"{op} waits for the GPU"
    assert op is not aten.lift_fresh.default, "a tensor is made of numbers on the host"
