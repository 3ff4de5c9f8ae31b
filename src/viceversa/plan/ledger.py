"""The package's own code on the meta device, every tensor it would allocate written down.

Nothing is computed: a step of a 7B model takes a second. Questions about values, which meta tensors
cannot answer, are answered for the fullest case: every row and every token counts.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from viceversa.inference import shared as decoding
from viceversa.models import base

#: PyTorch's CUDA allocator hands out multiples of this (kMinBlockSize in c10/cuda).
BLOCK = 512

_linear, _attention = F.linear, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class _Full(TorchFunctionMode):
    """Answers for meta tensors: every boolean mask is all True, every row differs."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:
            return True
        if func is Tensor.unique and args[0].is_meta:
            return args[0].clone(), torch.arange(len(args[0]), device="meta")
        if func is Tensor.tolist and args[0].is_meta:
            return [0] * len(args[0])
        if func is Tensor.__getitem__ and _is_mask(args[1]):
            kept, mask = args
            return kept.flatten(0, mask.ndim - 1).clone() if mask.ndim > 1 else kept.clone()
        return func(*args, **kwargs)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.is_meta and index.dtype == torch.bool


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Make no matrix of scores, as the fused kernels of every GPU do."""
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
    return _attention(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


class Ledger(TorchDispatchMode):
    """Count the bytes alive, by part, and keep them as they were when they were most.

    `autocast`: as under torch.autocast to bfloat16, which the meta device has not. Linear layers
    and attention cast what they read; casts of trained weights are kept until `end_autocast`.
    """

    def __init__(
        self, part_of: Callable[[Tensor], str], device: str = "meta", autocast: bool = False
    ):
        super().__init__()
        self.part_of, self.device = part_of, device
        self.autocast = self._keeps = autocast
        self._casts: dict[int, Tensor] = {}
        self._part = ""  # of what is made now, where it is known
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._seen: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """These are there already: weights."""
        for tensor in tensors:
            self._seen[tensor.untyped_storage()] = ""

    @contextmanager
    def open(self) -> Iterator[Ledger]:
        # not by the function mode, which recomputation in a backward pass does not see
        fused = mock.patch.object(F, "scaled_dot_product_attention", self._attend)
        linear = mock.patch.object(F, "linear", self._multiply)
        dtype = torch.bfloat16 if self.autocast else None
        stream, cache = (
            mock.patch.object(module, "autocast_dtype", return_value=dtype)
            for module in (base, decoding)
        )
        with fused, linear, stream, cache, _Full(), self:
            yield self

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **more: Any) -> Tensor:
        query, key, value = map(self._cast, (query, key, value))
        return _fused_attention(query, key, value, *args, **more)

    def _multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = None if bias is None else self._cast(bias)
        return _linear(self._cast(x), self._cast(weight), bias)

    def _cast(self, tensor: Tensor) -> Tensor:
        if not self.autocast or tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.bfloat16()
        cast = self._casts.get(id(tensor))
        if cast is None:
            self._part = "weights"
            cast = tensor.bfloat16()
            self._part = ""
            if self._keeps:
                self._casts[id(tensor)] = cast
        return cast

    def end_autocast(self) -> None:
        """Drop the casts of weights. What is computed again casts them again."""
        self._casts.clear()
        self._keeps = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        grown = False
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                grown |= self._enter(tensor)
        if grown and self.alive.total() > self.peak.total():
            self.peak = self.alive.copy()
        return out

    def _enter(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return False
        part, size = self._part or self.part_of(tensor), -(-storage.nbytes() // BLOCK) * BLOCK
        self._seen[storage] = part
        self.alive[part] += size
        weakref.finalize(storage, self._leave, part, size)
        return True

    def _leave(self, part: str, size: int) -> None:
        self.alive[part] -= size
