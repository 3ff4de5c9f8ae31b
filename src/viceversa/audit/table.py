"""The audit in words: a table of each source's figures, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from viceversa.audit.measures import Figures, Sources
from viceversa.audit.verdict import JUDGES, Verdict
from viceversa.report.skills import TASKS
from viceversa.types import Direction

TITLES = {
    "scenes": "built-in world, verified",
    "pairs": "your pairs, corrupted",
    "unpaired": "your unpaired inputs",
}


def tables(sources: Sources) -> Iterator[Table]:
    """Yield a table for each source: a figure a row, a direction a column."""
    for source, measured in sources.items():
        table = Table(title=TITLES[source], title_justify="left")
        table.add_column("self-reward")
        for direction in measured:
            table.add_column(f"{direction}: {TASKS[direction]}, judged by {JUDGES[direction]}")
        above = ""
        for name in names_of(measured):
            figure, _, skill = name.partition("/")
            if skill and figure != above:  # it has no value over all skills
                table.add_row(figure)
            cells = (str(figures.get(name, "")) for figures in measured.values())
            table.add_row(f"  {skill}" if skill else name, *cells)
            above = figure
        yield table


def names_of(measured: Mapping[Direction, Figures]) -> list[str]:
    """List the figures of either direction, each with its skills beneath it."""
    names = list(dict.fromkeys(name for figures in measured.values() for name in figures))
    families = list(dict.fromkeys(name.partition("/")[0] for name in names))
    return sorted(names, key=lambda name: families.index(name.partition("/")[0]))


def in_words(verdict: Verdict) -> list[str]:
    """Say the verdict in plain lines."""
    train = {
        "both": f"train both directions, at loss.i2t_weight={verdict.i2t_weight}",
        "t2i": "train drawing alone (schedule=t2i)",
        "i2t": "train captions alone (schedule=i2t)",
        "none": "do not train on this reward",
    }[verdict.train]
    lines = [f"verdict: {train}"]
    for direction, checks in verdict.checks.items():
        for c in checks:
            lines.append(f"  {'yes' if c.holds else 'no '} {TASKS[direction]}: {c.name} {c.found}")
    return lines + [f"  caution: {c}" for c in verdict.cautions]
