"""The live display of a run: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from viceversa.config import Config

#: Columns of a terminal from which the line has a long bar and full words, and from which a bar.
WIDE, NARROW = 100, 80
#: Columns that the time left takes: up to 99 hours.
CLOCK = 8


class Progress:
    """Step, reward per direction, verified share of the rollouts, pictures a second, time left.

    Each is one line, whatever the width of the terminal: what does not fit is said in fewer words.
    """

    def __init__(self, console: Console, config: Config, enabled: bool = True):
        self.console, self.config = console, config
        self.enabled = enabled
        self.live = enabled and console.is_terminal
        self.every = max(1, config.steps // 20)
        self.began, self.first = 0.0, 0  # when the first step of this call ended, and which it was
        self.warned = 0
        self.bar = Bar(*_columns(console.width), console=console, disable=not self.live)
        self.task = self.bar.add_task("", total=config.steps)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a sentence, on the first process alone."""
        if self.enabled:
            self.console.print(text, highlight=False, markup=False)

    def begin(self, text: str) -> None:
        """Name work without steps: in a terminal's moving line, elsewhere in one of its own."""
        if self.live:
            self.bar.update(self.task, description=text)
        else:
            self.say(text)

    def warn(self, text: str) -> None:
        """Loud, but not for ever: ten times at most."""
        self.warned += 1
        if self.enabled and self.warned <= 10:
            warning = Text.assemble(("warning", "bold red"), f" {text}")
            self.console.print(warning, highlight=False)

    def step(self, row: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl."""
        if not self.enabled:
            return
        if self.live:
            width = self.console.width
            self.bar.columns = tuple(_columns(width))  # it may have been made wider or narrower
            room = width - _taken(width, self.config.steps)
            self.bar.update(self.task, completed=row["step"], description=describe(row, room))
            return
        if not self.first:
            self.began, self.first = time.time(), row["step"]
        if row["step"] % self.every == 0 or row["step"] == self.config.steps:
            done, to_do = row["step"] - self.first, self.config.steps - row["step"]
            pace = (time.time() - self.began) / max(1, done)
            left = f"  {pace * to_do / 60:.1f} min left" if done else ""
            head = f"step {row['step']}/{self.config.steps}  "
            self.say(head + describe(row, self.console.width - len(head) - len(left)) + left)


def _columns(width: int) -> list[ProgressColumn]:
    """Return the parts of the line; no part may break."""

    def whole() -> Column:
        return Column(no_wrap=True)

    parts: list[ProgressColumn] = [
        MofNCompleteColumn(table_column=whole()),
        TextColumn("{task.description}", table_column=whole(), markup=False),
        TimeRemainingColumn(table_column=whole()),
    ]
    if width >= NARROW:
        bar = BarColumn(bar_width=_bar(width), table_column=whole())
        parts.insert(1, bar)
    if width >= WIDE:
        parts.insert(0, TextColumn("step", table_column=whole()))
    return [SpinnerColumn(table_column=whole()), *parts]


def _bar(width: int) -> int:
    return 20 if width >= WIDE else 10 if width >= NARROW else 0


def _taken(width: int, steps: int) -> int:
    """Count the columns of the line that are not its description's, with the gaps between them."""
    spinner, step = 2, len("step ") if width >= WIDE else 0
    bar = _bar(width) + 1 if _bar(width) else 0
    return spinner + step + bar + (2 * len(str(steps)) + 1) + 1 + 1 + CLOCK


def describe(row: dict[str, Any], room: int) -> str:
    """Say what a step did in at most `room` columns: in full, or with the least important left out.

    Rewards stay longest, then the verified share, idle groups and pictures a second.
    """
    found = _described(row, True, {"right", "idle", "pace"})
    for said in ({"right", "idle", "pace"}, {"right", "idle"}, {"right"}, set[str]()):
        if len(found) <= room:
            return found
        found = _described(row, False, said)
    return found if len(found) <= room else found[: max(0, room - 1)] + "…"


def _described(row: dict[str, Any], full: bool, said: set[str]) -> str:
    """Put a step in words, in full or in short ones; `said` names what comes beside rewards."""
    parts = []
    comma = "," if full else ""
    for direction in ("t2i", "i2t"):
        reward = row.get(f"{direction}/reward_mean")
        if reward is None:
            continue
        part = f"{direction} reward {reward:.3f}" if full else f"{direction} {reward:.4g}"
        if "right" in said and f"{direction}/verified" in row:
            part += f"{comma} right {row[f'{direction}/verified']:.2f}"
        idle = row.get(f"{direction}/degenerate_groups", 0)
        if "idle" in said and idle:
            part += f", {idle:.0f} idle groups" if full else f" idle {idle:.0f}"
        parts.append(part)
    if "pace" in said and "pictures_per_second" in row:
        parts.append(f"{row['pictures_per_second']:.0f}" + (" pictures/s" if full else "/s"))
    return "  ".join(parts)
