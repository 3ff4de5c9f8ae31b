"""The benchmarks run, and end with the figures that RESULTS.md quotes. Times are not looked at."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a benchmark in this process; what it printed."""

    def run(name: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *argv])
        monkeypatch.syspath_prepend(str(FOLDER))
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def last_line(printed: str) -> dict[str, Any]:
    return json.loads(printed.splitlines()[-1])


def test_rollout_agrees_with_both_baselines(run: Any) -> None:
    printed = run("rollout", "--prompts=2", "--groups=8", "--rounds=1", "--captions=4")
    assert "agrees on" not in printed  # said where greedy tokens differ
    found = last_line(printed)
    assert found["case"] == "builtin t2i 2 x 8"
    assert found["ratio_transformers"] > 0 and found["ratio_peer"] > 0


def test_a_step_is_measured_part_by_part(run: Any) -> None:
    found = last_line(run("step", "--prompts=2", "--group=2", "--rounds=1"))
    assert set(found) == {"grpo", "simpo"}
    assert all(found[loss][part]["ours"] > 0 for loss in found for part in ("sample", "backward"))


@pytest.mark.slow
def test_scoring_agrees_with_the_peers_and_is_measured_by_vocabulary(run: Any) -> None:
    small = ("--prompts=2", "--group=2", "--rounds=1", "--captions=4")
    memory = last_line(run("score", *small, "--vocabularies", "4096", "32768"))["mib_by_vocabulary"]
    assert memory["32768"]["ours"] < 1.2 * memory["4096"]["ours"] < memory["4096"]["peers"]


@pytest.mark.slow
def test_killed_runs_resume_to_the_same(run: Any) -> None:
    printed = run("kill_resume", "--kills=2")
    assert last_line(printed) == {"kills": 2, "equal": 2}
    assert "killed while sampling" in printed and "killed in a backward pass" in printed


def test_the_places_of_kills_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from kill_resume import EVENTS  # pyright: ignore[reportMissingImports]
    from killed import PLACES  # pyright: ignore[reportMissingImports]

    assert list(PLACES) == list(EVENTS)
    assert all(callable(getattr(owner, name, None)) for owner, name, _ in PLACES.values())


def test_runs_that_differ_in_a_bit_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from kill_resume import differences  # pyright: ignore[reportMissingImports]

    def left(name: str, weight: float, reward: float, seconds: float) -> Path:
        run = tmp_path / name
        (run / "checkpoint-2").mkdir(parents=True)
        save_file({"w": torch.tensor([weight])}, run / "checkpoint-2" / "model.safetensors")
        row = {"step": 2, "reward": reward, "seconds": seconds}
        (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (run / "rollouts.jsonl").write_text("")
        return run

    one = left("one", 1.0, math.nan, seconds=1.0)
    assert differences(one, left("same", 1.0, math.nan, seconds=2.0)) == []
    assert differences(one, left("weight", 1.0 + 2**-23, math.nan, seconds=1.0)) == [
        "checkpoint-2/model.safetensors"
    ]
    assert differences(one, left("metric", 1.0, 0.5, seconds=1.0)) == ["metrics.jsonl"]


@pytest.mark.parametrize(
    "name",
    [
        "ablation",
        "audit_verdicts",
        "kill_resume",
        "main_job",
        "plan_check",
        "same_behaviour",
        "score",
    ],
)
def test_help(run: Any, name: str) -> None:
    with pytest.raises(SystemExit) as left:
        run(name, "--help")
    assert left.value.code == 0


@pytest.mark.slow
def test_an_ablation_goes_on_where_it_stopped(run: Any, tmp_path: Path) -> None:
    place = ["--figures", str(tmp_path / "figures"), "--output", str(tmp_path / "runs")]
    few = [*place, "--steps=1", "--specs=4", "--cells", "default", "group 4"]
    first = run("ablation", *few, "--share=1/2")
    assert "| default |" in first and "| group 4 |" not in first
    (before,) = tmp_path.glob("figures/*/search/default-1.json")
    stamp = before.stat().st_mtime_ns
    table = run("ablation", *few, f"--plot={tmp_path / 'plot.png'}").splitlines()
    assert "| default |" in table[3] and len(table) == 4  # a plot shows what is there
    table = run("ablation", *few).splitlines()
    assert [line.split(" | ")[0] for line in table[-3:]] == ["| base", "| default", "| group 4"]
    assert before.stat().st_mtime_ns == stamp
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_main_job_compares_methods(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    place = ["--figures", str(tmp_path / "figures"), "--output", str(tmp_path / "runs")]
    monkeypatch.syspath_prepend(str(FOLDER))
    measured = importlib.import_module("measured")
    monkeypatch.setattr(measured, "TUNING_SPECS", 4)
    few = ["--methods", "dual", "plain", "--seeds=1", "--specs=4", "--set", "steps=1"]
    printed = run("main_job", *place, *few)
    for title in ("At temperature 1", "Each model at its own best decoding", "By skill, dual"):
        assert title in printed
    assert printed.count("| dual |") == printed.count("| plain |") == 2
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "base.json",
        "dual-1.json",
        "plain-1.json",
    }
