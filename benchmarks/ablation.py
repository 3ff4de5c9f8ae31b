"""The paper's claims, one factor at a time around the default recipe; prints a table.

    python benchmarks/ablation.py                   # every cell: 100 steps, one seed, tuning specs
    python benchmarks/ablation.py --final           # those that a verdict rests on: three seeds
    python benchmarks/ablation.py --cells schedule  # cells whose name begins so
    python benchmarks/ablation.py --plot claims.png # the table as a picture, from what is there

A cell whose figures are in the folder of figures is not repeated, so that it goes on where it was
stopped; they are kept apart by the base's hash. `--share 1/2` takes every second cell, to run two
at a time, each pinned to one core.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from candidates import CANDIDATES
from measured import (
    EVALUATION_SEED,
    MORE_REPLAY,
    by_difference,
    by_task,
    change,
    figures_of,
    trained,
)
from rich.console import Console

from viceversa.config import EvalConfig
from viceversa.models.loading import builtin_path
from viceversa.training.run import Given

STEPS = 100
RATES = ("1.5e-4", "4.5e-4", "9e-4")

#: cell -> overrides of the recipe. Every algorithm has its own search of rate and options.
CELLS: dict[str, list[str]] = {
    "default": [],
    "schedule t2i": ["schedule=t2i"],
    "schedule i2t": ["schedule=i2t", "loss.i2t_weight=1"],
    "schedule alternate": ["schedule=alternate", "steps=200"],
    **{
        f"{name} {rate}": [f"loss.name={name}", f"train.learning_rate={rate}"]
        for name in ("grpo", "simpo", "dpo", "raft")
        for rate in RATES
        if (name, rate) != ("grpo", "4.5e-4")
    },
    "grpo every group": ["loss.group_share=1"],
    "simpo every group": ["loss.name=simpo", "loss.group_share=1"],
    "simpo beta 20": ["loss.name=simpo", "loss.beta=20"],
    "dpo beta 0.5": ["loss.name=dpo", "loss.dpo_beta=0.5"],
    "raft every group": ["loss.name=raft", "loss.group_share=1"],
    "reward plain": ["reward.t2i_own=0", "reward.i2t_own=0"],
    "reward t2i term alone": ["reward.i2t_own=0"],
    "reward i2t term alone": ["reward.t2i_own=0"],
    "reward self_certainty": ["reward.name=self_certainty", "reward.likelihood_power=0"],
    "reward verifier": ["reward.name=verifier"],
    "reward random": ["reward.name=random"],
    "reward random 3e-5": ["reward.name=random", "train.learning_rate=3e-5"],
    "reward scenes_clip": ["reward.name=scenes_clip"],
    "candidate contrast": ["reward.name=contrast"],
    "candidate phrasings": ["reward.name=phrasings"],
    "candidate questions": ["reward.name=questions"],
    "candidate dual and questions": ["reward.add=[{name: questions, likelihood_power: 4}]"],
    "candidate even groups": ["reward.name=even_groups"],
    "power 0": ["reward.likelihood_power=0"],
    "power 1": ["reward.likelihood_power=1"],
    "group 4": ["sampling.group_size=4"],
    "group 16": ["sampling.group_size=16"],
    "scorer live": ["reward.scorer=live"],
    "scorer average": ["reward.scorer=average"],
    "scorer live, reward plain": ["reward.scorer=live", "reward.t2i_own=0", "reward.i2t_own=0"],
}
#: What the verdicts rest on.
FINAL = (
    "default",
    "schedule t2i",
    "schedule i2t",
    "simpo 4.5e-4",
    "reward plain",
    "reward self_certainty",
    "reward scenes_clip",
    "reward verifier",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", nargs="+", default=[""], help="beginnings of names")
    parser.add_argument("--final", action="store_true", help="seeds 1 2 3, 300 test specs a kind")
    parser.add_argument("--share", default="1/1", help="k/n: cell k of every n")
    parser.add_argument("--base", default="builtin", help="a model folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--specs", type=int, default=0, help="specs of each kind")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--figures", type=Path, default=Path(__file__).parent / "ablation_figures")
    parser.add_argument("--plot", type=Path, help="draw what has been measured, and end")
    given = parser.parse_args()
    settings = EvalConfig(given.specs or 100, 0, "tune", EVALUATION_SEED)
    if given.final:
        settings = EvalConfig(given.specs or 300, 0, "test", EVALUATION_SEED)
    folder = given.figures / hash_of(given.base) / ("final" if given.final else "search")
    base = figures_of(given.base, folder / "base.json", settings)
    names = [n for n in (FINAL if given.final else CELLS) if n.startswith(tuple(given.cells))]
    part, parts = map(int, given.share.split("/"))
    console = Console()
    for seed in (1, 2, 3) if given.final else (1,):
        for name in names[part - 1 :: parts] if not given.plot else ():
            run_cell(name, seed, folder, settings, given, console)
    table = {
        name: [figures_of("", p, settings) for p in sorted(folder.glob(f"{slug(name)}-[0-9].json"))]
        for name in names
    }
    table = {name: runs for name, runs in table.items() if runs}
    lines = by_task(base, table)
    if "default" in table and len(table) > 1:
        lines += ["", *by_difference(base, table, "default")]
    console.print(*lines, sep="\n", highlight=False, soft_wrap=True)
    if given.plot:
        plot(base, table, given.plot)


def run_cell(
    name: str, seed: int, folder: Path, settings: EvalConfig, given: Any, console: Console
) -> None:
    """Train and measure one cell, unless its figures are there."""
    path = folder / f"{slug(name)}-{seed}.json"
    if path.exists():
        return
    out = given.output / folder.parent.name / f"{slug(name)}-{seed}"
    sets = [f"steps={given.steps}", f"model.path={given.base}", f"seed={seed}"]
    sets += [*MORE_REPLAY, *CELLS[name]]
    rewards = {name: kind(given.base) for name, kind in CANDIDATES.items()}
    model = trained("builtin", sets, out, console, Given(rewards=rewards))
    figures_of(model, path, settings)


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def hash_of(base: str) -> str:
    """Name a base by its weights."""
    folder = builtin_path() if base == "builtin" else Path(base)
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def plot(base: dict[str, Any], table: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw each cell's changes of drawing and captions with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.3 * len(table) + 1), layout="constrained")
    for axes, (task, title) in zip(
        figure.subplots(1, 2, sharey=True), (("t2i", "drawing"), ("i2t", "captions")), strict=True
    ):
        for place, (name, runs) in enumerate(table.items()):
            found = change(base, runs, task)
            assert found is not None
            ends = [[found.value - found.low], [found.high - found.value]]
            axes.errorbar(
                found.value, place, xerr=ends, fmt="o", color="C1" if name == "default" else "C0"
            )
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set_yticks(range(len(table)), list(table))
        axes.set_title(f"{title}, change of accuracy")
        axes.invert_yaxis() if task == "t2i" else None
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
