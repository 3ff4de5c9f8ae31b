"""Shows several runs on one page: results side by side, curves overlaid, outputs of an input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from viceversa.report.charts import CSS_COLOURS, overlaid, run_style
from viceversa.report.galleries import HELD_OUT, SAMPLES, card, facets, made_by, share_of
from viceversa.report.held_out import held_out_tables
from viceversa.report.pictures import Pictures
from viceversa.report.reading import plain, read_lines, section
from viceversa.report.runs import Run, read_run
from viceversa.report.scores import score_groups
from viceversa.report.writing import render, write_page

PAGE = "comparison.html"
SINGLE_PAGE = "comparison-single.html"
#: Options that differ between runs of one thing, and say nothing about it.
OWN = ("output_dir",)
#: How an outcome is asked for, run by run.
RIGHT = {True: "right", False: "wrong"}


def write_comparison(
    run_dirs: Sequence[Path], single_file: bool = False, output: Path | None = None
) -> Path:
    """Write one page about several runs, in their order, and return its path.

    It goes beside the first run folder, as `comparison.html`; with `single_file` the pictures are
    inside, in `comparison-single.html`. Raises FileNotFoundError for a folder that is no run's, and
    ValueError for fewer than two.
    """
    runs = [read_run(Path(folder)) for folder in run_dirs]
    if len(runs) < 2:
        raise ValueError("a comparison takes two runs or more")
    beside = runs[0].folder.resolve().parent
    target = output or beside / (SINGLE_PAGE if single_file else PAGE)
    context = _context(runs, target.parent, single_file)
    return write_page(target, render("comparison.html.j2", context, context["curves"], single_file))


def _context(runs: Sequence[Run], page_dir: Path, inside: bool) -> dict[str, Any]:
    units = {run.unit for run in runs}
    names = distinct_names([run.folder for run in runs])
    cards = _cards(runs, names, page_dir, inside)
    return {
        "title": " · ".join(names),
        "runs": [_key(place, name) for place, name in enumerate(names)],
        "facts": _side_by_side([run.facts() for run in runs]),
        "options": _differing(runs),
        "scores": _joined([score_groups(run.scores) for run in runs], {}),
        "held_out": _held_out(runs),
        "curves": overlaid([run.steps for run in runs], units.pop() if len(units) == 1 else ""),
        "notes": _notes(runs, names),
        "cards": cards,
        "facets": facets(cards),
        "labels": {f"run{place}": name for place, name in enumerate(names)},
    }


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by as many of their last parts as tell them apart; never alike."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = [Path(*p[-count:]).as_posix() for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{p[-1]} ({place})" for place, p in enumerate(parts, 1)]


def _key(place: int, name: str) -> dict[str, str]:
    colour, dash = run_style(place)
    css = CSS_COLOURS[colour].removeprefix("var(--").removesuffix(")")
    return {"name": name, "colour": css, "dash": dash}


def _notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    return [
        f"{name}: {note}"
        for run, name in zip(runs, names, strict=True)
        for notes in run.notes.values()
        for note in notes
    ]


def _side_by_side(columns: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Turn fields by run into rows by field; a dash where a run has none."""
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [column.get(key, "–") for column in columns] for key in keys}


def _differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the options that are not the same in all runs whose config can be read."""
    flat = [dict(_flat(run.config)) for run in runs]
    known = [options for options in flat if options]
    rows = _side_by_side(flat)
    return {
        key: values
        for key, values in rows.items()
        if key not in OWN and len({options.get(key) for options in known}) > 1
    }


def _flat(tree: dict[str, Any], name: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in tree.items():
        path = f"{name}.{key}" if name else str(key)
        found += _flat(value, path) if isinstance(value, dict) else [(path, plain(value))]
    return found


def _joined(runs: Sequence[list[dict[str, Any]]], absent: dict[str, str]) -> list[dict[str, Any]]:
    """Join runs' tables by their titles: `rows` are lists of cells by label, a cell a run.

    `absent` is the cell of a run that has no such row.
    """
    tables: dict[str, dict[str, Any]] = {}
    for place, of_run in enumerate(runs):
        for table in of_run:
            joined = tables.setdefault(table["title"], {**table, "rows": {}})
            for row in table["rows"]:
                cells = joined["rows"].setdefault(row["label"], [absent] * len(runs))
                cells[place] = row
    return list(tables.values())


def _held_out(runs: Sequence[Run]) -> dict[str, Any]:
    """Return each run's sentence, and each measure's change, a column a run."""
    found = [section(run.scores, "held_out") for run in runs]
    sentences = [str(figures.get("sentence", "")) for figures in found]
    tables = _joined([held_out_tables(f) for f in found], {"change": "–", "ends": ""})
    return {"sentences": sentences, "tables": tables} if any(sentences) or tables else {}


def _cards(
    runs: Sequence[Run], names: Sequence[str], page_dir: Path, inside: bool
) -> list[dict[str, Any]]:
    """Return a card an input: what the base made of it, and each run's tuned model."""
    folders = [Pictures(run.folder, page_dir, inside) for run in runs]
    found = [(pictures, _by_input(pictures)) for pictures in folders]
    cards = []
    for key in dict.fromkeys(key for _, rows in found for key in rows):
        have = {i: (p, rows[key]) for i, (p, rows) in enumerate(found) if key in rows}
        first = card(*next(iter(have.values())))
        tuned = {i: {**made_by("tuned", *one), "who": names[i]} for i, one in have.items()}
        marks = {f"run{i}": RIGHT.get(output["right"], "") for i, output in tuned.items()}
        outputs = list(tuned.values())
        cards.append(
            {
                "input": first["input"],
                "outputs": [first["outputs"][0], *outputs],
                "facets": {**first["facets"], "outcome": share_of(outputs), **marks},
            }
        )
    return cards


def _by_input(pictures: Pictures) -> dict[tuple[str, ...], dict[str, Any]]:
    """Index a run's galleries by file, direction and input, and by how often that came before."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    seen: Counter[tuple[str, ...]] = Counter()
    for name in (SAMPLES, HELD_OUT):
        rows, _ = read_lines(pictures.run_dir, name)
        for row in rows:
            given = row.get("input_text") or pictures.digest(row.get("input_image"))
            place = (name, str(row.get("direction")), given)
            found[*place, str(seen[place])] = row
            seen[place] += 1
    return found
