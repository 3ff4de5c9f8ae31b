"""Two processes for a test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

#: Seconds after which a process that waits for another gives up, and then the test for both.
WAIT, LIMIT = 240, 900
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
TORCHRUN += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
#: Starts the same two in half of the time.
FORKED = [sys.executable, str(Path(__file__).parent / "forked.py")]


def launch(*command: str, cwd: Path, by: list[str] = FORKED) -> None:
    """Run `command` in two processes. A deadlock ends in a failure."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "src")])
    with (cwd / "output.txt").open("w") as output:  # not a pipe, which the workers hold open
        running = subprocess.Popen(
            [*by, *command],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "PYTHONFAULTHANDLER": "1",  # a crash outside Python says where it was
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
        )
        try:
            code = running.wait(LIMIT)
        finally:
            running.terminate()  # it ends its workers
            running.wait()
    assert code == 0, (cwd / "output.txt").read_text()[-4000:]


def apart(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """Norm of the difference, by the norm of what is wanted."""
    assert got.keys() == want.keys()
    squares = [((got[n] - want[n]).square().sum(), want[n].square().sum()) for n in want]
    off, whole = (float(torch.stack(x).sum().sqrt()) for x in zip(*squares, strict=True))
    return off / whole
