"""Products with large weights on a CPU: oneDNN is faster at them than MKL, which torch calls."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from viceversa.models.base import autocast_dtype

#: Numbers from which a weight is large.
MANY_NUMBERS = 2**18
#: Rows for which oneDNN reads a large weight faster as the left factor (LOG.md, 2026-12-01).
LEFT_FACTOR = range(5, 65)

_linear = F.linear  # benchmarks put a stopwatch in its place


def large_products(module: nn.Module) -> AbstractContextManager[Any]:
    """Have oneDNN multiply by the module's large weights, where no gradient is asked for."""
    weight = next(module.parameters())
    fast = not torch.is_grad_enabled() and has_onednn(weight)
    large = fast and any(w.numel() >= MANY_NUMBERS for w in module.parameters())
    return _ByOneDnn() if large else nullcontext()


class _ByOneDnn(TorchFunctionMode):
    """Multiplies by large weights with `onednn_product`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = func is _linear and not kwargs
        if plain and args[1].numel() >= MANY_NUMBERS and has_onednn(args[0]):
            return onednn_product(*args)
        return func(*args, **(kwargs or {}))


def has_onednn(x: Tensor) -> bool:
    """Tell whether `onednn_product` takes such rows or weights."""
    onednn = torch.backends.mkldnn  # it had this name
    there = onednn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    on_cpu = x.device.type == "cpu" and autocast_dtype("cpu") is None
    return there and onednn.enabled and on_cpu and x.dtype == torch.float32  # type: ignore[return-value]


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows [..., F] by a weight [V, F], as it lies or packed by oneDNN, -> [..., V].

    It is the operator that compiled models call.
    """
    product = torch.ops.mkldnn._linear_pointwise
    if weight.is_mkldnn or x.ndim != 2 or len(x) not in LEFT_FACTOR:
        return product(x, weight, bias, "none", [], "")
    rows = _rows(product(weight, x, None, "none", [], ""))
    return rows if bias is None else rows + bias


def _rows(columns: Tensor) -> Tensor:
    """Transpose [V, B] of few columns, in runs of 64: a fifth of the time of `contiguous`."""
    rows = columns.new_empty(columns.shape[1], len(columns))
    whole = len(columns) // 64 * 64
    runs = columns[:whole].unflatten(0, (-1, 64)).permute(2, 0, 1)
    rows[:, :whole].unflatten(1, (-1, 64)).copy_(runs)
    rows[:, whole:] = columns[whole:].T
    return rows


def onednn_packed(weight: Tensor) -> Tensor:
    """Copy a weight [V, F] in the order in which oneDNN reads it fastest."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
