"""Skill by skill: which direction knew more before training, who taught whom, what is new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from viceversa.report.paired import Change, change_of
from viceversa.report.reading import section

#: Tasks as figures name them, and as people do; each direction, and the other one.
TASKS = {"t2i": "drawing", "i2t": "captions", "questions": "questions"}
OTHER = {"t2i": "i2t", "i2t": "t2i"}


Interval = tuple[float, float]


@dataclass(frozen=True)
class Figure:
    """One task's accuracy on one skill; intervals are of 95 %, over inputs."""

    before: float
    interval: Interval | None
    """Of `before`; None where it was not kept."""
    after: float | None
    interval_after: Interval | None
    n: int | None
    """Outputs that were judged; None for a mean over kinds."""
    change: Change | None
    """Paired by input; None before training, or where single outcomes were not kept."""
    verdict: str = ""
    """`taught by captions` (or drawing), where they knew clearly more before; `beyond both`, where
    it now knows more than either did; else `up` or `lost`; empty: no clear change."""

    @property
    def clear(self) -> bool:
        """Whether the change leaves out 0; without single outcomes, whether intervals are apart."""
        if self.change is not None:
            return not self.change.low <= 0 <= self.change.high
        if self.interval is None or self.interval_after is None:
            return False
        (low, high), (new_low, new_high) = self.interval, self.interval_after
        return high < new_low or new_high < low


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
    found = {task: figure for task in tasks if (figure := figure_of(scores, task, *place))}
    if place:  # of the mean over all skills nobody says where it came from
        found = {task: replace(f, verdict=_verdict(task, found)) for task, f in found.items()}
    if found:
        yield Skill(name, found)


def figure_of(scores: dict[str, Any], task: str, *place: str) -> Figure | None:
    """Return a task's figure at a place in eval.json; None where the base has none there."""
    old, new = (section(scores, model, task, *place) for model in ("base", "tuned"))
    if "accuracy" not in old:
        return None
    change = change_of(old, [new]) if new else None
    ends, ends_after = old.get("interval"), new.get("interval")
    return Figure(old["accuracy"], ends, new.get("accuracy"), ends_after, old.get("n"), change)


def _verdict(task: str, figures: dict[str, Figure]) -> str:
    """Say in a word or three where a clear change came from; empty where there is none."""
    figure, other = figures[task], figures.get(OTHER.get(task, ""))
    if figure.change is None or not figure.clear:
        return ""
    if figure.change.high < 0:
        return "lost"
    if other is None:
        return "up"
    # they are kept wherever single outcomes are
    assert figure.interval and figure.interval_after and other.interval
    known, known_to_other = figure.interval[1], other.interval
    if figure.interval_after[0] > max(known, known_to_other[1]):
        return "beyond both"
    return f"taught by {TASKS[OTHER[task]]}" if known_to_other[0] > known else "up"
