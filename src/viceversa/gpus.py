"""What GPUs have, from their makers' data sheets; nothing here was measured."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float
    """GiB; nominal GB are taken as GiB."""
    bandwidth: float
    """GB/s."""
    bf16: float
    """Dense TFLOP/s; data sheets that give it with sparsity are halved."""
    fp32: float
    """TFLOP/s outside tensor cores, as PyTorch multiplies float32 by default."""
    source: str = ""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10", 24, 600, 125, 31.2, "NVIDIA A10 data sheet"),
        Gpu("l4", 24, 300, 121, 30.3, "NVIDIA L4 data sheet"),
        Gpu("rtx3090", 24, 936, 71, 35.6, "NVIDIA GA102 whitepaper"),
        Gpu("rtx4090", 24, 1008, 165.2, 82.6, "NVIDIA Ada whitepaper"),
        Gpu("a100-40", 40, 1555, 312, 19.5, "NVIDIA A100 data sheet, SXM 40 GB"),
        Gpu("l40s", 48, 864, 362, 91.6, "NVIDIA L40S data sheet"),
        Gpu("a100", 80, 2039, 312, 19.5, "NVIDIA A100 data sheet, SXM 80 GB"),
        Gpu("h100", 80, 3350, 989.5, 67, "NVIDIA H100 data sheet, SXM"),
        Gpu("h200", 141, 4800, 989.5, 67, "NVIDIA H200 data sheet, SXM"),
    )
}


def own_gpu() -> Gpu | None:
    """This process's GPU, with the memory that it has; of an unknown name, an H100's speeds."""
    if not torch.cuda.is_available():
        return None
    card = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")))
    name = card.name.lower().replace(" ", "")
    known = max((key for key in GPUS if key in name), key=len, default="h100")
    return replace(GPUS[known], memory=card.total_memory / 2**30)
