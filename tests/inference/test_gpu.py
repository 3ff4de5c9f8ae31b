"""What needs a GPU, each in a process of its own: the tests' process uses the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

import gpu_checks


@pytest.mark.gpu
@pytest.mark.parametrize("check", list(gpu_checks.CHECKS))
def test_on_a_gpu(check: str, with_gpus: dict[str, str]) -> None:
    command = [sys.executable, gpu_checks.__file__, check]
    done = subprocess.run(command, env=with_gpus, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_the_others_use_the_cpu() -> None:
    """Also in the processes that they start, on a machine with a GPU."""
    ask = "import torch; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device written in Python",
)
def test_every_tensor_is_on_the_models_device(tmp_path: Path) -> None:
    """Sampling, scoring and training on a device that the CPU's tensors cannot meet."""
    script = str(Path(__file__).parents[1] / "far_device.py")
    done = subprocess.run([sys.executable, script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
