"""The sentence without labels beside the truth, for checkpoints trained on the built-in world.

python benchmarks/verdicts.py good=runs/a/checkpoint-200 collapse=runs/b/checkpoint-60
"""

from __future__ import annotations

import argparse
from typing import Any

from measured import EVALUATION_SEED, by_task
from rich.console import Console

from viceversa.config import EvalConfig, ModelConfig, load_config
from viceversa.measure.held_out import compare, write_all
from viceversa.models import load_adapter
from viceversa.scenes.evaluate import evaluate_scenes
from viceversa.scenes.world import Scenes
from viceversa.types import DIRECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoints", nargs="+", help="name=folder")
    parser.add_argument("--base", default="builtin")
    parser.add_argument("--specs", type=int, default=50, help="specs of each kind, for the truth")
    given = parser.parse_args()
    console = Console()
    config = load_config("builtin", [f"model.path={given.base}"])
    settings = EvalConfig(given.specs, 0, "test", EVALUATION_SEED)
    count = config.eval.held_out_inputs
    inputs: Any = {d: Scenes().held_out(d, config.seed, count) for d in DIRECTIONS}
    base = load_adapter(config.model)
    written, truth = write_all(base, inputs, config), evaluate_scenes(base, settings)
    table = {}
    for name, folder in (text.split("=", 1) for text in given.checkpoints):
        tuned = load_adapter(ModelConfig(path=folder))
        found = compare(base, written, write_all(tuned, inputs, config), config).figures
        table[name] = [evaluate_scenes(tuned, settings)]
        console.print(f"{name}: {found['sentence']}", highlight=False, soft_wrap=True)
    console.print(*by_task(truth, table), sep="\n", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
