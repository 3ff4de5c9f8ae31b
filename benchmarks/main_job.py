"""The main job, method by method and seed by seed, on the built-in world; prints tables.

    python benchmarks/main_job.py                      # every method, seeds 1 2 3
    python benchmarks/main_job.py --figures new --methods dual --seeds 4
    python benchmarks/main_job.py --base folder --figures new       # of another base

A run whose figures are in the folder of figures is not repeated; the folder beside this file holds
those of RESULTS.md. Pin it to one core (one thread) to run two at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measured import (
    EVALUATION_SEED,
    MORE_REPLAY,
    by_difference,
    by_skill,
    by_task,
    figures_of,
    mean,
    trained,
)
from rich.console import Console

from viceversa.config import EvalConfig
from viceversa.report.charts import skill_figure
from viceversa.report.skills import skills

#: Recipes of before, of 200 steps.
NO_REPLAY = ["steps=200", "replay.questions=''"]
BEFORE = ["steps=200", *MORE_REPLAY]
#: method -> recipe, and overrides of it. Learning rates come from tuning specs (LOG.md).
METHODS: dict[str, tuple[str, list[str]]] = {
    "dual": ("builtin", []),
    "plain": ("builtin-plain", []),
    "labels": ("builtin", ["reward.name=verifier", "train.learning_rate=7e-4"]),
    "labels-recipe-rate": ("builtin", ["reward.name=verifier"]),
    "random": ("builtin", ["reward.name=random", "train.learning_rate=3e-5", *BEFORE]),
    "dual-no-replay": ("builtin", NO_REPLAY),
    "plain-no-replay": ("builtin-plain", NO_REPLAY),
    "labels-no-replay": ("builtin", ["reward.name=verifier", *NO_REPLAY]),
    "dual-more-replay": ("builtin", BEFORE),
    "plain-more-replay": ("builtin-plain", BEFORE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--base", default="builtin", help="a model folder")
    parser.add_argument("--specs", type=int, default=300, help="specs of each kind")
    parser.add_argument("--split", default="test", choices=["test", "tune"])
    parser.add_argument("--output", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "main_job_figures")
    parser.add_argument("--plot", type=Path, help="draw an arrow a skill of the first method")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    console = Console()
    settings = EvalConfig(given.specs, 100, given.split, EVALUATION_SEED)
    base = figures_of(given.base, given.figures / "base.json", settings, best=True)
    table: dict[str, list[dict[str, Any]]] = {}
    for seed in given.seeds:  # a whole seed before the next: what is cut off can be compared
        for method in given.methods:
            path = given.figures / f"{method}-{seed}.json"
            recipe, overrides = METHODS[method]
            sets = [f"model.path={given.base}", f"seed={seed}", *overrides, *given.overrides]
            out = given.output / f"{method}-{seed}"
            model = "" if path.exists() else trained(recipe, sets, out, console)
            table.setdefault(method, []).append(figures_of(model, path, settings, best=True))
    show(base, table, console)
    if given.plot:
        plot(base, table[given.methods[0]], given.plot)


def plot(base: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> None:
    """Draw an arrow a skill, from the base to the mean over seeds."""
    tuned = {
        task: {
            "accuracy": mean(runs, task),
            "kinds": {k: {"accuracy": mean(runs, task, "kinds", k)} for k in base[task]["kinds"]},
        }
        for task in ("t2i", "i2t")
    }
    before = {task: {**base[task], "held_out": {}} for task in tuned}
    figure = skill_figure(skills({"base": before, "tuned": tuned}))
    assert figure is not None
    figure.savefig(path, dpi=110)


def show(base: dict[str, Any], table: dict[str, list[dict[str, Any]]], console: Console) -> None:
    """Print accuracies, their changes, and the changes by skill of the first method."""
    first, runs = next(iter(table.items()))
    parts = {
        "At temperature 1": by_task(base, table),
        "Each model at its own best decoding": by_task(base, table, "best"),
        f"By skill, {first}": by_skill(base, runs),
        f"By skill, {first}, at the best decoding": by_skill(base, runs, "best"),
    }
    if len(table) > 1:
        best = "Differences at the best decoding"
        parts["Differences at temperature 1"] = by_difference(base, table, first)
        parts[best] = by_difference(base, table, first, "best")
    for title, lines in parts.items():
        console.print(f"\n{title}\n", *lines, sep="\n", highlight=False, soft_wrap=True)
    for name, figures in {"base": [base], **table}.items():
        at = [
            f"{d} {f['best'][d]['temperature']}/{f['best'][d]['guidance']}"
            for f in figures
            for d in ("t2i", "i2t")
        ]
        console.print(f"{name}: temperature/guidance {', '.join(at)}", highlight=False)


if __name__ == "__main__":
    main()
