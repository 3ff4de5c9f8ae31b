"""Draws the curves of a run as inline SVG."""

from __future__ import annotations

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
    ("Verified right", "share of samples", ("t2i/verified", "i2t/verified")),
    ("A right output outranks a wrong one", "share of pairs", ("t2i/ranking", "i2t/ranking")),
    ("Reward gap, best minus worst", "", ("t2i/reward_gap", "i2t/reward_gap")),
    ("Gradient norm", "2-norm", ("grad_norm", "t2i/grad_norm", "i2t/grad_norm")),
)


SKILLS_TITLE = "Each skill, before and after"


def curves(steps: list[dict[str, Any]], unit: str) -> list[dict[str, str]]:
    """Draw PLOTS, those that have a value: title, unit and inline SVG of each."""
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


def _curve(index: int, steps: list[dict[str, Any]], unit: str) -> dict[str, str]:
    """Return one figure: title, unit and inline SVG; nothing where no metric has a value."""
    title, own_unit, keys = PLOTS[index]
    series = {
        key: [(row["step"], y) for row in steps if (y := number(row.get(key))) is not None]
        for key in keys
    }
    series = {key: points for key, points in series.items() if points}
    if not series:
        return {}
    figure = Figure(figsize=(4, 2.5), layout="constrained")
    _draw(figure, series, window(len(steps)), legend=len(keys) > 1)
    svg = _svg(figure, f"plot{index}-", f"{title}, by step")
    return {"title": title, "unit": own_unit or unit, "svg": svg}


def arrows(rows: Sequence[Skill]) -> dict[str, str]:
    """Return the chart of `skill_figure` as inline SVG; nothing where no skill has both figures."""
    figure = skill_figure(rows)
    if figure is None:
        return {}
    return {"title": SKILLS_TITLE, "unit": "accuracy", "svg": _svg(figure, "skills-", SKILLS_TITLE)}


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
    _plain(axes)
    if legend:
        figure.legend(loc="outside upper left", ncols=3, frameon=False, labelcolor=INK, fontsize=9)


def _plain(axes: Axes) -> None:
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)


def _svg(figure: Figure, prefix: str, label: str) -> str:
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    # text stays text, so that the page's font and colour apply
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "viceversa"}):
        figure.savefig(buffer, format="svg", transparent=True)
    return _inline(buffer.getvalue(), prefix, label)


def _inline(svg: str, prefix: str, label: str) -> str:
    """Make matplotlib's SVG file an element of a page: own ids, CSS colours, no metadata."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return svg
