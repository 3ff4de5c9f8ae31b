"""Skill by skill: which direction knew more before training, who taught whom, what is new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from viceversa.report.paired import Change, change_of
from viceversa.report.reading import number, section

#: Tasks as figures name them, and as people do; each direction, and the other one.
TASKS = {"t2i": "drawing", "i2t": "captions", "questions": "questions"}
OTHER = {"t2i": "i2t", "i2t": "t2i"}


@dataclass(frozen=True)
class Figure:
    """One task's accuracy on one skill."""

    before: float
    after: float | None
    interval: tuple[float, float] | None
    """Of `before`, 95 %; None where it was not kept."""
    change: Change | None
    """Paired by input; None before training, or where single outcomes were not kept."""
    verdict: str = ""
    """`taught by captions` (or drawing), where they knew clearly more before; `beyond both`, where
    it now knows more than either did; else `up` or `lost`; empty: no clear change."""


@dataclass(frozen=True)
class Skill:
    """A kind of input, by task."""

    name: str
    figures: dict[str, Figure]


def skills(scores: dict[str, Any]) -> list[Skill]:
    """Return the mean and every kind of eval.json: drawing beside captions, then questions."""
    rows = list(_compared(scores, ("t2i", "i2t"), "all skills"))
    return rows + list(_compared(scores, ("questions",), "questions"))


def _compared(scores: dict[str, Any], tasks: tuple[str, ...], mean: str) -> Iterator[Skill]:
    names = list(dict.fromkeys(k for t in tasks for k in section(scores, "base", t, "kinds")))
    for places, name in [((), mean), *((("kinds", n), n) for n in names)]:
        yield from _skill(scores, tasks, name, places)
    if any(section(scores, "base", t, "held_out") for t in tasks):
        yield from _skill(scores, tasks, "held out", ("held_out",))


def _skill(
    scores: dict[str, Any], tasks: tuple[str, ...], name: str, place: tuple[str, ...]
) -> Iterator[Skill]:
    old = {t: section(scores, "base", t, *place) for t in tasks}
    new = {t: section(scores, "tuned", t, *place) for t in tasks}
    found = {}
    for task in tasks:
        before = number(old[task].get("accuracy"))
        if before is None:
            continue
        after = number(new[task].get("accuracy"))
        change = None if after is None else change_of(old[task], [new[task]])
        verdict = _verdict(task, old, new[task], change) if place and change else ""
        found[task] = Figure(before, after, interval_of(old[task]), change, verdict)
    if found:
        yield Skill(name, found)


def interval_of(figure: dict[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval of a figure; None where it has none that can be read."""
    ends = figure.get("interval")
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return None
    low, high = map(number, ends)
    return None if low is None or high is None else (low, high)


def _verdict(task: str, old: dict[str, Any], new: dict[str, Any], change: Change) -> str:
    """Say in a word or three where a clear change came from; empty where there is none."""
    other = old.get(OTHER.get(task, ""), {})
    if change.high < 0:
        return "lost"
    if change.low <= 0:
        return ""
    if not other:
        return "up"
    known, known_to_other = old[task]["interval"][1], other["interval"]
    if new["interval"][0] > max(known, known_to_other[1]):
        return "beyond both"
    return f"taught by {TASKS[OTHER[task]]}" if known_to_other[0] > known else "up"
