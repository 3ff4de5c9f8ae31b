"""How many rows at once: halved after an out-of-memory error, with the same result."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


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
