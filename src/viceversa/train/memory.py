"""How many rows at once: halved after an out-of-memory error, with the same result."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

#: Of glibc's mallopt (malloc.h), and the largest values that it takes, in bytes.
M_TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD = -1, 2**31 - 1
M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD = -3, 2**25


def keep_freed_memory() -> None:
    """Freed tensors of up to 32 MB stay with the process, for the next ones: of glibc, which else
    gives most of them back at every step and faults them in again.

    For the whole process. Sampling, scoring and learning with the built-in model, called one by
    one, took a fifth longer without, a training run 3 %; the peak was the same (LOG.md). An
    environment that sets glibc's own variables is left alone.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    told |= "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] == "glibc" and not told:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, LARGEST_TRIM_THRESHOLD)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)


class RowBudget:
    """Calls work(rows), and again with half the rows for as long as memory does not suffice.

    The work must give the same result for any number of rows, and be repeatable. It takes whole
    units of `unit` rows. Raises MemoryError below `smallest` rows (by default one unit).
    """

    def __init__(self, name: str, rows: int, unit: int = 1):
        self.name, self.rows, self.unit, self.smallest = name, rows, unit, unit

    def __call__(self, work: Callable[[int], T], most: int) -> T:
        """Do `work`, which has `most` rows in all: an attempt of more would be the same again."""
        rows = self._whole(min(self.rows, most))
        while True:
            try:
                return work(rows)
            except torch.OutOfMemoryError as error:
                reason = str(error).split(".")[0]
                if rows <= self.smallest:
                    raise MemoryError(f"{reason} with {self.name}={rows}") from error
            # outside the handler, whose traceback holds the tensors of the failed attempt
            rows = self.rows = max(self.smallest, self._whole(rows // 2))
            warnings.warn(f"{reason}: {self.name} is now {self.rows}", stacklevel=2)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _whole(self, rows: int) -> int:
        return max(self.unit, rows - rows % self.unit)
