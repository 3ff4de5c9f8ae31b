"""The figures of eval.json as rows of a table: accuracies with their intervals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from viceversa.report.reading import decimals, section
from viceversa.report.skills import TASKS, Figure, Interval, Skill, figure_of

BY_KIND = "by kind"


def score_groups(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Arrange the evaluation in titled groups of rows; those without a figure are left out."""
    places: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for inside, title, start in (((), "Overall", ""), (("held_out",), "Held out", "held out: ")):
        places[title] = [(label, (task, *inside)) for task, label in TASKS.items()]
        for task, label in TASKS.items():
            where = (task, *inside, "kinds")
            by_kind = f"{start}{label} {BY_KIND}".capitalize()
            places[by_kind] = [(kind, (*where, kind)) for kind in section(scores, "base", *where)]
    groups = []
    for title, rows_of in places.items():
        rows = [_row(label, f) for label, where in rows_of if (f := figure_of(scores, *where))]
        if rows:
            groups.append({"title": title, "kinds": title.endswith(BY_KIND), "rows": rows})
    return groups


def verdicts(rows: Iterable[Skill]) -> dict[str, str]:
    """Say of each skill and task that changed clearly by how much, and where it came from."""
    return {
        f"{skill.name}, {TASKS.get(task, task)}" * (skill.name != task) or skill.name: (
            f"{figure.before:.3f} → {figure.after:.3f}, {figure.change}: {figure.verdict}"
        )
        for skill in rows
        for task, figure in skill.figures.items()
        if figure.verdict
    }


def _row(label: str, figure: Figure) -> dict[str, Any]:
    """Return one line of the table."""
    change, after = figure.change, figure.after
    return {
        "label": label,
        "n": "" if figure.n is None else f"n = {figure.n}",
        "base": _cell(figure.before, figure.interval),
        "tuned": _cell(after, figure.interval_after),
        "change": "–" if after is None else f"{after - figure.before:+.3f}",
        "change_ends": f"[{change.low:+.3f}, {change.high:+.3f}]" if change else "",
        "marked": figure.clear,
    }


def _cell(accuracy: float | None, ends: Interval | None) -> dict[str, str]:
    interval = "[{:.2f}, {:.2f}]".format(*ends) if ends else ""
    return {"text": decimals(accuracy), "ends": interval}
