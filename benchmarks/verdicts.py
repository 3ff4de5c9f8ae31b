"""The sentence without labels beside the truth, for runs on the built-in world.

python benchmarks/verdicts.py                      # the runs below, trained where they are not
python benchmarks/verdicts.py --runs good rate-x10
python benchmarks/verdicts.py --runs mine=runs/a/checkpoint-200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from measured import EVALUATION_SEED, by_task, trained
from rich.console import Console

from viceversa.config import EvalConfig, ModelConfig, load_config
from viceversa.measure.held_out import compare, write_all
from viceversa.models import load_adapter
from viceversa.scenes.evaluate import evaluate_scenes
from viceversa.scenes.world import Scenes
from viceversa.types import DIRECTIONS

TOO_FAST = ["reward.scorer=live", "steps=60", "seed=1"]
#: run -> recipe, and overrides of it
RUNS: dict[str, tuple[str, list[str]]] = {
    "rate-0": ("builtin", ["train.learning_rate=0", "steps=10", "seed=1"]),
    "good": ("builtin", ["seed=3"]),
    "plain": ("builtin-plain", ["seed=1"]),
    "random": ("builtin", ["reward.name=random", "train.learning_rate=3e-5", "seed=1"]),
    "rate-x3.3": ("builtin", ["train.learning_rate=1.5e-3", *TOO_FAST]),
    "rate-x10": ("builtin", ["train.learning_rate=4.5e-3", *TOO_FAST]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--runs", nargs="+", default=list(RUNS), metavar="RUN", help="a known one, or name=folder"
    )
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--output", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--specs", type=int, default=50, help="specs of each kind, for the truth")
    given = parser.parse_args()
    console = Console()
    folders = dict(checkpoint(run, given, parser, console) for run in given.runs)
    config = load_config("builtin", [f"model.path={given.base}"])
    settings = EvalConfig(given.specs, 0, "test", EVALUATION_SEED)
    count = config.eval.held_out_inputs
    inputs: Any = {d: Scenes().held_out(d, config.seed, count) for d in DIRECTIONS}
    base = load_adapter(config.model)
    written, truth = write_all(base, inputs, config), evaluate_scenes(base, settings)
    table = {}
    for name, folder in folders.items():
        tuned = load_adapter(ModelConfig(path=folder))
        found = compare(base, written, write_all(tuned, inputs, config), config).figures
        table[name] = [evaluate_scenes(tuned, settings)]
        console.print(f"{name}: {found['sentence']}", highlight=False, soft_wrap=True)
    console.print(*by_task(truth, table), sep="\n", highlight=False, soft_wrap=True)


def checkpoint(run: str, given: Any, parser: Any, console: Console) -> tuple[str, str]:
    """Return a run's name and its last checkpoint. A known run that is not there is trained."""
    name, _, folder = run.partition("=")
    if folder:
        return name, folder
    if name not in RUNS:
        parser.error(f"--runs {name}: known are {', '.join(RUNS)}; another one is name=folder")
    recipe, overrides = RUNS[name]
    sets = [f"model.path={given.base}", *overrides]
    return name, trained(recipe, sets, given.output / name, console)


if __name__ == "__main__":
    main()
