"""Fair timing: contenders in turn within one process, and what the machine could do at best."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from viceversa.plan.ledger import Ledger

Work = Callable[[], Any]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Work, device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def alternate(
    contenders: Mapping[str, Work], rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contender, round by round, every round in turn.

    `warm_up` runs each once before; without, the caller has done it.
    """
    names = list(contenders)
    for name in names if warm_up else ():
        seconds_of(contenders[name], device)
    found: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            found[name].append(seconds_of(contenders[name], device))
    return found


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """The median of the ratios, round by round: drift of the machine falls out."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of copying a buffer no cache holds."""
    n = 2**28 if device.type == "cuda" else 2**26
    source = torch.empty(n, dtype=torch.float32, device=device).fill_(1.0)
    target = torch.empty_like(source)
    times = alternate({"copy": lambda: target.copy_(source)}, 5, device)["copy"]
    return 2 * source.numel() * source.element_size() / statistics.median(times)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    n = 8192 if device.type == "cuda" else 1024
    left = torch.randn(n, n, device=device).to(dtype)
    right = torch.randn(n, n, device=device).to(dtype)
    times = alternate({"product": lambda: left @ right}, 5, device)["product"]
    return 2 * n**3 / statistics.median(times)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_memory(work: Work, model: torch.nn.Module) -> int:
    """Bytes of the tensors that `work` makes, at the moment of most; on a GPU, all there are."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()
    book = Ledger(lambda tensor: "all", device="cpu")
    book.ignore([*model.parameters(), *model.buffers()])
    with book:
        work()
    return book.peak.total()
