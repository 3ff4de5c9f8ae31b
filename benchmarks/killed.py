"""The `viceversa` command, killed at one exact place as by `kill -9`; used by kill_resume.py.

    python benchmarks/killed.py PLACE CALL EVENT train --output runs/killed

PLACE names a function; within its CALL-th call the process dies at the EVENT-th event: a token
drawn, a gradient that reached its parameter, a file opened, moved or removed; at the end of that
call, if there are fewer. Under torchrun every process dies, torchrun first.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from viceversa.cli import main
from viceversa.inference import sampler
from viceversa.rl import step
from viceversa.training import checkpoint
from viceversa.training.trainer import DualRewardTrainer

#: place -> where the function is found, its name, and the process that dies, of two.
PLACES: dict[str, tuple[Any, str, int]] = {
    "sampling": (step, "rollout", 1),
    "backward": (DualRewardTrainer, "training_step", 1),
    "checkpoint": (DualRewardTrainer, "_save_checkpoint", 0),
    "removal": (checkpoint, "keep_last", 0),
}


def die() -> None:
    me = psutil.Process()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher = psutil.Process(os.getppid())
        others = [launcher, *(p for p in launcher.children() if p != me)]
        for process in others:
            process.kill()
    os.kill(me.pid, signal.SIGKILL)


class Death:
    """Comes at the `event`-th event within the `call`-th call of a function."""

    def __init__(self, call: int, event: int):
        self.calls, self.events = call, event
        self.near = False

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls -= 1
            self.near = not self.calls
            result = function(*args, **kwargs)
            if self.near:
                die()
            return result

        return counted

    def event(self) -> None:
        self.events -= self.near
        if self.near and not self.events:
            die()

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            self.event()
            return function(*args, **kwargs)

        return told

    def half(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """Of a file that torch writes, half is there."""

        def halved(content: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            save(content, path, *args, **kwargs)
            if self.near and self.events == 1:
                os.truncate(path, Path(path).stat().st_size // 2)
            self.event()

        return halved


def watch(place: str, death: Death) -> None:
    """Tell `death` of the calls and of the events of `place`."""
    owner, name, _ = PLACES[place]
    setattr(owner, name, death.within(getattr(owner, name)))
    if place == "sampling":
        sampler.draw_tokens = death.before(sampler.draw_tokens)
    elif place == "backward":
        prepare = DualRewardTrainer.compute_loss

        def hooked(self: Any, *args: Any, **kwargs: Any) -> Any:
            for parameter in self.adapter.model.parameters():
                if death.near and parameter.requires_grad:
                    parameter.register_hook(lambda _: death.event())
            return prepare(self, *args, **kwargs)

        DualRewardTrainer.compute_loss = hooked
    else:
        torch.save = death.half(torch.save)
        written = ("os.rename", "os.remove", "os.rmdir") + ("open",) * (place == "checkpoint")
        sys.addaudithook(lambda event, _: death.event() if event in written else None)


if __name__ == "__main__":
    _, place, call, event, *words = sys.argv
    if int(os.environ.get("RANK", PLACES[place][2])) == PLACES[place][2]:
        watch(place, Death(int(call), int(event)))
    sys.exit(main(words))
