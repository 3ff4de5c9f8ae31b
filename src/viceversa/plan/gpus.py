"""Memory of GPUs, from their makers' data sheets, or of the one that is here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float
    """GiB; a data sheet's GB are taken as GiB."""


_MEMORY = {
    "a10": 24,
    "l4": 24,
    "rtx3090": 24,
    "rtx4090": 24,
    "a100-40": 40,
    "l40s": 48,
    "a100": 80,
    "h100": 80,
    "h200": 141,
}
GPUS = {name: Gpu(name, memory) for name, memory in _MEMORY.items()}


def own_gpu() -> Gpu | None:
    """Return this process's GPU with the memory that it has; None where there is none."""
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    return Gpu(card.name, card.total_memory / 2**30)
