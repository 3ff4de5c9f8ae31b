"""Peak memory of some work in a process of its own, above what the process held before.

On the CPU it is the kernel's largest resident size (VmHWM in /proc/self/status), set back before
the work; on a GPU torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
#: Freed memory goes back to the system at once, so that what is resident is what is in use.
RETURNS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class Meter:
    """The most memory in use since `start`, in bytes, less `base`."""

    def __init__(self, cuda: bool):
        self.cuda = cuda
        self.base = 0

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        resets = Path("/proc/self/clear_refs")
        if not resets.exists():
            raise SystemExit("peak memory on the CPU is read from /proc, which only Linux has")
        resets.write_text("5")  # VmHWM becomes what is resident now

    def begin(self) -> None:
        """Start, and count from what is in use now."""
        self.base = 0
        self.start()
        self.base = self.peak()

    def peak(self) -> int:
        if self.cuda:
            return torch.cuda.max_memory_allocated() - self.base
        status = Path("/proc/self/status").read_text()
        line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 - self.base


def child(script: str, task: Any, launcher: Sequence[str] = ()) -> Any:
    """Run `script --child TASK` in a fresh process; return the JSON of its last line.

    `launcher` are arguments of Python before the script, such as `-m torch.distributed.run`.
    Raises SystemExit with what the process wrote where it fails.
    """
    command = [sys.executable, *launcher, script, "--child", json.dumps(task)]
    env = {**os.environ, **RETURNS, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} --child {json.dumps(task)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
