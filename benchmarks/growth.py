"""How the cost of a training step grows: time and peak memory, size by size; a plot and exponents.

    python benchmarks/growth.py                              # every point, about 15 minutes
    python benchmarks/growth.py --axes group tokens          # some axes
    python benchmarks/growth.py --plot docs/growth.png       # also draw what is there

Each point trains a small Janus of random weights in fresh processes of one thread, by the package's
own training: both directions, GRPO, `--steps` optimizer steps after a first one that is not
counted. One size moves, the others stay. Times are medians over the steps, by phase, of the slower
process. Memory is the kernel's largest resident size (VmHWM) during these steps, above what the
process held when the model was loaded: gradients and Adam's two moments are in it, which no axis
but the vocabulary moves. A point that is in the file is not measured again, so a run that was
stopped goes on. The last lines are a table of exponents, in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from cases import narrow
from fits import Exponent, exponent
from fresh import MIB, Meter, child
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from transformers import JanusForConditionalGeneration, TrainerCallback

import viceversa as vv
from viceversa.files import write_whole
from viceversa.pretrain import tiny
from viceversa.rl import rewards

FIGURES = Path(__file__).parent / "growth.json"
#: The sizes of an axis, and what else its points change of COMMON.
AXES: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "group": ((2, 4, 8, 16, 32, 64), {"prompts": 2}),
    "tokens": ((64, 144, 256, 576, 1024), {"prompts": 2}),
    "vocabulary": ((1024, 4096, 16384, 65536), {"prompts": 2}),
    "prompts": ((1, 2, 4, 8, 16, 32), {"group": 4}),
    "processes": ((1, 2), {"prompts": 8}),
}
NAMES = {
    "group": "outputs a group",
    "tokens": "tokens a picture",
    "vocabulary": "image ids",
    "prompts": "prompts and pictures a step",
    "processes": "processes, the same step",
}
COMMON = {"group": 8, "tokens": 64, "vocabulary": 1024, "prompts": 4, "processes": 1}
PHASES = ("sample", "score", "backward")
COSTS = (*PHASES, "step", "mib")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--most", type=int, help="leave out sizes above this")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--figures", type=Path, default=FIGURES, help="a JSON file, read and added to"
    )
    parser.add_argument("--plot", type=Path, help="a picture to write")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(trained(Path(given.child[0]), given.child[1], given.child[2])))
        return
    found = measured(given)
    if given.plot:
        plot({axis: found[axis] for axis in given.axes}, given.plot)
    print(*table({axis: found[axis] for axis in given.axes}), sep="\n")


def measured(given: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Measure what the file lacks, written point by point: axis -> size -> cost."""
    found = json.loads(given.figures.read_text()) if given.figures.exists() else {}
    sizes = {a: [s for s in AXES[a][0] if s <= (given.most or s)] for a in given.axes}
    left = [(a, s) for a in given.axes for s in sizes[a] if str(s) not in found.setdefault(a, {})]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("points", total=len(left))
        for axis, size in left:
            progress.update(task, description=f"{axis} {size}")
            found[axis][str(size)] = point({**COMMON, **AXES[axis][1], axis: size}, given.steps)
            write_whole(given.figures, json.dumps(found, indent=1) + "\n")
            progress.advance(task)
    return found


def point(sizes: dict[str, int], steps: int) -> dict[str, float]:
    """Train in fresh processes; the costs of the slower and of the larger one."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, sizes)
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        several = [*launcher, str(sizes["processes"])] if sizes["processes"] > 1 else []
        child(__file__, [str(folder), sizes, steps], several)
        ranks = [json.loads(p.read_text()) for p in folder.glob("costs-*.json")]
    if len(ranks) != sizes["processes"]:
        raise SystemExit(f"{sizes}: {len(ranks)} of {sizes['processes']} processes left figures")
    return {cost: max(rank[cost] for rank in ranks) for cost in COSTS}


def prepare(folder: Path, sizes: dict[str, int]) -> None:
    """Leave random weights, a tokenizer, prompts of one length and pictures of noise."""
    side = round(sizes["tokens"] ** 0.5)
    if side**2 != sizes["tokens"]:
        raise SystemExit(f"a picture has a square number of tokens, not {sizes['tokens']}")
    processor: Any = tiny.build_processor()
    geometry = narrow(128, 2, side, sizes["vocabulary"], len(processor.tokenizer))
    geometry.image_token_id = processor.tokenizer.convert_tokens_to_ids(tiny.IMAGE)
    torch.manual_seed(0)
    JanusForConditionalGeneration(geometry).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    shapes = ("ring", "star", "square", "cross", "circle", "triangle", "heart", "moon")
    colours = ("red", "blue", "green", "yellow")
    prompts = [f"a {colour} {shape}" for colour in colours for shape in shapes]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0)
    for i in range(len(prompts)):
        pixels = noise.integers(0, 256, (16 * side, 16 * side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")


class Watch(TrainerCallback):
    """Memory above the loaded model, of every step but the first."""

    def __init__(self) -> None:
        self.meter = Meter(cuda=False)
        self.peak = 0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.meter.start()
        else:
            self.peak = self.meter.peak()


def trained(folder: Path, sizes: dict[str, int], steps: int) -> dict[str, float]:
    """Train in this process; leave and return its costs."""
    torch.set_num_threads(1)
    rank, watch = os.environ.get("RANK", "0"), Watch()
    # a random model's captions never stop; were they all invalid, nothing would be learned
    stops = mock.patch.object(
        rewards, "invalid_captions", lambda rollout: ~rollout.completions.completion_mask.any(-1)
    )
    with stops:
        run = vv.train(
            vv.load(str(folder / "model")),
            prompts=str(folder / "prompts.txt"),
            images=str(folder / "photos"),
            output=folder / "run",
            steps=steps + 1,
            options={
                "data.prompts_per_step": sizes["prompts"],
                "data.images_per_step": sizes["prompts"],
                "data.cache_dir": str(folder / f"cache-{rank}"),
                "sampling.group_size": sizes["group"],
                "sampling.max_caption_tokens": 16,
                "loss.direction_norms_every": 0,
                "eval.specs_per_kind": 0,
                "eval.held_out_inputs": 0,
                "train.use_cpu": True,
                "train.save_strategy": "no",
            },
            callbacks=[watch],
            console=Console(stderr=True),
        )
    costs = costs_of(run.metrics[1:]) | {"mib": watch.peak / MIB}
    write_whole(folder / f"costs-{rank}.json", json.dumps(costs))
    return costs


def costs_of(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Median seconds of each phase, over both directions, and of all three."""
    times = {p: [sum_of(row, f"{p}_seconds") for row in steps] for p in PHASES}
    whole = [sum(row) for row in zip(*times.values(), strict=True)]
    return {p: statistics.median(t) for p, t in {**times, "step": whole}.items()}


def sum_of(row: dict[str, Any], name: str) -> float:
    """The phase's seconds, of each direction where they are counted apart."""
    return sum(v for k, v in row.items() if k.rpartition("/")[2] == name)


def fitted(points: dict[str, dict[str, float]], cost: str) -> Exponent:
    xs = sorted(points, key=int)
    return exponent([int(x) for x in xs], [points[x][cost] for x in xs])


def table(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """Exponents by axis and cost; steeper than linear in bold."""
    lines = [
        "| what grows | sizes | sampling | reward | backward | step | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for axis, points in found.items():
        fits = [fitted(points, cost) for cost in COSTS]
        shown = [f"**{fit}**" if fit.steep else str(fit) for fit in fits]
        sizes = sorted(map(int, points))
        lines.append(f"| {NAMES[axis]} | {sizes[0]:,} to {sizes[-1]:,} | {' | '.join(shown)} |")
    return lines


def plot(found: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draw seconds by phase above, memory below, an axis a column, both scales logarithmic."""
    figure = Figure(figsize=(3 * len(found), 5.2), layout="constrained")
    grid: Any = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
    for (axis, points), (above, below) in zip(found.items(), grid.T, strict=True):
        xs = sorted(map(int, points))
        for phase in (*PHASES, "step"):
            ys = [points[str(x)][phase] for x in xs]
            above.plot(
                xs, ys, "o-", label=phase, markersize=3, linewidth=2 if phase == "step" else 1
            )
        below.plot(xs, [points[str(x)]["mib"] for x in xs], "o-", color="black", markersize=3)
        for axes in (above, below):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
        below.set_xticks(xs, [f"{x:,}" for x in xs], rotation=45)
        below.set_xlabel(NAMES[axis])
    grid[0][0].set_ylabel("seconds a step")
    grid[1][0].set_ylabel("MiB above the loaded model")
    grid[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
