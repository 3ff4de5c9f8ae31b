"""The main job, method by method and seed by seed, on the built-in world; prints a table.

    python benchmarks/main_job.py                      # every method, seeds 0 1 2
    python benchmarks/main_job.py --methods grpo --seeds 0

A run that is already in the output folder is not repeated. About nine minutes a run on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from viceversa.config import load_config
from viceversa.evaluate import Z95
from viceversa.run import train

#: method -> overrides of the defaults. Learning rates are each method's own best on the tuning
#: specs (LOG.md).
METHODS: dict[str, list[str]] = {
    "grpo": [],
    "simpo": ["loss.name=simpo"],
    "random": ["reward.name=random"],
    "verifier": ["reward.name=verifier"],
}
TASKS = {"t2i": "drawing", "i2t": "captions", "questions": "questions"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--specs", type=int, default=300, help="specs of each kind")
    parser.add_argument("--output", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    console = Console()
    table: dict[str, list[dict[str, Any]]] = {}
    for method in given.methods:
        for seed in given.seeds:
            out = given.output / f"{method}-{seed}"
            if not finished(out):
                overrides = [f"seed={seed}", f"output_dir={out}"]
                overrides += [f"eval.specs_per_kind={given.specs}", "eval.held_out_per_kind=100"]
                config = load_config(None, [*overrides, *METHODS[method], *given.overrides])
                console.rule(out.name)
                train(config, console)
            table.setdefault(method, []).append(json.loads((out / "eval.json").read_text()))
    console.print(markdown(table), highlight=False, soft_wrap=True)


def finished(out: Path) -> bool:
    path = out / "eval.json"
    return path.exists() and "tuned" in json.loads(path.read_text())


def markdown(table: dict[str, list[dict[str, Any]]]) -> str:
    """Base, then each method: mean over seeds, 95 % interval over inputs and seeds together."""
    lines = ["| model | " + " | ".join(TASKS.values()) + " | drawing, held out |"]
    lines.append("|---" * (len(TASKS) + 2) + "|")
    runs = next(iter(table.values()))
    lines.append("| base | " + " | ".join(cells(runs[:1], "base")) + " |")
    for method, runs in table.items():
        lines.append(f"| {method} | " + " | ".join(cells(runs, "tuned")) + " |")
    return "\n".join(lines)


def cells(runs: list[dict[str, Any]], which: str) -> list[str]:
    found = [combined([run[which][task] for run in runs]) for task in TASKS]
    return [*found, combined([run[which]["t2i"]["held_out"] for run in runs])]


def combined(figures: list[dict[str, Any]]) -> str:
    """The seeds share their specs, so only the spread over seeds shrinks with their number."""
    values = [f["accuracy"] for f in figures]
    inputs = statistics.mean(
        ((f["interval"][1] - f["interval"][0]) / 2 / Z95) ** 2 for f in figures
    )
    seeds = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    half = Z95 * math.sqrt(inputs + seeds)
    mean = statistics.mean(values)
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


if __name__ == "__main__":
    main()
