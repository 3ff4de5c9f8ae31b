"""Watching a run: looks change nothing, the best checkpoint is kept, a collapse is caught."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import viceversa as vv
from processes import launch
from test_cli import lines
from viceversa.config import load_config
from viceversa.measure.look import Look, look
from viceversa.measure.verdict import Verdict
from viceversa.training import watch
from viceversa.training.run import train

SMALL = [
    *("steps=4", "data.prompts_per_step=2", "data.images_per_step=2", "sampling.group_size=2"),
    *("sampling.max_caption_tokens=8", "eval.specs_per_kind=0", "eval.held_out_group=2"),
    *("data.scenes_size=80", "train.use_cpu=true", "train.learning_rate=0.01"),
    *("eval.held_out_inputs=10", "watch.every=2", "train.save_steps=1"),
]


@pytest.fixture
def small(model: Path) -> list[str]:
    return [*SMALL, f"model.path={model}"]


def run(small: list[str], out: Path, *sets: str, resume: bool = False) -> str:
    """Train, and return what was said."""
    said = io.StringIO()
    settings = load_config(None, [*small, f"output_dir={out}", *sets])
    train(settings, Console(file=said, width=200), resume)
    return said.getvalue()


def rows(out: Path, name: str = "watch.jsonl") -> list[dict[str, Any]]:
    return lines(out / name)


@pytest.mark.parametrize("scorer", ["frozen", "live"])
def test_a_look_changes_nothing_and_sees_what_is_measured_at_the_end(
    small: list[str], tmp_path: Path, scorer: str
) -> None:
    sets = (f"reward.scorer={scorer}", f"loss.i2t_kl={0.3 if scorer == 'frozen' else 0}")
    run(small, tmp_path / "watched", *sets)
    run(small, tmp_path / "not", *sets, "watch.every=0")
    one, other = (
        [{k: v for k, v in row.items() if "second" not in k} for row in rows(out, "metrics.jsonl")]
        for out in (tmp_path / "watched", tmp_path / "not")
    )
    assert one == other
    weights = [
        load_file(tmp_path / r / "checkpoint-4/model.safetensors") for r in ("watched", "not")
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    assert not (tmp_path / "not" / "watch.jsonl").exists()
    assert [row["step"] for row in rows(tmp_path / "watched")] == [2, 4]
    last = rows(tmp_path / "watched")[-1]
    measured = json.loads((tmp_path / "watched" / "eval.json").read_text())["held_out"]
    for direction in ("t2i", "i2t"):  # ten inputs: all that are held out
        for name, value in last[direction].items():
            figure = measured[direction]["training"][name]["tuned"]
            assert value == pytest.approx(figure, abs=2e-5), (direction, name)


def seen(step: int, progress: float, collapse: str = "") -> Look:
    """A look with this progress: the best of a group was worth one nat at the start."""
    change: Any = type("Change", (), {"value": progress})
    figures: Any = {
        "t2i": {
            "best_of_gain": {"base": 1.0, "tuned": 1.0},
            "base_likelihood": {"base": 0.0, "tuned": progress, "change": change},
        }
    }
    word = Verdict("suspicious" if collapse else "better", collapse, bool(collapse))
    return Look(step, figures, {"t2i": word})


@pytest.fixture
def looks(small: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[int, Look]:
    """What is seen after each step, by the test."""
    found: dict[int, Look] = {}
    monkeypatch.setattr(watch, "look", lambda step, start, now: found[step])
    small += ["eval.held_out_inputs=1"]  # enough for what is made up
    return found


def test_the_best_checkpoint_is_kept_and_named(
    small: list[str], tmp_path: Path, looks: dict[int, Look]
) -> None:
    looks |= {step: seen(step, p) for step, p in ((1, 0.1), (2, 0.3), (3, 0.2), (4, 0.25))}
    sets = ("watch.every=1", "train.save_total_limit=1", "train.save_steps=4")
    said = run(small, tmp_path, *sets)
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]
    assert f"best by the base's judgement: {tmp_path / 'checkpoint-2'}" in said
    assert [row["best"] for row in rows(tmp_path)] == [True, True, False, False]
    assert json.loads((tmp_path / "env.json").read_text())["best_checkpoint"] == "checkpoint-2"
    # a run that goes on knows its best one, and finds a better one
    looks |= {5: seen(5, 0.29), 6: seen(6, 0.4)}
    run(small, tmp_path, *sets, "steps=6", resume=True)
    assert [row["best"] for row in rows(tmp_path)] == [True, True, False, False, False, True]
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-6"]


def test_what_is_suspicious_is_never_the_best(
    small: list[str], tmp_path: Path, looks: dict[int, Look]
) -> None:
    looks |= {1: seen(1, 0.1), 2: seen(2, 5.0, "drawing: all alike"), 3: seen(3, 0.05)}
    said = run(small, tmp_path, "watch.every=1", "steps=3")
    assert [row["best"] for row in rows(tmp_path)] == [True, False, False]
    assert "warning step 2: drawing: all alike" in said
    assert (tmp_path / "checkpoint-3").is_dir()  # it is only told


def test_a_collapse_stops_the_run_where_asked(
    small: list[str], tmp_path: Path, looks: dict[int, Look]
) -> None:
    looks |= {1: seen(1, 0.1), 2: seen(2, 0.2), 3: seen(3, 5.0, "drawing: all alike")}
    sets = ("watch.every=1", "watch.stop_on_collapse=true", "train.save_steps=4")
    said = run(small, tmp_path, *sets, "train.save_total_limit=1")
    assert "stopped after step 3: drawing: all alike" in said
    assert "back to checkpoint-2, the best by the base's judgement" in said
    assert len(rows(tmp_path, "metrics.jsonl")) == 3
    best = tmp_path / "checkpoint-2"
    assert sorted(tmp_path.glob("checkpoint-*")) == [best]
    assert f"model  {best}" in said


def test_the_caller_gets_the_best_model_after_a_collapse(
    model: Path, small: list[str], tmp_path: Path, looks: dict[int, Look]
) -> None:
    """In memory, too."""
    looks |= {1: seen(1, 0.1), 2: seen(2, 5.0, "drawing: all alike")}
    sets = [*small, "watch.every=1", "watch.stop_on_collapse=true"]
    loaded = vv.load(model)
    settings = load_config(None, sets)
    found = vv.train(loaded, config=settings, output=tmp_path, console=Console(file=io.StringIO()))
    assert found.checkpoint == found.best == tmp_path / "checkpoint-1"
    kept = load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    live = loaded.adapter.model.state_dict()
    assert all(torch.equal(live[name], value) for name, value in kept.items())


def test_a_collapse_before_any_progress_says_what_to_do(
    small: list[str], tmp_path: Path, looks: dict[int, Look]
) -> None:
    looks |= {1: seen(1, -0.1, "captions: 90% of the captions never stop")}
    said = run(
        small, tmp_path, "watch.every=1", "watch.stop_on_collapse=true", "train.save_steps=4"
    )
    assert "no checkpoint was better than the start: lower train.learning_rate" in said


def measured(**changed: list[float]) -> dict[str, list[float]]:
    same = [0.1 * i for i in range(8)]
    found = {
        "own_likelihood": same,
        "base_likelihood": same,
        "best_of_gain": [0.5] * 8,
        "diversity": [0.6] * 8,
        "variety": [0.8] * 8,
    }
    return {**found, **changed}


def test_progress_is_counted_in_what_the_best_of_a_group_is_worth() -> None:
    start: Any = {"t2i": measured(), "i2t": measured(best_of_gain=[0.1] * 8)}
    higher = [value + 0.25 for value in measured()["base_likelihood"]]
    lower = [value - 0.01 for value in measured()["base_likelihood"]]
    now: Any = {"t2i": measured(base_likelihood=higher), "i2t": measured(base_likelihood=lower)}
    found = look(20, start, now)
    assert found.progress == pytest.approx((0.25 / 0.5 - 0.01 / 0.1) / 2)
    assert found.sound and not found.collapse
    row = found.record()
    assert row["t2i"]["base_likelihood"] == pytest.approx(0.6) and row["step"] == 20
    json.dumps(row)


def test_one_output_for_all_inputs_is_a_collapse() -> None:
    start: Any = {"t2i": measured(), "i2t": measured()}
    now: Any = {"t2i": measured(variety=[0.1] * 8), "i2t": measured()}
    found = look(20, start, now)
    assert not found.sound and "different inputs hardly differ" in found.collapse


def test_a_run_too_short_for_a_look_is_not_watched(small: list[str], tmp_path: Path) -> None:
    said = run(small, tmp_path, "steps=1", "watch.every=2")
    assert not (tmp_path / "watch.jsonl").exists() and "judgement:" not in said


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_see_what_one_sees(small: list[str], tmp_path: Path, fsdp: bool) -> None:
    """Each measures its share of the inputs; the weights are the same but for rounding."""
    run(small, tmp_path / "one")
    sets = [f"--set={value}" for value in (*small, f"output_dir={tmp_path / 'two'}")]
    sets += ["--set=train.fsdp=true"] if fsdp else []
    launch("-m", "viceversa", "train", *sets, cwd=tmp_path)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["step"] for row in two] == [2, 4]
    for before, after in zip(one, two, strict=True):
        for direction in ("t2i", "i2t"):
            assert after[direction] == pytest.approx(before[direction], abs=0.05)
    assert (tmp_path / "two" / "checkpoint-4").is_dir()


@pytest.mark.slow
def test_a_run_made_to_collapse_is_caught_and_its_good_checkpoint_kept(tmp_path: Path) -> None:
    """At ten times the learning rate, reached slowly, and read back by the live policy."""
    sets = ["steps=60", "train.learning_rate=4.5e-3", "train.warmup_steps=40"]
    sets += ["reward.scorer=live", "watch.every=2"]
    sets += ["eval.specs_per_kind=0", "data.prompts_per_step=16", "data.images_per_step=16"]
    said = io.StringIO()
    settings = load_config(
        "builtin", [*sets, f"output_dir={tmp_path}", "watch.stop_on_collapse=true"]
    )
    train(settings, Console(file=said, width=200))
    looks = rows(tmp_path)
    assert looks[-1]["collapse"] and len(rows(tmp_path, "metrics.jsonl")) < 60
    best = [row["step"] for row in looks if row["best"]][-1]
    assert (tmp_path / f"checkpoint-{best}").is_dir()
    assert f"back to checkpoint-{best}" in said.getvalue()
    verdict = json.loads((tmp_path / "eval.json").read_text())["held_out"]["verdict"]
    assert verdict in ("better", "unchanged")
