"""Whether two commits train alike: the same runs on both, and their rewards, losses and gradients.

    python benchmarks/same_behaviour.py 333196c            # against the files in this checkout
    python benchmarks/same_behaviour.py 333196c 969f302 --steps 5

Each run is `viceversa train` on a tiny Janus of random weights and the built-in world, in one
thread, so that only the code differs. Exit code 0 only if every number of every step agrees to
`--tolerance` relative; a number that only one side writes is named and not compared.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).parents[1]

LOSSES = {
    "grpo": ["loss.name=grpo"],
    "grpo, two updates": ["loss.name=grpo", "loss.updates_per_rollout=2"],
    "grpo, likelihoods": ["loss.name=grpo", "reward.likelihood_power=4", "loss.group_share=0.5"],
    "simpo": ["loss.name=simpo"],
    "dpo": ["loss.name=dpo"],
    "raft": ["loss.name=raft"],
    "frozen scorer and KL": ["reward.scorer=frozen", "loss.t2i_kl=0.1", "loss.i2t_kl=0.1"],
}
SCHEDULES = ["joint", "alternate"]
SMALL = [
    "data.prompts_per_step=4",
    "data.images_per_step=4",
    "sampling.group_size=4",
    "sampling.max_caption_tokens=8",
    "eval.specs_per_kind=0",
    "train.learning_rate=1e-3",
    "train.save_strategy=no",
]
#: Options that have another name at older commits, where the source lacks the new one.
BEFORE = {"reward.likelihood_power": "loss.likelihood_power"}
#: Not a matter of behaviour.
TIMES = ("seconds", "per_second", "runtime")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", nargs="?", help="a commit (default: the files in this checkout)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES))
    given = parser.parse_args()
    console = Console()
    worst, alone = 0.0, set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [source_of(commit, folder) for commit in (given.before, given.after)]
        model = build_model(folder / "model", sides[0])
        for loss, schedule in itertools.product(given.losses, SCHEDULES):
            settings = [*SMALL, *LOSSES[loss], f"schedule={schedule}", f"steps={given.steps}"]
            runs = [
                train(side, model, folder / f"{i}-{loss}-{schedule}", settings)
                for i, side in enumerate(sides)
            ]
            far, differ = farthest(*runs)
            alone |= differ
            worst = max(worst, far)
            console.print(f"{loss}, {schedule}: {far:.1e} relative at most")
    for key in sorted(alone):
        console.print(f"only one side writes {key}")
    console.print(f"{worst:.1e} relative at most, {given.tolerance:.0e} allowed")
    return int(worst > given.tolerance)


def source_of(commit: str | None, folder: Path) -> Path:
    """The package's source at a commit, unpacked; None: this checkout's."""
    if commit is None:
        return ROOT / "src"
    out = folder / commit
    out.mkdir(exist_ok=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "src"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(out)], input=archive.stdout, check=True)
    return out / "src"


def build_model(folder: Path, source: Path) -> Path:
    """A tiny Janus of random weights, by the builder of the first side's package."""
    build = (
        "import sys, torch\n"
        "try: from viceversa.pretrain import tiny\n"
        "except ImportError: from viceversa.models import tiny\n"
        "torch.manual_seed(0)\n"
        "processor = tiny.build_processor()\n"
        "model = tiny.build_model(tiny.build_config(processor, width=32, layers=2))\n"
        "for name, p in model.named_parameters():\n"
        "    if p.ndim > 1 and 'vqmodel' not in name: p.data.mul_(4)\n"
        "model.save_pretrained(sys.argv[1]); processor.save_pretrained(sys.argv[1])\n"
    )
    python(source, ["-c", build, str(folder)])
    return folder


def train(source: Path, model: Path, out: Path, settings: list[str]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, and of rollouts.jsonl, of one run."""
    print_options = "from viceversa.config import *; print(to_dict(Config()))"
    known = ast.literal_eval(python(source, ["-c", print_options]))
    for new, old in BEFORE.items():
        section, _, name = new.partition(".")
        if name not in known[section]:
            settings = [s.replace(new, old) for s in settings]
    options = [f"--set={s}" for s in settings]
    command = ["-m", "viceversa", "train", "--model", str(model), "--output", str(out), *options]
    python(source, command)
    files = (out / "metrics.jsonl", out / "rollouts.jsonl")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def python(source: Path, command: list[str]) -> str:
    """Run a command with the package of one side; return what it prints."""
    here = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **here}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{source}: {done.stderr}")
    return done.stdout


def farthest(before: list[Any], after: list[Any]) -> tuple[float, set[str]]:
    """The largest relative difference of numbers of one name, and the names that one side lacks."""
    if len(before) != len(after):
        return math.inf, set()
    worst, alone = 0.0, set()
    for old, new in zip(before, after, strict=True):
        mine, theirs = dict(numbers(old)), dict(numbers(new))
        alone |= mine.keys() ^ theirs.keys()
        for key in mine.keys() & theirs.keys():
            gap = abs(mine[key] - theirs[key])
            size = max(abs(mine[key]), abs(theirs[key]), 1e-3)
            worst = max(worst, gap / size if math.isfinite(gap) else math.inf)
    return worst, alone


def numbers(row: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a row, by name, times left out."""
    if isinstance(row, dict):
        for key, value in row.items():
            if not any(t in key for t in TIMES):
                yield from numbers(value, f"{name}/{key}".lstrip("/"))
    elif isinstance(row, list):
        for i, value in enumerate(row):
            yield from numbers(value, f"{name}/{i}")
    elif isinstance(row, int | float) and not isinstance(row, bool):
        yield name, float(row)


if __name__ == "__main__":
    sys.exit(main())
