"""A run folder as one self-contained HTML page. Only reads the folder, and writes `report.html`.

Runs are interrupted, so every file may be missing or end in half a line: the page then says so.
Prompts and captions are not trusted: the template escapes them, and pictures stay in the folder.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import yaml
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from PIL import Image

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
POINTS_SHOWN = 400  # of a curve: more only makes the page heavy
PICTURE_SIDE = 256  # pixels; larger pictures are shrunk, they are shown smaller still

#: What matplotlib draws with, and the CSS that takes its place: curves follow light and dark.
INK = "#010101"
CSS_COLOURS = {INK: "currentColor", "#010102": "var(--t2i)", "#010103": "var(--i2t)"}
#: Of a metric by what stands before its slash: label, colour, line.
STYLES = {
    "t2i": ("to picture", "#010102", "-"),
    "i2t": ("to caption", "#010103", "--"),
    "": ("whole step", INK, ":"),
}

#: Title, unit ("" takes the reward's), metrics. Rewards of the two directions differ in scale.
PLOTS = (
    ("Reward, prompt to picture", "", ("t2i/reward_mean",)),
    ("Reward, picture to caption", "", ("i2t/reward_mean",)),
    ("Verified right", "share of samples", ("t2i/verified", "i2t/verified")),
    ("A right output outranks a wrong one", "share of pairs", ("t2i/ranking", "i2t/ranking")),
    ("Reward gap, best minus worst", "", ("t2i/reward_gap", "i2t/reward_gap")),
    ("Gradient norm", "2-norm", ("grad_norm", "t2i/grad_norm", "i2t/grad_norm")),
)


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
    config, config_notes = _read_object(run_dir, "config.yaml")
    env, env_notes = _read_object(run_dir, "env.json")
    metrics, metrics_notes = _read_lines(run_dir, "metrics.jsonl")
    scores, eval_notes = _read_object(run_dir, "eval.json")
    reward = str(_section(config, "reward").get("name", ""))
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
        "env": {key: _plain(value) for key, value in env.items() if key != "inputs"},
        "env_notes": env_notes,
        "scores": groups,
        "headlines": [row for row in overall if row["label"] != SKILLS["questions"]],
        "settings": {k: _plain(v) for k, v in _section(scores, "settings").items()},
        "score_notes": eval_notes,
        "curves": [plot for i in range(len(PLOTS)) if (plot := _curve(i, steps, unit))],
        "window": _window(len(steps)),
        "curve_notes": metrics_notes + _not_finite(steps),
        "samples": _samples(run_dir),
        "groups": _groups(run_dir),
    }


# Reading: what cannot be read becomes a note.


def _read_text(run_dir: Path, name: str) -> tuple[str, list[str]]:
    try:
        return (run_dir / name).read_text(encoding="utf-8", errors="replace"), []
    except FileNotFoundError:
        return "", [f"{name} is missing."]
    except OSError as error:
        return "", [f"{name} cannot be read: {error.strerror}."]


def _read_object(run_dir: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    text, notes = _read_text(run_dir, name)
    if notes:
        return {}, notes
    try:
        value = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    except (ValueError, yaml.YAMLError):
        return {}, [f"{name} cannot be read: it is cut off or damaged."]
    return (value, []) if isinstance(value, dict) else ({}, [f"{name} holds no fields."])


def _read_lines(run_dir: Path, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    text, notes = _read_text(run_dir, name)
    rows: list[dict[str, Any]] = []
    bad = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        lines = "1 line was" if bad == 1 else f"{bad} lines were"
        notes.append(f"{name}: {lines} cut off or damaged, and left out.")
    elif not rows and not notes:
        notes.append(f"{name} is empty.")
    return rows, notes


def _section(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping under `keys`, empty where there is none."""
    for key in keys:
        value = tree.get(key)
        tree = value if isinstance(value, dict) else {}
    return tree


def _number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _decimals(value: Any, spec: str = ".3f") -> str:
    number = _number(value)
    return "–" if number is None else format(number, spec)


def _plain(value: Any) -> str:
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def _picture(run_dir: Path, name: Any) -> dict[str, Any]:
    """A picture of the run folder as a PNG data URI, or a note that says why there is none."""
    if not isinstance(name, str) or not name:
        return {"note": "no picture recorded"}
    try:
        path = (run_dir / name).resolve()
        if not path.is_relative_to(run_dir.resolve()):
            return {"note": f"{name} is outside the run folder: skipped"}
        if not path.is_file():
            return {"note": f"{name} is not there"}
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return {"note": f"{name} cannot be read as a picture"}
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    small = max(image.size) <= PICTURE_SIDE // 3
    if small:  # printers smooth what is enlarged, whatever the page's style says
        factor = PICTURE_SIDE // max(image.size)
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "small": small, "size": image.size}


# Sections of the page, as what the template shows.


def _steps(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Metrics by step. A resumed run writes some steps twice: the later line counts."""
    rows = {step: row for row in metrics if (step := _number(row.get("step"))) is not None}
    return [rows[step] for step in sorted(rows)]


def _facts(
    config: dict[str, Any], env: dict[str, Any], steps: list[dict[str, Any]]
) -> dict[str, str]:
    done = f"{steps[-1]['step']:.0f}" if steps else "unknown"
    planned = _number(config.get("steps"))
    if steps and planned is not None:
        done += f" of {planned:.0f}"
        done += " (the run is not finished)" if steps[-1]["step"] < planned else ""
    seconds = _number(env.get("seconds")) or max(
        (s for row in steps if (s := _number(row.get("seconds"))) is not None), default=None
    )
    return {
        "model": str(_section(config, "model").get("path", "unknown")),
        "schedule": str(config.get("schedule", "unknown")),
        "reward": str(_section(config, "reward").get("name", "unknown")),
        "loss": str(_section(config, "loss").get("name", "unknown")),
        "steps": done,
        "wall time": "unknown" if seconds is None else _duration(seconds),
    }


def _inputs(env: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each direction: how many inputs are used, and what was left out or changed."""
    found = []
    for direction, title in DIRECTIONS.items():
        counts = _section(env, "inputs", direction)
        given = counts.get("kinds")
        rows = [row for row in given if isinstance(row, dict)] if isinstance(given, list) else []
        if counts:
            kinds = [
                {
                    "kind": str(row.get("kind")),
                    "what": "skipped" if row.get("skipped") else "changed and used",
                    "count": _decimals(row.get("count"), ".0f"),
                    "names": [str(n) for n in row.get("names") or ()],
                }
                for row in rows
            ]
            used, skipped = (_decimals(counts.get(k), ".0f") for k in ("inputs", "skipped"))
            found.append({"title": title, "used": used, "skipped": skipped, "kinds": kinds})
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _score_groups(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluation as titled groups of rows; groups and rows without a figure are left out."""
    places: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for inside, title, start in (((), "Overall", ""), (("held_out",), "Held out", "held out: ")):
        places[title] = [(label, (skill, *inside)) for skill, label in SKILLS.items()]
        for skill, label in SKILLS.items():
            where = (skill, *inside, "kinds")
            kinds = _section(scores, "base", *where) | _section(scores, "tuned", *where)
            by_kind = f"{start}{label} by kind".capitalize()
            places[by_kind] = [(str(kind), (*where, kind)) for kind in kinds]
    groups = []
    for title, found in places.items():
        rows = [row for label, where in found if (row := _score_row(scores, label, where))]
        if rows:
            groups.append({"title": title, "rows": rows})
    return groups


def _score_row(scores: dict[str, Any], label: str, where: tuple[str, ...]) -> dict[str, Any]:
    """One line of the table; empty where neither model has a figure."""
    base, tuned = (_score(_section(scores, model, *where)) for model in ("base", "tuned"))
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
    """One figure and its interval. An unknown end is nan, which is never above or below another."""
    given = block.get("interval")
    ends = [_number(end) for end in given] if isinstance(given, list) else []
    low, high = ends if len(ends) == 2 else (None, None)
    known = low is not None and high is not None
    return {
        "accuracy": _number(block.get("accuracy")),
        "text": _decimals(block.get("accuracy")),
        "ends": f"[{low:.2f}, {high:.2f}]" if known else "",
        "low": low if known else math.nan,
        "high": high if known else math.nan,
        "n": "" if _number(block.get("n")) is None else f"n = {block['n']:g}",
    }


def _samples(run_dir: Path) -> dict[str, Any]:
    rows, notes = _read_lines(run_dir, "samples/samples.jsonl")
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
        pictures.append({"who": who, "right": row.get(f"{who}_right"), **_picture(run_dir, name)})
    prompt, kind = str(row.get("prompt", "")), str(row.get("kind") or "")
    return {"prompt": prompt, "kind": kind, "pictures": pictures}


def _groups(run_dir: Path) -> dict[str, Any]:
    rows, notes = _read_lines(run_dir, "rollouts.jsonl")
    newest = sorted(rows, key=lambda row: _number(row.get("step")) or 0)
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
    rewards = [r for v in given if (r := _number(v)) is not None] if isinstance(given, list) else []
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    return {
        "step": _decimals(row.get("step"), ".0f"),
        "direction": DIRECTIONS.get(direction, direction),
        "size": _decimals(row.get("group_size", len(rewards)), ".0f"),
        "input": _shown(run_dir, row.get("input_text"), row.get("input_image")),
        "outputs": [
            {
                "which": which,
                "reward": _decimals(output.get("reward")),
                "right": output.get("right"),
                **_shown(run_dir, output.get("text"), output.get("image")),
            }
            for which in ("best", "worst")
            if (output := _section(row, which))
        ],
        "marks": [round(4 + 192 * (r - low) / (high - low), 1) for r in rewards if high > low],
        "equal": len(rewards) > 1 and high == low,
    }


def _shown(run_dir: Path, text: Any, image: Any) -> dict[str, Any]:
    """An input or output as text or picture. A picture's caption of no words is still a text."""
    if isinstance(text, str):
        return {"text": text}
    return _picture(run_dir, image)


# Curves.


def _window(count: int) -> int:
    return max(5, count // 10)


def _moving_average(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """At each point the mean of the last `window` ones, or of as many as there are."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    starts = [max(0, end - window) for end in range(1, len(sums))]
    means = [(sums[i + 1] - sums[start]) / (i + 1 - start) for i, start in enumerate(starts)]
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def _not_finite(steps: list[dict[str, Any]]) -> list[str]:
    """Curves leave out what is not finite, so it is said aloud."""
    notes = []
    for key in ("loss", "grad_norm"):
        values = [row.get(key) for row in steps]
        bad = sum(isinstance(value, float) and not math.isfinite(value) for value in values)
        if bad:
            notes.append(f"{key} is not finite at {bad} of {len(steps)} steps.")
    return notes


def _curve(index: int, steps: list[dict[str, Any]], unit: str) -> dict[str, str]:
    """One figure: title, unit and inline SVG; empty where no metric has a value."""
    title, own_unit, keys = PLOTS[index]
    series = {
        key: [(row["step"], y) for row in steps if (y := _number(row.get(key))) is not None]
        for key in keys
    }
    series = {key: points for key, points in series.items() if points}
    if not series:
        return {}
    # text stays text, so that the page's font and colour apply
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "viceversa"}):
        figure = Figure(figsize=(4, 2.5), layout="constrained")
        FigureCanvasSVG(figure)
        _draw(figure, series, _window(len(steps)), legend=len(keys) > 1)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
    svg = _inline(buffer.getvalue(), f"plot{index}-", title)
    return {"title": title, "unit": own_unit or unit, "svg": svg}


def _draw(
    figure: Figure, series: dict[str, list[tuple[float, float]]], window: int, legend: bool
) -> None:
    axes = figure.subplots()
    for key, points in series.items():
        label, colour, style = STYLES[key.partition("/")[0] if "/" in key else ""]
        means = _moving_average(points, window)
        stride = -(-len(points) // POINTS_SHOWN)
        axes.plot(*zip(*points[::stride], strict=True), ".", color=colour, alpha=0.25, ms=4)
        # thinned from the end, so that the latest step is always drawn
        line = zip(*means[::-stride], strict=True)
        axes.plot(*line, style, color=colour, linewidth=1.8, label=label)
    values = [y for points in series.values() for _, y in points]
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    if legend:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, fontsize=9)


def _inline(svg: str, prefix: str, title: str) -> str:
    """matplotlib's SVG file as an element of a page: ids of its own, CSS colours, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}, by step" ', 1)
    return svg
