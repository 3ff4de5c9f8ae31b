"""Shows a run folder as one HTML page: reads the folder, writes `report.html` into it.

Runs are interrupted, so every file may be missing or end in half a line: the page then says so.
Prompts and captions are not trusted: the template escapes them, pictures outside the folder are not
shown, and the page's policy runs no script but its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from viceversa.report.charts import arrows, curves, not_finite, window
from viceversa.report.galleries import followed, glance, groups, samples
from viceversa.report.held_out import held_out
from viceversa.report.pictures import Pictures
from viceversa.report.reading import DIRECTIONS, decimals, plain, section
from viceversa.report.runs import LOOKS, Run, read_run
from viceversa.report.scores import score_groups, verdicts
from viceversa.report.skills import TASKS, skills
from viceversa.report.writing import render, write_page

PAGE = "report.html"
SINGLE_PAGE = "report-single.html"


def write_report(run_dir: Path, single_file: bool = False, output: Path | None = None) -> Path:
    """Write the page of a run and return its path; an older one is replaced whole.

    It goes into the run folder, as `report.html`, and links the pictures that lie there. With
    `single_file` the pictures are inside the page, `report-single.html`: one file to send. `output`
    is another place for it. Raises FileNotFoundError where the folder is missing or holds none of a
    run's files.
    """
    run = read_run(Path(run_dir))
    target = output or run.folder / (SINGLE_PAGE if single_file else PAGE)
    context = _context(run, Pictures(run.folder, target.parent, single_file))
    plots = [*context["curves"], context["arrows"]]
    return write_page(target, render("report.html.j2", context, plots, single_file))


def _context(run: Run, pictures: Pictures) -> dict[str, Any]:
    scores = score_groups(run.scores)
    overall = scores[0]["rows"] if scores and scores[0]["title"] == "Overall" else []
    config, env, by_skill = run.config, run.env, skills(run.scores)
    own_inputs = section(run.scores, "held_out") or section(env, "unmeasured")
    held = held_out(pictures, run.scores)
    drawn = samples(pictures, known=not own_inputs)
    return {
        "name": run.name,
        "baseline": run.reward if run.reward in ("verifier", "random") else "",
        "unit": run.unit,
        "facts_of": run.facts(),
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        "inputs": _inputs(env),
        "env": {k: plain(v) for k, v in env.items() if k not in ("inputs", "unmeasured")},
        "notes_of": run.notes,
        "scores": scores,
        "arrows": arrows(by_skill),
        "verdicts": verdicts(by_skill),
        "headlines": [row for row in overall if row["label"] != TASKS["questions"]],
        "settings": {k: plain(v) for k, v in section(run.scores, "settings").items()},
        "curves": curves(run.steps, run.unit),
        "window": window(len(run.steps)),
        "curve_notes": run.notes["metrics.jsonl"]
        + run.notes.get(LOOKS, [])
        + not_finite(run.steps),
        "followed": followed(pictures),
        "held_out": held,
        "samples": drawn,
        "glance": glance(drawn["cards"], held.get("cards", ())),
        "groups": groups(pictures),
    }


def _inputs(env: dict[str, Any]) -> list[dict[str, Any]]:
    """List, by direction, how many inputs are used, and what was left out or changed."""
    directions = []
    for direction, title in DIRECTIONS.items():
        counts = section(env, "inputs", direction)
        given = counts.get("kinds")
        rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
        if counts:
            kinds = [
                {
                    "kind": str(row.get("kind")),
                    "what": "skipped" if row.get("skipped") else "changed and used",
                    "count": decimals(row.get("count"), ".0f"),
                    "names": [str(n) for n in row.get("names") or ()],
                }
                for row in rows
            ]
            used, skipped = (decimals(counts.get(k), ".0f") for k in ("inputs", "skipped"))
            directions.append({"title": title, "used": used, "skipped": skipped, "kinds": kinds})
    return directions
