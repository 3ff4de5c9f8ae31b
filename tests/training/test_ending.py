"""What a run says at its end: in words what happened, where things are, what to type next."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from measured_figures import HELD_OUT, WORLD
from viceversa.cli import COMMANDS
from viceversa.config import Config, DataConfig
from viceversa.publish.outcome import outcome
from viceversa.training.ending import say_outcome, say_places


def said(figures: dict[str, Any]) -> list[str]:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    say_outcome(console, figures)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def line_of(lines: list[str], name: str) -> str:
    (found,) = [" ".join(line.split()) for line in lines if f"│ {name} " in line]
    return found


def test_accuracies_are_told_in_words_in_one_table() -> None:
    lines = [" ".join(line.split()) for line in said(WORLD)]
    assert "│ all skills │ 0.500 → 0.750 (+0.25 ± 0.06) │ 0.600 → 0.400 (-0.20 ± 0.06) │" in lines
    assert "│ │ better: 25.0 more in 100 │ worse: 20.0 fewer in 100 │" in lines
    questions = "│ questions │ │ 0.900 → 0.900 (+0.00 ± 0.00) │"
    assert lines[lines.index(questions) + 1] == "│ │ │ no change that can be told │"
    assert sum("┏" in line for line in lines) == 1


def test_without_a_world_the_held_out_inputs_are_told() -> None:
    lines = said(HELD_OUT)
    assert "-3.000 │ -2.500 │ +0.500 ± 0.100" in line_of(lines, "drawing")
    assert "│ better │" in line_of(lines, "drawing")
    assert "no change that can be told" in line_of(lines, "captions")
    assert lines[-1] == f"held out, without labels: {HELD_OUT['held_out']['sentence']}"


def test_what_cannot_be_read_is_left_out() -> None:
    """Figures without single outcomes, of a base alone, and damaged ones."""
    assert said({}) == said({"base": WORLD["base"]}) == said({"held_out": {"t2i": 3}}) == []
    bare = {w: {"t2i": {"accuracy": a}} for w, a in (("base", 0.1), ("tuned", 0.2))}
    (row,) = outcome(bare).rows
    assert (row.before, row.after, row.words) == (0.1, 0.2, "")


def places(folder: Path, terminal: bool = False, **given: Any) -> str:
    console = Console(width=40, file=io.StringIO(), force_terminal=terminal)
    usual: dict[str, Any] = {
        "config": Config(),
        "figures": HELD_OUT,
        "checkpoint": folder / "checkpoint-2",
        "draws": True,
        "interrupted": False,
        "failed": False,
    }
    say_places(console, page=folder / "report.html", **{**usual, **given})
    return console.file.getvalue()  # type: ignore[attr-defined]


def command(told: str, name: str) -> list[str]:
    (line,) = [line for line in told.splitlines() if line.startswith(f"{name} ")]
    words = shlex.split(line)[1:]
    assert words[0] == "viceversa" and words[1] in COMMANDS
    return words[1:]


def test_the_next_command_names_the_checkpoint_and_the_runs_inputs(tmp_path: Path) -> None:
    """Each on one line that a shell takes, however narrow the terminal and odd the name."""
    folder = tmp_path / "my runs [1]"
    checkpoint = str(folder / "checkpoint-2")
    told = places(folder)
    assert f"model  {checkpoint}\n" in told and f"report {folder / 'report.html'}\n" in told
    drawn = ["draw", "a triangle and a ring", "--best-of", "8", "--model", checkpoint]
    assert command(told, "next") == drawn
    assert command(told, "share")[:2] == ["push", checkpoint]
    prompts = tmp_path / "p.txt"
    prompts.touch()
    mine = Config(data=DataConfig(prompts=str(prompts), images=str(tmp_path)))
    assert command(places(folder, config=mine), "next")[1] == str(prompts)
    reading: tuple[dict[str, Any], ...]
    reading = ({"draws": False, "config": mine}, {"config": Config(schedule="i2t")})
    for options in reading:
        assert command(places(folder, **options), "next")[0] == "caption"
    assert command(places(folder, config=mine, draws=False), "next")[1] == str(tmp_path)
    drawing = Config(schedule="t2i", data=DataConfig(prompts=str(prompts)))
    assert command(places(folder, config=drawing, draws=False), "next")[1] == "photos/"


@pytest.mark.parametrize("verdict", ["suspicious", "worse"])
def test_a_doubtful_model_is_not_to_be_shared(tmp_path: Path, verdict: str) -> None:
    told = places(tmp_path, figures={"held_out": {"verdict": verdict}})
    assert "next " in told and "share" not in told


def test_a_run_that_was_stopped_or_failed_says_how_to_go_on(tmp_path: Path) -> None:
    stopped = places(tmp_path, interrupted=True)
    assert f"viceversa train --resume --output {tmp_path}\n" in stopped
    assert "next " not in stopped
    none = places(tmp_path, interrupted=True, checkpoint=None)
    assert "nothing to resume" in " ".join(none.split()) and "model" not in none
    failed = places(tmp_path, failed=True)
    assert "model" in failed and "viceversa" not in failed.replace(str(tmp_path), "")


def test_a_terminal_gets_links(tmp_path: Path) -> None:
    told = places(tmp_path / "a b", terminal=True)
    for name in ("checkpoint-2", "report.html"):
        assert f"{(tmp_path / 'a b' / name).as_uri()}\x1b\\" in told
    assert "\x1b]8;" not in places(tmp_path)
