"""The live display of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from viceversa.config import Config


class Progress:
    """Step, reward per direction, verified share of the rollouts, pictures a second, time left."""

    def __init__(self, console: Console, config: Config, enabled: bool = True):
        self.console, self.config = console, config
        self.enabled = enabled
        self.live = enabled and console.is_terminal
        self.every = max(1, config.steps // 20)
        self.began = time.time()
        self.warned = 0
        self.bar = Bar(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("", total=config.steps)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        if self.enabled:
            self.console.print(text, highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Loud, but not for ever: ten times at most."""
        self.warned += 1
        if self.enabled and self.warned <= 10:
            warning = Text.assemble(("warning", "bold red"), f" {text}")
            self.console.print(warning, highlight=False)

    def step(self, row: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        if not self.enabled:
            return
        text = describe(row)
        self.bar.update(self.task, completed=row["step"], description=text)
        if self.live:
            return
        if row["step"] == 1:
            self.began = time.time()
        if row["step"] % self.every == 0 or row["step"] == self.config.steps:
            pace = (time.time() - self.began) / max(1, row["step"] - 1)
            left = pace * (self.config.steps - row["step"])
            self.say(f"step {row['step']}/{self.config.steps}  {text}  {left / 60:.1f} min left")


def describe(row: dict[str, Any]) -> str:
    parts = []
    for direction in ("t2i", "i2t"):
        reward = row.get(f"{direction}/reward_mean")
        if reward is None:
            continue
        part = f"{direction} reward {reward:.3f}"
        if f"{direction}/verified" in row:
            part += f", right {row[f'{direction}/verified']:.2f}"
        idle = row.get(f"{direction}/degenerate_groups", 0)
        if idle:
            part += f", {idle:.0f} idle groups"
        parts.append(part)
    if "pictures_per_second" in row:
        parts.append(f"{row['pictures_per_second']:.0f} pictures/s")
    return "  ".join(parts)
