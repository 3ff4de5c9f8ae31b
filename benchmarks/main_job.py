"""The main job, method by method and seed by seed, on the built-in world; prints a table.

    python benchmarks/main_job.py                      # every method, seeds 1 2 3
    python benchmarks/main_job.py --figures new --methods grpo --seeds 4

A run whose figures are in the folder of figures is not repeated; the folder beside this file holds
those of RESULTS.md. Pin it to one core (one thread) to run two at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console

from viceversa.config import EvalConfig, ModelConfig, load_config
from viceversa.models import load_adapter
from viceversa.scenes.evaluate import Z95, evaluate_scenes
from viceversa.training.run import train

#: method -> overrides of the recipe. Learning rates come from the tuning specs (LOG.md).
METHODS: dict[str, list[str]] = {
    "grpo": [],
    "simpo": ["loss.name=simpo", "train.learning_rate=2e-4"],
    "random": ["reward.name=random"],
    "verifier": ["reward.name=verifier", "train.learning_rate=5e-4"],
}
#: Seeds 0 and 5 of the specs served to choose a base and a recipe, seed 0 of training, too.
EVALUATION_SEED = 1
TASKS = {"t2i": "drawing", "i2t": "captions", "questions": "questions"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--specs", type=int, default=300, help="specs of each kind")
    parser.add_argument("--split", default="test", choices=["test", "tune"])
    parser.add_argument("--output", type=Path, default=Path("runs/main-job"))
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "main_job_figures")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    console = Console()
    settings = EvalConfig(given.specs, 100, given.split, EVALUATION_SEED)
    base = figures_of("builtin", given.figures / "base.json", settings)
    table: dict[str, list[dict[str, Any]]] = {}
    for method in given.methods:
        for seed in given.seeds:
            out = given.output / f"{method}-{seed}"
            path = given.figures / f"{out.name}.json"
            config = load_config(
                "builtin", [f"seed={seed}", f"output_dir={out}", *METHODS[method], *given.overrides]
            )
            config.eval.specs_per_kind = 0
            if not path.exists():
                console.rule(out.name)
                train(config, console)
            found = figures_of(str(out / f"checkpoint-{config.steps}"), path, settings)
            table.setdefault(method, []).append(found)
    console.print(markdown(base, table), highlight=False, soft_wrap=True)


def figures_of(model: str, path: Path, settings: EvalConfig) -> dict[str, Any]:
    """Measured once, then read from `path`."""
    if not path.exists():
        figures = evaluate_scenes(load_adapter(ModelConfig(path=model)), settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(base: dict[str, Any], table: dict[str, list[dict[str, Any]]]) -> str:
    """Base, then each method: mean over seeds, 95 % interval over inputs and seeds together."""
    lines = ["| model | " + " | ".join(TASKS.values()) + " | drawing, held out |"]
    lines.append("|---" * (len(TASKS) + 2) + "|")
    lines.append("| base | " + " | ".join(cells([base])) + " |")
    for method, runs in table.items():
        lines.append(f"| {method} | " + " | ".join(cells(runs)) + " |")
    return "\n".join(lines)


def cells(runs: list[dict[str, Any]]) -> list[str]:
    found = [combined([run[task] for run in runs]) for task in TASKS]
    return [*found, combined([run["t2i"]["held_out"] for run in runs])]


def combined(figures: list[dict[str, Any]]) -> str:
    """The seeds share their specs, so only the spread over seeds shrinks with their number."""
    values = [f["accuracy"] for f in figures]
    inputs = statistics.mean(
        ((f["interval"][1] - f["interval"][0]) / 2 / Z95) ** 2 for f in figures
    )
    seeds = statistics.variance(values) / len(values) if len(values) > 1 else 0.0
    half = Z95 * math.sqrt(inputs + seeds)
    mean = statistics.mean(values)
    return f"{mean:.3f} [{max(0.0, mean - half):.3f}, {min(1.0, mean + half):.3f}]"


if __name__ == "__main__":
    main()
