"""The line of a running training fits the terminal."""

from __future__ import annotations

import io
import math
import time
from typing import Any

import pytest
from rich.console import Console

from viceversa.config import Config
from viceversa.training.progress import Progress, describe

#: A step with long values, and everything that a line may hold.
LONG: dict[str, Any] = {
    "step": 19_998,
    "pictures_per_second": 1234.5,
    **{
        f"{direction}/{name}": value
        for direction in ("t2i", "i2t")
        for name, value in (("reward_mean", -123.456), ("verified", 1), ("degenerate_groups", 128))
    },
}
SHORT: dict[str, Any] = {"step": 2, "t2i/reward_mean": -3.1234, "pictures_per_second": 12.0}


def shown(width: int, row: dict[str, Any], terminal: bool) -> list[str]:
    """Return the lines that a terminal of this width, or a file, is given for one step."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=terminal, color_system=None)
    progress = Progress(console, Config(steps=20_000))
    progress.every = 1
    progress.began, progress.first = time.time(), row["step"] - 1  # the step before
    progress.step(row)
    if terminal:
        return ["".join(s.text for s in line) for line in console.render_lines(progress.bar)]
    return written.getvalue().splitlines()


@pytest.mark.parametrize("row", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_a_step_is_one_line(width: int, row: dict[str, Any], terminal: bool) -> None:
    (line,) = shown(width, row, terminal)
    assert len(line.rstrip()) <= width and "…" not in line
    assert f"{row['step']}/20000" in line
    for direction in ("t2i", "i2t"):
        reward = row.get(f"{direction}/reward_mean")
        assert (f"{direction} " in line) == (reward is not None)
    assert "-123.5" in line or "-123.456" in line or row is SHORT
    assert line.rstrip().endswith("left") or terminal


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "file"])
def test_work_without_steps_is_named_and_a_terminal_shows_that_it_goes_on(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=terminal, color_system=None)
    progress = Progress(console, Config(steps=240))
    progress.begin("evaluating the base model")
    if not terminal:
        assert written.getvalue() == "evaluating the base model\n"
        return
    lines = []
    for _ in range(2):
        (segments,) = console.render_lines(progress.bar)
        lines.append("".join(s.text for s in segments))
        time.sleep(0.2)  # two turns of the spinner
    assert all("evaluating the base model" in line for line in lines)
    assert lines[0] != lines[1]
    assert written.getvalue() == ""


@pytest.mark.parametrize("width", [60, 200])
def test_the_line_follows_the_width_of_the_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    progress = Progress(console, Config(steps=20_000))
    progress.step(LONG)
    console.width = width
    progress.step(LONG)
    (line,) = ("".join(s.text for s in line) for line in console.render_lines(progress.bar))
    assert line.rstrip() == shown(width, LONG, True)[0].rstrip()


@pytest.mark.parametrize("first", [1, 15], ids=["new", "resumed"])
def test_time_left_counts_from_the_first_step_seen(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    progress = Progress(Console(file=written, width=80), Config(steps=20))
    for step in range(3):
        monkeypatch.setattr(time, "time", lambda now=1e9 + 60 * step: now)
        progress.step({**SHORT, "step": first + step})
    before, *after = written.getvalue().splitlines()
    assert "left" not in before
    assert [line.split("  ")[-1] for line in after] == [
        f"{20 - first - 1}.0 min left",
        f"{20 - first - 2}.0 min left",
    ]


def test_a_wide_terminal_says_it_in_full() -> None:
    (line,) = shown(200, LONG, terminal=True)
    for words in ("t2i reward -123.456, right 1.00, 128 idle groups", "1234 pictures/s", "step"):
        assert words in line


def test_rewards_are_left_out_last() -> None:
    rooms = range(20, 120)
    said = [describe(LONG, room) for room in rooms]
    assert all(len(text) <= room for text, room in zip(said, rooms, strict=True))
    shortest = {
        word: min((room for text, room in zip(said, rooms, strict=True) if word in text))
        for word in ("-123", "right", "idle", "/s")
    }
    assert list(shortest) == sorted(shortest, key=lambda word: shortest[word])
    assert len(set(shortest.values())) == len(shortest)
    assert describe(LONG, 10) == "t2i -123.…"


def test_a_reward_that_is_not_a_number_is_shown() -> None:
    assert describe({"t2i/reward_mean": math.nan}, 80) == "t2i reward nan"
