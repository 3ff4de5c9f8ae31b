"""What GPUs have, from their makers' data sheets; nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass


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
