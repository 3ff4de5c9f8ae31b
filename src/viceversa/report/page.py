"""Shows a run folder as one self-contained HTML page: reads the folder, writes `report.html`.

Runs are interrupted, so every file may be missing or end in half a line: the page then says so.
Prompts and captions are not trusted: the template escapes them, and pictures stay in the folder.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import yaml

from viceversa.report.charts import arrows, curves, not_finite, window
from viceversa.report.held_out import held_out
from viceversa.report.reading import (
    decimals,
    number,
    picture,
    plain,
    read_lines,
    read_object,
    section,
    shown,
)
from viceversa.report.skills import TASKS, skills

SOURCES = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "eval.json",
    "samples/samples.jsonl",
    "rollouts.jsonl",
)
DIRECTIONS = {"t2i": "prompt to picture", "i2t": "picture to caption"}
SKILLS = {"t2i": "generation", "i2t": "captions", "questions": "questions"}
SAMPLES_SHOWN = 48
GROUPS_SHOWN = 24


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder and return its path; an older one is replaced whole.

    Raises FileNotFoundError where the folder is missing or holds none of a run's files.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise FileNotFoundError(f"run folder {str(run_dir)!r} does not exist")
    if not any((run_dir / name).is_file() for name in SOURCES):
        raise FileNotFoundError(f"run folder {str(run_dir)!r} holds none of {', '.join(SOURCES)}")
    page = _template().render(_context(run_dir))
    target = run_dir / "report.html"
    draft = run_dir / f".report-{os.getpid()}.tmp"
    try:
        # a lone surrogate of a broken JSON string must not lose the page
        draft.write_text(page, encoding="utf-8", errors="replace")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _context(run_dir: Path) -> dict[str, Any]:
    config, config_notes = read_object(run_dir, "config.yaml")
    env, env_notes = read_object(run_dir, "env.json")
    metrics, metrics_notes = read_lines(run_dir, "metrics.jsonl")
    scores, eval_notes = read_object(run_dir, "eval.json")
    reward = str(section(config, "reward").get("name", ""))
    unit = "nats per token" if reward in ("", "dual") else "reward"
    steps = _steps(metrics)
    groups = _score_groups(scores)
    overall = groups[0]["rows"] if groups and groups[0]["title"] == "Overall" else []
    return {
        "name": run_dir.resolve().name,
        "baseline": reward if reward in ("verifier", "random") else "",
        "unit": unit,
        "facts": _facts(config, env, steps),
        "config": yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else "",
        "config_notes": config_notes,
        "inputs": _inputs(env),
        "env": {key: plain(value) for key, value in env.items() if key != "inputs"},
        "env_notes": env_notes,
        "scores": groups,
        "arrows": arrows(skills(scores)),
        "verdicts": _verdicts(scores),
        "headlines": [row for row in overall if row["label"] != SKILLS["questions"]],
        "settings": {k: plain(v) for k, v in section(scores, "settings").items()},
        "score_notes": eval_notes,
        "curves": curves(steps, unit),
        "window": window(len(steps)),
        "curve_notes": metrics_notes + not_finite(steps),
        "samples": _samples(run_dir, known=not section(scores, "held_out")),
        "held_out": held_out(run_dir, scores),
        "groups": _groups(run_dir),
    }


def _steps(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort metrics by step. A resumed run writes some steps twice: the later line counts."""
    rows = {step: row for row in metrics if (step := number(row.get("step"))) is not None}
    return [rows[step] for step in sorted(rows)]


def _facts(
    config: dict[str, Any], env: dict[str, Any], steps: list[dict[str, Any]]
) -> dict[str, str]:
    done = f"{steps[-1]['step']:.0f}" if steps else "unknown"
    planned = number(config.get("steps"))
    if steps and planned is not None:
        done += f" of {planned:.0f}"
        done += " (the run is not finished)" if steps[-1]["step"] < planned else ""
    seconds = number(env.get("seconds")) or max(
        (s for row in steps if (s := number(row.get("seconds"))) is not None), default=None
    )
    return {
        "model": str(section(config, "model").get("path", "unknown")),
        "schedule": str(config.get("schedule", "unknown")),
        "reward": str(section(config, "reward").get("name", "unknown")),
        "loss": str(section(config, "loss").get("name", "unknown")),
        "steps": done,
        "wall time": "unknown" if seconds is None else _duration(seconds),
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _score_groups(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Arrange the evaluation in titled groups of rows; those without a figure are left out."""
    places: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for inside, title, start in (((), "Overall", ""), (("held_out",), "Held out", "held out: ")):
        places[title] = [(label, (skill, *inside)) for skill, label in SKILLS.items()]
        for skill, label in SKILLS.items():
            where = (skill, *inside, "kinds")
            kinds = section(scores, "base", *where) | section(scores, "tuned", *where)
            by_kind = f"{start}{label} by kind".capitalize()
            places[by_kind] = [(str(kind), (*where, kind)) for kind in kinds]
    groups = []
    for title, rows_of in places.items():
        rows = [row for label, where in rows_of if (row := _score_row(scores, label, where))]
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _verdicts(scores: dict[str, Any]) -> dict[str, str]:
    """Say of each skill and task that changed clearly by how much, and where it came from."""
    return {
        f"{skill.name}, {TASKS.get(task, task)}" * (skill.name != task) or skill.name: (
            f"{figure.before:.3f} → {figure.after:.3f}, {figure.change}: {figure.verdict}"
        )
        for skill in skills(scores)
        for task, figure in skill.figures.items()
        if figure.verdict
    }


def _score_row(scores: dict[str, Any], label: str, where: tuple[str, ...]) -> dict[str, Any]:
    """Return one line of the table; an empty one where neither model has a figure."""
    base, tuned = (_score(section(scores, model, *where)) for model in ("base", "tuned"))
    before, after = base["accuracy"], tuned["accuracy"]
    if before is None and after is None:
        return {}
    return {
        "label": label,
        "n": base["n"] or tuned["n"],
        "base": base,
        "tuned": tuned,
        "change": "–" if before is None or after is None else f"{after - before:+.3f}",
        "apart": base["high"] < tuned["low"] or tuned["high"] < base["low"],
    }


def _score(block: dict[str, Any]) -> dict[str, Any]:
    """Return one figure and its interval; nan for unknown ends, neither above nor below others."""
    given = block.get("interval")
    ends = [number(end) for end in given] if isinstance(given, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    known = low is not None and high is not None
    return {
        "accuracy": number(block.get("accuracy")),
        "text": decimals(block.get("accuracy")),
        "ends": f"[{low:.2f}, {high:.2f}]" if known else "",
        "low": low if known else math.nan,
        "high": high if known else math.nan,
        "n": "" if number(block.get("n")) is None else f"n = {block['n']:g}",
    }


def _samples(run_dir: Path, known: bool) -> dict[str, Any]:
    """Return the world's gallery; `known`: it is missed where it is not there."""
    rows, notes = read_lines(run_dir, "samples/samples.jsonl")
    if not known and not (run_dir / "samples/samples.jsonl").exists():
        notes = []
    count = min(len(rows), SAMPLES_SHOWN)
    # evenly spaced: a file may be sorted by kind, and the first ones would all be easy
    cards = [_card(run_dir, rows[i * len(rows) // count]) for i in range(count)]
    tally = {}
    for who in ("base", "tuned"):
        judged = [right for row in rows if isinstance(right := row.get(f"{who}_right"), bool)]
        if judged:
            tally[who] = f"{sum(judged)} of {len(judged)}"
    return {"cards": cards, "total": len(rows), "tally": tally, "notes": notes}


def _card(run_dir: Path, row: dict[str, Any]) -> dict[str, Any]:
    pictures = []
    for who in ("base", "tuned"):
        name = f"samples/{row[who]}" if row.get(who) else None
        pictures.append({"who": who, "right": row.get(f"{who}_right"), **picture(run_dir, name)})
    prompt, kind = str(row.get("prompt", "")), str(row.get("kind") or "")
    return {"prompt": prompt, "kind": kind, "pictures": pictures}


def _groups(run_dir: Path) -> dict[str, Any]:
    rows, notes = read_lines(run_dir, "rollouts.jsonl")
    newest = sorted(rows, key=lambda row: number(row.get("step")) or 0)
    newest.reverse()
    seen: Counter[str] = Counter()
    turns = []
    for age, row in enumerate(newest):
        direction = str(row.get("direction"))
        turns.append((seen[direction], age))
        seen[direction] += 1
    # the newest of each direction, then the next of each, so that both are shown; then by age
    picked = [newest[age] for age in sorted(age for _, age in sorted(turns)[:GROUPS_SHOWN])]
    shown = [_group(run_dir, row) for row in picked]
    return {"shown": shown, "total": len(rows), "notes": notes}


def _group(run_dir: Path, row: dict[str, Any]) -> dict[str, Any]:
    direction = str(row.get("direction"))
    given = row.get("rewards")
    rewards = [r for v in given if (r := number(v)) is not None] if isinstance(given, list) else []
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    return {
        "step": decimals(row.get("step"), ".0f"),
        "direction": DIRECTIONS.get(direction, direction),
        "size": decimals(row.get("group_size", len(rewards)), ".0f"),
        "input": shown(run_dir, row.get("input_text"), row.get("input_image")),
        "outputs": [
            {
                "which": which,
                "reward": decimals(output.get("reward")),
                "right": output.get("right"),
                **shown(run_dir, output.get("text"), output.get("image")),
            }
            for which in ("best", "worst")
            if (output := section(row, which))
        ],
        "marks": [round(4 + 192 * (r - low) / (high - low), 1) for r in rewards if high > low],
        "equal": len(rewards) > 1 and high == low,
    }
