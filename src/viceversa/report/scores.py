"""The figures of eval.json as rows of a table: accuracies with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from viceversa.report.paired import change_of
from viceversa.report.reading import decimals, number, section
from viceversa.report.skills import TASKS, Skill, interval_of

BY_KIND = "by kind"


def score_groups(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Arrange the evaluation in titled groups of rows; those without a figure are left out."""
    places: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for inside, title, start in (((), "Overall", ""), (("held_out",), "Held out", "held out: ")):
        places[title] = [(label, (skill, *inside)) for skill, label in TASKS.items()]
        for skill, label in TASKS.items():
            where = (skill, *inside, "kinds")
            kinds = section(scores, "base", *where) | section(scores, "tuned", *where)
            by_kind = f"{start}{label} {BY_KIND}".capitalize()
            places[by_kind] = [(str(kind), (*where, kind)) for kind in kinds]
    groups = []
    for title, rows_of in places.items():
        rows = [row for label, where in rows_of if (row := _score_row(scores, label, where))]
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


def _score_row(scores: dict[str, Any], label: str, where: tuple[str, ...]) -> dict[str, Any]:
    """Return one line of the table; an empty one where neither model has a figure."""
    old, new = (section(scores, model, *where) for model in ("base", "tuned"))
    base, tuned = _score(old), _score(new)
    before, after = base["accuracy"], tuned["accuracy"]
    if before is None and after is None:
        return {}
    paired = None if before is None or after is None else change_of(old, [new])
    return {
        "label": label,
        "n": base["n"] or tuned["n"],
        "base": base,
        "tuned": tuned,
        "change": "–" if before is None or after is None else f"{after - before:+.3f}",
        "change_ends": f"[{paired.low:+.3f}, {paired.high:+.3f}]" if paired else "",
        "marked": not paired.low <= 0 <= paired.high if paired else _disjoint(base, tuned),
    }


def _disjoint(base: dict[str, Any], tuned: dict[str, Any]) -> bool:
    """Tell whether two intervals do not overlap, for an eval.json without single outcomes."""
    return base["high"] < tuned["low"] or tuned["high"] < base["low"]


def _score(block: dict[str, Any]) -> dict[str, Any]:
    """Return one figure and its interval; nan for unknown ends, neither above nor below others."""
    low, high = interval_of(block) or (math.nan, math.nan)
    return {
        "accuracy": number(block.get("accuracy")),
        "text": decimals(block.get("accuracy")),
        "ends": f"[{low:.2f}, {high:.2f}]" if math.isfinite(low) else "",
        "low": low,
        "high": high,
        "n": "" if number(block.get("n")) is None else f"n = {block['n']:g}",
    }
