"""The audit's verdicts (audit_verdicts.json) held against training on the same three bases.

    git archive a6d4f98 src/viceversa/assets/tiny-janus | tar -x -C former
    python benchmarks/audit_training.py --former former/src/viceversa/assets/tiny-janus

Each base is trained in both directions by the plain reward, as was audited, 100 steps of the
recipe, three seeds, captions at the weight that the verdict gives, or WEIGHT where it trains
drawing alone: what the verdict leaves out is trained, too, or it could not be found wrong. A run
whose figures are in the folder of figures is not repeated; `--share 1/2` takes every second one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from audit_verdicts import RESULTS, damaged
from measured import EVALUATION_SEED, MORE_REPLAY, cell, change, figures_of, row, trained
from rich.console import Console

from viceversa.config import EvalConfig
from viceversa.report.paired import Change
from viceversa.report.skills import TASKS
from viceversa.types import DIRECTIONS

WEIGHT = 0.5
SEEDS = (1, 2, 3)
SETTINGS = EvalConfig(100, 0, "test", EVALUATION_SEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--former", required=True, help="the folder of the former bundled model")
    parser.add_argument("--bases", nargs="+", default=["damaged", "former", "bundled"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--share", default="1/1", help="k/n: run k of every n")
    parser.add_argument("--output", type=Path, default=Path("runs/audit"))
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "audit_figures")
    given = parser.parse_args()
    verdicts = json.loads(RESULTS.read_text(encoding="utf-8"))
    part, parts = map(int, given.share.split("/"))
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        places = {"bundled": "builtin", "former": given.former}
        places["damaged"] = damaged(Path(folder) / "damaged")
        runs = [(seed, name) for seed in SEEDS for name in given.bases]
        for seed, name in runs[part - 1 :: parts]:
            run(places[name], name, seed, verdicts[name]["verdict"]["i2t_weight"], given, console)
        for name in given.bases:
            figures_of(places[name], given.figures / f"{name}-base.json", SETTINGS)
    console.print(*table(given, verdicts), sep="\n", highlight=False, soft_wrap=True)


def run(
    base: str, name: str, seed: int, weight: float, given: argparse.Namespace, console: Console
) -> None:
    """Train and measure one base with one seed, unless its figures are there."""
    path = given.figures / f"{name}-{seed}.json"
    if path.exists():
        return
    sets = [f"steps={given.steps}", f"model.path={base}", f"seed={seed}", *MORE_REPLAY]
    sets += ["reward.t2i_own=0", "reward.i2t_own=0", f"loss.i2t_weight={weight or WEIGHT}"]
    figures_of(trained("builtin", sets, given.output / f"{name}-{seed}", console), path, SETTINGS)


def table(given: argparse.Namespace, verdicts: dict[str, Any]) -> list[str]:
    """Return what was said beforehand and what came of it, base by base."""
    lines = [row(["base", "direction", "verdict", "accuracy", "after", "held"]), row(["---"] * 6)]
    for name in given.bases:
        base = json.loads((given.figures / f"{name}-base.json").read_text(encoding="utf-8"))
        paths = sorted(given.figures.glob(f"{name}-[0-9].json"))
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for direction in DIRECTIONS if runs else ():
            advised = verdicts[name]["verdict"]["train"] in ("both", direction)
            found = change(base, runs, direction)
            assert found is not None
            said = "train" if advised else "leave"
            before = f"{base[direction]['accuracy']:.3f}"
            after = cell(base, runs, direction)
            lines.append(row([name, TASKS[direction], said, before, after, held(advised, found)]))
    return lines


def held(advised: bool, found: Change) -> str:
    """Say whether a verdict held: to train where it gains, to leave where it does not."""
    if found.low > 0:
        return "yes" if advised else "no"
    if advised:
        return "no" if found.high < 0 else "not told"
    return "yes"


if __name__ == "__main__":
    main()
