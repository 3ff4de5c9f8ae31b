"""What needs a GPU, each in a process of its own: the tests' process uses the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
