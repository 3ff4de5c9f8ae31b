"""Cutting the rows of an optimizer step into backward passes, which never changes the sums."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from viceversa.types import Ranks, TrainingRows


@dataclass(frozen=True)
class Totals:
    """Denominators of one direction's sums over the whole optimizer step.

    Of all processes, over their number: data-parallel wrappers average gradients over processes.
    """

    units: float
    """Pairs, rows or tokens, as the algorithm counts."""
    tokens: float


@dataclass(frozen=True)
class MicroStep:
    """The rows of one backward pass, and what their sums are divided by."""

    rows: list[TrainingRows]
    totals: dict[str, Totals]
    """Keyed by the rows' names."""


def parts_of(micro: MicroStep, most: int, unit: int, ranks: Ranks) -> list[MicroStep]:
    """Cut into passes of at most `most` rows of a direction, whole units of `unit` rows.

    As many on every process: each one exchanges gradients, and a process that has fewer rows would
    leave the others waiting.
    """
    parts = max(_least_parts(rows, max(most, unit)) for rows in micro.rows)
    parts = max(ranks.gather([parts]))
    if parts == 1:
        return [micro]
    cut = [split(rows, parts, unit) for rows in micro.rows]
    return [replace(micro, rows=list(part)) for part in zip(*cut, strict=True)]


def split(rows: TrainingRows, parts: int, unit: int) -> list[TrainingRows]:
    """Cut into nearly equal runs: of whole prompts if there are enough, else of whole units.

    A part that would be empty takes the first unit with weight zero, so that every part
    runs both heads on every process.
    """
    unit = rows.sharing if len(rows.prompts) >= parts else unit
    units = len(rows) // unit
    bounds = [unit * (units * k // parts) for k in range(parts + 1)]
    found = []
    for first, last in itertools.pairwise(bounds):
        part = cut_out(rows, slice(first, last) if last > first else slice(0, unit))
        found.append(part if last > first else replace(part, filler=True))
    return found


def _least_parts(rows: TrainingRows, most: int) -> int:
    """Parts of at most `most` rows each; of whole prompts where one prompt's rows are no more."""
    whole = most - most % rows.sharing
    return math.ceil(len(rows) / (whole or most))


def cut_out(rows: TrainingRows, part: slice) -> TrainingRows:
    """Return a run of rows, prompts still shared where the run holds whole prompts."""
    n = rows.sharing
    if part.start % n or part.stop % n:
        prompts = rows.prompts.repeat_interleave(n).select(part)
    else:
        prompts = rows.prompts.select(slice(part.start // n, part.stop // n))
    names = ("advantages", "drawn_logprobs", "sampling_logprobs", "ref_logprobs")
    cut: dict[str, Any] = {k: x[part] for k in names if (x := getattr(rows, k)) is not None}
    return replace(rows, prompts=prompts, completions=rows.completions.select(part), **cut)
