"""Kills real runs, resumes them, and holds what they leave to runs that were never killed.

    python benchmarks/kill_resume.py --kills 20

A quarter of the kills each comes while sampling, in a backward pass, while a checkpoint is written
and while an old one is removed (killed.py). The runs go through every loss and scorer, LoRA,
streaming, directions in turn, several updates of a rollout, accumulated gradients and two
processes. Weights and metrics, times aside, must be equal bit by bit. Exit code 0 only if all are.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from viceversa.config import ModelConfig
from viceversa.models import load_adapter
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

KILLED = str(Path(__file__).with_name("killed.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]
TORCHRUN += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
#: Of a run. Two are kept: the third one is the first that removes another.
CHECKPOINTS = 5
COMMON = {
    "data.prompts_per_step": 4,
    "data.images_per_step": 4,
    "sampling.group_size": 4,
    "sampling.max_caption_tokens": 8,
    "eval.specs_per_kind": 0,
    "train.learning_rate": 3e-4,
    "train.warmup_steps": 0,
    "train.save_total_limit": 2,
    "train.use_cpu": "true",
}


@dataclass(frozen=True)
class Case:
    """A run; between two checkpoints lie one rollout and its updates."""

    name: str
    options: dict[str, Any]
    streaming: bool = False
    updates: int = 1
    accumulated: int = 1
    """Micro-steps of an optimizer step."""
    directions: int = 2
    """Sampled in one step."""
    processes: int = 1


CASES = [
    Case("simpo, streaming", {"loss.name": "simpo"}, streaming=True),
    Case(
        "grpo, frozen scorer, LoRA, two updates a rollout",
        {"loss.name": "grpo", "reward.scorer": "frozen", "lora.rank": 4, "lora.dropout": 0.1},
        updates=2,
    ),
    Case(
        "dpo, average scorer, accumulated gradients",
        {"loss.name": "dpo", "reward.scorer": "average", "reward.average_decay": 0.5},
        accumulated=2,
    ),
    Case(
        "raft, average scorer, LoRA, streaming, directions in turn",
        {"loss.name": "raft", "reward.scorer": "average", "lora.rank": 4, "schedule": "alternate"},
        streaming=True,
        directions=1,
    ),
    Case("grpo, two processes", {"loss.name": "grpo", "loss.t2i_kl": 0.1}, processes=2),
]


@dataclass(frozen=True)
class Kill:
    place: str
    call: int
    """Of the function that killed.py knows the place by."""
    event: int

    @staticmethod
    def draw(place: str, case: Case, rng: random.Random) -> Kill:
        """Anywhere after the first checkpoint."""
        first = 3 if place == "removal" else 2
        each = {"sampling": case.directions, "backward": case.accumulated * case.updates}
        calls = each.get(place, 1)
        call = rng.randint((first - 1) * calls + 1, CHECKPOINTS * calls)
        return Kill(place, call, rng.randint(1, EVENTS[place]))

    def __str__(self) -> str:
        return f"{SAID[self.place]} (call {self.call}, event {self.event})"


SAID = {
    "sampling": "while sampling",
    "backward": "in a backward pass",
    "checkpoint": "while a checkpoint is written",
    "removal": "while an old one is removed",
}
#: About as many as there are; where there are fewer, the call ends first.
EVENTS = {"sampling": 36, "backward": 40, "checkpoint": 42, "removal": 14}


class Workshop:
    """The folder that all runs lie in, with their model and data."""

    def __init__(self, folder: Path):
        (folder / "photos").mkdir()
        self.folder = folder
        specs = draw_specs(0, 4, "train")
        (folder / "prompts.txt").write_text("\n".join(map(caption, specs)))
        for i, spec in enumerate(specs):
            Image.fromarray(render(spec)).save(folder / "photos" / f"{i}.png")
        builtin = load_adapter(ModelConfig())  # in a folder: neither timed nor given its own recipe
        for part in (builtin.model, builtin.processor):
            part.save_pretrained(folder / "model")

    def options(self, case: Case) -> Iterator[str]:
        named = {**COMMON, **case.options, "model.path": self.folder / "model"}
        named["steps"] = CHECKPOINTS * case.updates
        named["train.save_steps"] = named["loss.updates_per_rollout"] = case.updates
        named["train.gradient_accumulation_steps"] = case.accumulated
        named["data.cache_dir"] = self.folder / "cache"
        if case.streaming:
            named["data.prompts"] = self.folder / "prompts.txt"
            named["data.images"] = self.folder / "photos"
            named["data.streaming"] = "true"
        return (f"--set={name}={value}" for name, value in named.items())

    def call(self, case: Case, *words: str) -> int:
        """Exit code of `python WORDS`, in as many processes as the case has."""
        with (self.folder / "output.txt").open("a") as output:
            print(f"\n$ {' '.join(words)}", file=output, flush=True)
            return subprocess.run(
                [sys.executable, *(TORCHRUN if case.processes > 1 else ()), *words],
                env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode

    def straight(self, case: Case) -> Path:
        """A run that nothing stops, made once."""
        out = self.folder / f"straight-{CASES.index(case)}"
        if not out.exists():
            code = self.call(
                case, "-m", "viceversa", "train", f"--output={out}", *self.options(case)
            )
            if code:
                raise SystemExit(f"{case.name}: exit code {code}; see {self.folder}/output.txt")
        return out

    def trouble(self, case: Case, kill: Kill, out: Path) -> str:
        """What the killed and resumed run `out` does not have in common with a straight one."""
        straight = self.straight(case)
        place = [KILLED, kill.place, str(kill.call), str(kill.event)]
        code = self.call(case, *place, "train", f"--output={out}", *self.options(case))
        if code != -signal.SIGKILL:
            return f"was not killed: exit code {code}"
        code = self.call(case, "-m", "viceversa", "train", "--resume", f"--output={out}")
        if code:
            return f"exit code {code} when resumed"
        return ", ".join(differences(straight, out))


def differences(one: Path, other: Path) -> list[str]:
    """Files of two runs that differ: the last checkpoint's weights, the metrics, the rollouts."""
    last = max(one.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    weights = [path.relative_to(one) for path in last.glob("*.safetensors")]
    assert weights, f"{last} holds no weights"
    unlike = [str(p) for p in weights if not filecmp.cmp(one / p, other / p, shallow=False)]
    logs = ("metrics.jsonl", "rollouts.jsonl")
    return unlike + [name for name in logs if _rows(one / name) != _rows(other / name)]


def _rows(path: Path) -> list[str]:
    """Lines without times; as text, in which nan is equal to nan."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [json.dumps({k: v for k, v in row.items() if "second" not in k}) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of where in a place a kill comes")
    given = parser.parse_args()
    console, rng = Console(soft_wrap=True, highlight=False), random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="kill-resume-"))
    shop, equal = Workshop(folder), 0
    for i in range(given.kills):
        case = CASES[i % len(CASES)]
        kill = Kill.draw(list(EVENTS)[i % len(EVENTS)], case, rng)
        began = time.perf_counter()
        out = folder / f"killed-{i + 1}"
        trouble = shop.trouble(case, kill, out)
        if not trouble:
            equal += 1
            shutil.rmtree(out)
        console.print(
            f"{i + 1}/{given.kills}  {case.name}, killed {kill}: "
            f"{trouble or 'equal'}  ({time.perf_counter() - began:.0f} s)"
        )
    console.print(json.dumps({"kills": given.kills, "equal": equal}))
    if equal < given.kills:
        sys.exit(f"the runs are in {folder}")  # exit code 1
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
