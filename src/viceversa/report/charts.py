"""Draws the curves of a run as inline SVG."""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from viceversa.report.reading import number
from viceversa.report.skills import Skill

POINTS_SHOWN = 400  # of a curve: more only makes the page heavy

#: What matplotlib draws with, and the CSS that takes its place: curves follow light and dark.
INK = "#010101"
CSS_COLOURS = {INK: "currentColor", "#010102": "var(--t2i)", "#010103": "var(--i2t)"}
#: Of runs that are compared: 32 differ, and neighbours by colour and by dashes.
RUN_COLOURS = [f"#0101{place:02x}" for place in range(0x10, 0x18)]
CSS_COLOURS |= {colour: f"var(--r{place})" for place, colour in enumerate(RUN_COLOURS)}
DASHES = ("", "6 2", "2 2", "6 2 2 2")
#: Label, colour and line of a metric, by what stands before its slash.
STYLES = {
    "t2i": ("to picture", "#010102", "-"),
    "i2t": ("to caption", "#010103", "--"),
    "": ("whole step", INK, ":"),
}

#: Title, unit ("" takes the reward's), metrics. Rewards of the two directions differ in scale.
PLOTS = (
    ("Reward, prompt to picture", "", ("t2i/reward_mean",)),
    ("Reward, picture to caption", "", ("i2t/reward_mean",)),
    ("Held-out prompts, judged by the base", "nats per token", ("t2i/held_out",)),
    ("Held-out pictures, judged by the base", "nats per token", ("i2t/held_out",)),
    ("Verified right", "share of samples", ("t2i/verified", "i2t/verified")),
    ("A right output outranks a wrong one", "share of pairs", ("t2i/ranking", "i2t/ranking")),
    ("Reward gap, best minus worst", "", ("t2i/reward_gap", "i2t/reward_gap")),
    ("Gradient norm", "2-norm", ("grad_norm", "t2i/grad_norm", "i2t/grad_norm")),
)

#: What runs are compared by, one metric a plot, so that a line is a run.
COMPARED = (
    ("Reward, prompt to picture", "", "t2i/reward_mean"),
    ("Reward, picture to caption", "", "i2t/reward_mean"),
    ("Verified right, pictures", "share of samples", "t2i/verified"),
    ("Verified right, captions", "share of samples", "i2t/verified"),
    ("A right picture outranks a wrong one", "share of pairs", "t2i/ranking"),
    ("A right caption outranks a wrong one", "share of pairs", "i2t/ranking"),
    ("Reward gap, pictures", "", "t2i/reward_gap"),
    ("Reward gap, captions", "", "i2t/reward_gap"),
    ("Gradient norm", "2-norm", "grad_norm"),
)

SKILLS_TITLE = "Each skill, before and after"


def curves(steps: list[dict[str, Any]], unit: str) -> list[dict[str, Any]]:
    """Draw PLOTS, those that have a value: title, unit, inline SVG and style rules of each."""
    return [plot for i in range(len(PLOTS)) if (plot := _curve(i, steps, unit))]


def window(count: int) -> int:
    """Return how many of `count` steps a moving average takes together."""
    return max(5, count // 10)


def _moving_average(points: list[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return, at each point, the mean of the last `window` ones, or of as many as there are."""
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    starts = [max(0, end - window) for end in range(1, len(sums))]
    means = [(sums[i + 1] - sums[start]) / (i + 1 - start) for i, start in enumerate(starts)]
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def not_finite(steps: list[dict[str, Any]]) -> list[str]:
    """Count steps that are not finite: curves leave them out."""
    notes = []
    for key in ("loss", "grad_norm"):
        values = [row.get(key) for row in steps]
        bad = sum(isinstance(value, float) and not math.isfinite(value) for value in values)
        if bad:
            notes.append(f"{key} is not finite at {bad} of {len(steps)} steps.")
    return notes


def overlaid(runs: Sequence[list[dict[str, Any]]], unit: str) -> list[dict[str, Any]]:
    """Draw COMPARED, those that two runs or more have, a line a run; fields as in `curves`."""
    plots = []
    for index, (title, own_unit, key) in enumerate(COMPARED):
        lines = [_points(steps, key) for steps in runs]
        if sum(map(bool, lines)) > 1:
            figure = Figure(figsize=(4, 2.5), layout="constrained")
            _overlay(figure.subplots(), lines)
            svg = _svg(figure, f"overlay{index}-", f"{title}, by step, a line a run")
            plots.append({"title": title, "unit": own_unit or unit, **svg})
    return plots


def _overlay(axes: Axes, lines: Sequence[list[tuple[float, float]]]) -> None:
    for place, points in enumerate(lines):
        if points:
            means = _moving_average(points, window(len(points)))
            stride = -(-len(points) // POINTS_SHOWN)
            (line,) = axes.plot(*zip(*means[::-stride], strict=True), linewidth=1.8)
            colour, dash = run_style(place)
            line.set_color(colour)
            if dash:
                line.set_linestyle((0, tuple(map(float, dash.split()))))
    _scaled(axes, [y for points in lines for _, y in points])


def run_style(place: int) -> tuple[str, str]:
    """Return the stand-in colour and the dash pattern of the run at this place."""
    lap, colour = divmod(place, len(RUN_COLOURS))
    return RUN_COLOURS[colour], DASHES[(place + lap) % len(DASHES)]


def _points(steps: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], y) for row in steps if (y := number(row.get(key))) is not None]


def _curve(index: int, steps: list[dict[str, Any]], unit: str) -> dict[str, Any]:
    """Return one figure, fields as in `curves`; nothing where no metric has a value."""
    title, own_unit, keys = PLOTS[index]
    series = {key: points for key in keys if (points := _points(steps, key))}
    if not series:
        return {}
    figure = Figure(figsize=(4, 2.5), layout="constrained")
    _draw(figure, series, window(len(steps)) / len(steps), legend=len(keys) > 1)
    svg = _svg(figure, f"plot{index}-", f"{title}, by step")
    return {"title": title, "unit": own_unit or unit, **svg}


def arrows(rows: Sequence[Skill]) -> dict[str, Any]:
    """Return the chart of `skill_figure`, fields as in `curves`; nothing where there is none."""
    figure = skill_figure(rows)
    if figure is None:
        return {}
    svg = _svg(figure, "skills-", SKILLS_TITLE)
    return {"title": SKILLS_TITLE, "unit": "accuracy", **svg}


def skill_figure(rows: Sequence[Skill]) -> Figure | None:
    """Draw each skill's accuracy of captions over drawing, an arrow from before to after."""
    ends = {
        row.name: [(f.before, f.after) for t in ("t2i", "i2t") if (f := row.figures.get(t))]
        for row in rows
    }
    whole = {n: e for n, e in ends.items() if len(e) == 2 and None not in (e[0][1], e[1][1])}
    if not whole:
        return None
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color=INK, alpha=0.4, linewidth=1)
    for name, ((left, right), (bottom, top)) in whole.items():
        start, end = (left, bottom), (right, top)
        mean = name == rows[0].name
        style = {"arrowstyle": "-|>", "color": INK, "linewidth": 2.6 if mean else 1.3}
        axes.annotate("", end, start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})
        axes.plot(*start, "o", color=INK, ms=4)
        place = {"textcoords": "offset points", "xytext": (-3, -13), "fontsize": 9, "color": INK}
        axes.annotate(name, start, **place)  # ends meet where all is known
    axes.set(xlim=(0, 1.05), ylim=(0, 1.05), aspect="equal")
    axes.set_xlabel("drawing", color=INK)
    axes.set_ylabel("captions", color=INK)
    _plain(axes)
    return figure


def _draw(
    figure: Figure, series: dict[str, list[tuple[float, float]]], share: float, legend: bool
) -> None:
    """Draw each series and its moving average over a share of the steps."""
    axes = figure.subplots()
    for key, points in series.items():
        label, colour, style = STYLES[key.partition("/")[0] if "/" in key else ""]
        means = _moving_average(points, max(1, round(share * len(points))))
        stride = -(-len(points) // POINTS_SHOWN)
        axes.plot(*zip(*points[::stride], strict=True), ".", color=colour, alpha=0.25, ms=4)
        # thinned from the end, so that the latest step is always drawn
        line = zip(*means[::-stride], strict=True)
        axes.plot(*line, style, color=colour, linewidth=1.8, label=label)
    _scaled(axes, [y for points in series.values() for _, y in points])
    if legend:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, fontsize=9)


def _scaled(axes: Axes, values: list[float]) -> None:
    """Label the axes of a curve; far apart values take a logarithmic one."""
    if min(values) > 0 and max(values) > 30 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _svg(figure: Figure, prefix: str, label: str) -> dict[str, Any]:
    """Return `svg`, an element of a page, and `rules`: the style of its classes, by name."""
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_alpha(0)
    buffer = io.StringIO()
    # text stays text, so that the page's font and colour apply
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "viceversa"}):
        FigureCanvasSVG(figure).print_svg(buffer)  # `savefig` would draw twice, to lay it out
    return _styled(_inline(buffer.getvalue(), prefix, label))


def _inline(svg: str, prefix: str, label: str) -> str:
    """Make matplotlib's SVG file an element of a page: own ids, CSS colours, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return svg


def _styled(svg: str) -> dict[str, Any]:
    """Move styles of single elements into classes: the page's policy takes no other style."""
    rules: dict[str, str] = {}

    def classed(found: re.Match[str]) -> str:
        rule = html.unescape(found[1])
        name = "s" + hashlib.sha256(rule.encode()).hexdigest()[:10]
        rules[name] = rule
        return f'class="{name}"'

    return {"svg": re.sub(r'\bstyle="([^"]*)"', classed, svg), "rules": rules}
