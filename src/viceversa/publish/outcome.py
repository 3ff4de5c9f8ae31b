"""What training changed, task by task: figures before and after, and a few words on each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from viceversa.report.paired import Change
from viceversa.report.reading import number, section
from viceversa.report.skills import TASKS, skills


@dataclass(frozen=True)
class Row:
    """One task before and after training."""

    task: str
    """`t2i`, `i2t` or `questions`."""
    before: float
    after: float
    change: str
    """The change with half of its 95 % interval; empty where no interval could be made."""
    words: str

    @property
    def name(self) -> str:
        """Return the task as people call it."""
        return TASKS[self.task]


@dataclass(frozen=True)
class Outcome:
    """What was measured before and after, and the sentence on held-out inputs, if there is one."""

    title: str
    rows: tuple[Row, ...]
    sentence: str


def outcome(figures: dict[str, Any]) -> Outcome:
    """Read eval.json: accuracies where the built-in world was measured, else held-out inputs.

    `rows` is empty where base and tuned were not both measured.
    """
    sentence = held_out_sentence(figures)
    if section(figures, "tuned"):
        title = "right answers on the built-in world, as a share"
        return Outcome(title, tuple(_accuracies(figures)), sentence)
    title = "held-out inputs as the base judges them, nats a token"
    return Outcome(title, tuple(_likelihoods(figures)), sentence)


def held_out_sentence(figures: dict[str, Any]) -> str:
    """Return the sentence on held-out inputs; empty where there is none."""
    sentence = section(figures, "held_out").get("sentence")
    return sentence if isinstance(sentence, str) else ""


def outcome_table(found: Outcome) -> Table:
    """Put the rows in a table for the terminal; it fits 80 columns."""
    table = Table(title=found.title)
    table.add_column("", no_wrap=True)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("in words")
    for row in found.rows:
        table.add_row(row.name, f"{row.before:.3f}", f"{row.after:.3f}", row.change, row.words)
    return table


def _accuracies(figures: dict[str, Any]) -> Iterator[Row]:
    means = [row for row in skills(figures) if row.name in ("all skills", "questions")]
    for task, figure in (pair for row in means for pair in row.figures.items()):
        if figure.after is None:
            continue
        change = figure.change
        words = "" if change is None else more_right(change)
        yield Row(task, figure.before, figure.after, _plus_minus(change), words)


def more_right(change: Change) -> str:
    """Say a change of accuracy in words."""
    if change.low <= 0 <= change.high:
        return "no change that can be told"
    better = change.value > 0
    count = f"{100 * abs(change.value):.1f} {'more' if better else 'fewer'} in 100"
    return f"{'better' if better else 'worse'}: {count}"


def _likelihoods(figures: dict[str, Any]) -> Iterator[Row]:
    words = {
        "better": "better",
        "worse": "worse",
        "unchanged": "no change that can be told",
        "suspicious": "suspicious: look before use",
    }
    for task in ("t2i", "i2t"):
        of_task = section(figures, "held_out", task)
        measured = section(of_task, "training", "base_likelihood")
        before, after = (number(measured.get(name)) for name in ("base", "tuned"))
        if before is None or after is None:
            continue
        ends = section(measured, "change")
        value, low, high = (number(ends.get(name)) for name in ("value", "low", "high"))
        change = None
        if value is not None and low is not None and high is not None:
            change = Change(value, low, high)
        verdict = words.get(str(of_task.get("verdict")), "")
        yield Row(task, before, after, _plus_minus(change), verdict)


def _plus_minus(change: Change | None) -> str:
    return "" if change is None else f"{change.value:+.3f} ± {(change.high - change.low) / 2:.3f}"
