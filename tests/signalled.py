"""Run by torchrun, twice at once: runs of which one process alone gets a signal; each is resumed.

`python signalled.py MODEL OUT CASE ...`, a case being SIGNAL-RANK-PLACE. Writes the exit codes of
this process, of the stopped run and of the resumed one, to OUT/CASE-RANK.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from test_cli import QUICK
from viceversa.cli import main
from viceversa.training.recorder import Recorder
from viceversa.training.trainer import DualRewardTrainer

#: Where a signal comes, and at which call: always in the second step.
PLACES: dict[str, tuple[Any, str, int]] = {
    "sampled": (Recorder, "record_rollout", 3),
    "backward": (DualRewardTrainer, "compute_loss", 2),
    "saving": (DualRewardTrainer, "_save", 2),
}


def run_and_resume(model: str, out: Path, name: str, rank: int, place: str) -> tuple[int, int]:
    owner, function, nth = PLACES[place]
    honest, calls = getattr(owner, function), []

    def signalled(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == nth and dist.get_rank() == rank:
            signal.raise_signal(signal.Signals[name])
        return honest(*args, **kwargs)

    setattr(owner, function, signalled)
    options = ["--output", str(out), "--steps", "4", "--set=eval.specs_per_kind=0"]
    first = main(["train", "--model", model, *QUICK, "--set=train.save_steps=1", *options])
    setattr(owner, function, honest)
    dist.barrier()
    return first, main(["train", "--resume", "--output", str(out)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, model, folder, *cases = sys.argv
    for case in cases:
        name, rank, place = case.split("-")
        codes = run_and_resume(model, Path(folder) / case, name, int(rank), place)
        (Path(folder) / f"{case}-{os.environ['RANK']}.json").write_text(json.dumps(codes))
    dist.destroy_process_group()
