"""The audit as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.table import Table

from viceversa.audit.audit import Audit
from viceversa.audit.measures import Estimate
from viceversa.audit.verdict import JUDGES, Measured
from viceversa.report.skills import TASKS
from viceversa.types import Direction

RANKS = "ranks right above wrong"
TITLES = {
    "scenes": "built-in world, verified",
    "pairs": "your pairs, corrupted",
    "unpaired": "your unpaired inputs",
}


def tables(found: Audit) -> Iterator[Table]:
    """Yield a table for each source, and one of who knows more."""
    for source, measured in found.sources.items():
        yield _source(source, measured)
    if found.accuracy:
        yield _knowledge(found.accuracy)


def _source(source: str, measured: Mapping[Direction, Measured]) -> Table:
    table = Table(title=TITLES[source], title_justify="left")
    table.add_column("self-reward")
    rows: dict[str, dict[Direction, Estimate | None]] = {RANKS: {}}
    rows |= {f"  {kind}": {} for m in measured.values() for kind in m.skills}
    for direction, m in measured.items():
        table.add_column(f"{direction}: {TASKS[direction]}, judged by {JUDGES[direction]}")
        for name, estimate in _rows(m):
            rows.setdefault(name, {})[direction] = estimate
    for name, cells in ((n, c) for n, c in rows.items() if c):
        table.add_row(name, *(str(cells.get(d) or "") for d in measured))
    return table


def _rows(m: Measured) -> Iterator[tuple[str, Estimate | None]]:
    yield from ((RANKS, m.ranking),) if m.ranking else ()
    yield from ((f"  {kind}", e) for kind, e in m.skills.items())
    yield from (("groups with right and wrong", m.headroom),) if m.headroom else ()
    yield from ((f"best of {n} is right", e) for n, e in m.best_of.items())
    yield from (("gain of the most", m.gain),) if m.gain else ()
    yield from ((f"spread over noise: {name}", e) for name, e in m.noise.items())
    yield from (("rank correlation with length", m.length),) if m.length else ()


def _knowledge(accuracy: Mapping[str, Mapping[str, Estimate]]) -> Table:
    table = Table(title="which direction knows more", title_justify="left")
    for name in ("skill", *accuracy, "knows more"):
        table.add_column(name)
    for skill in dict.fromkeys(k for figures in accuracy.values() for k in figures):
        held = {name: figures[skill] for name, figures in accuracy.items() if skill in figures}
        cells = [str(held.get(name, "")) for name in accuracy]
        table.add_row(skill, *cells, _more(held))
    return table


def _more(held: Mapping[str, Estimate]) -> str:
    """Name the direction whose interval lies above the other's; empty where they overlap."""
    for name, mine in held.items():
        if any(mine.low > e.high for other, e in held.items() if other != name):
            return name
    return ""
