"""A damaged run is never gone on from in silence: what is wrong is named, what is whole is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from builders import random_janus
from test_cli import QUICK, lines, save
from viceversa import files
from viceversa.checkpoint import SEAL, damage, keep_last, last_whole
from viceversa.cli import main

UNMEASURED = ("--set=eval.specs_per_kind=0",)


def train(model: Path, out: Path, *more: str) -> int:
    return main(["train", "--model", str(model), "--output", str(out), *QUICK, *more])


def resume(out: Path, *more: str) -> int:
    return main(["train", "--resume", "--output", str(out), *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(random_janus(), folder)
    return folder


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints after two and after four."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(model, out, "--steps=4", "--set=train.save_steps=2") == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    weights = load_file(path)
    save_file({name: weights[name] for name in sorted(weights)[::2]}, path)


FILES = {"config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
FILES |= {"trainer_state.json", "processor_config.json", "tokenizer.json"}


@pytest.mark.parametrize("do", [Path.unlink, cut, flip], ids=["missing", "cut", "a bit"])
def test_every_file_of_a_checkpoint_counts(run: Path, do: Callable[[Path], Any]) -> None:
    folder = run / "checkpoint-4"
    names = {path.name for path in folder.iterdir()}
    assert names > FILES
    assert damage(folder) is None
    for name in names:
        kept = (folder / name).read_bytes()
        do(folder / name)
        why = damage(folder)
        assert why is not None and name in why
        assert last_whole(run) == (run / "checkpoint-2", [f"checkpoint-4 is damaged: {why}"])
        (folder / name).write_bytes(kept)
    assert last_whole(run) == (folder, [])


def test_half_of_the_weights_and_folders_that_are_no_checkpoints(run: Path) -> None:
    halve(run / "checkpoint-4" / "model.safetensors")
    (run / "checkpoint-99").mkdir()
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-best")
    (run / "checkpoint-100").write_text("not a folder")
    found, wrong = last_whole(run)
    assert found == run / "checkpoint-2"
    told = "\n".join(wrong)
    assert "checkpoint-4 is damaged: model.safetensors has" in told
    assert "checkpoint-99 is damaged: it is empty" in told
    assert "checkpoint-100 is of no step" in told and "checkpoint-best is of no step" in told


def test_weights_alone_are_nothing_to_go_on_from(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    left = out / ".partial" / "checkpoint-7"  # by a save that was killed
    left.mkdir(parents=True)
    assert train(model, out, "--steps=1", "--set=train.save_only_model=true", *UNMEASURED) == 0
    assert [path.name for path in out.rglob("*checkpoint-*")] == ["checkpoint-1"]
    assert resume(out) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "was saved without optimizer.pt" in told


def test_a_damaged_run_goes_on_from_what_is_whole_to_the_same_end(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    (run / "checkpoint-best").mkdir()
    for name in ("metrics.jsonl", "rollouts.jsonl", "eval.json"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-20])
    assert resume(run) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "checkpoint-4 is damaged: optimizer.pt is missing: going on from checkpoint-2" in told
    assert "checkpoint-best is of no step" in told
    assert "metrics.jsonl has 1 line that cannot be read" in told
    assert "rollouts.jsonl has 1 line that cannot be read" in told
    assert "eval.json" in told and "the base is evaluated again" in told
    weights = "checkpoint-4/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert damage(run / "checkpoint-4") is None
    assert (run / "checkpoint-best").is_dir()
    for name in ("metrics.jsonl", "rollouts.jsonl", "samples/samples.jsonl"):
        got, want = lines(run / name), lines(finished / name)
        assert [row.get("step") for row in got] == [row.get("step") for row in want], name
        assert [row.get("loss") for row in got] == [row.get("loss") for row in want], name
        assert [row.keys() for row in got] == [row.keys() for row in want], name
    got, want = (json.loads((r / "eval.json").read_text()) for r in (run, finished))
    assert got == want


def test_no_whole_checkpoint_and_a_cut_config_are_one_line_and_exit_code_2(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    cut(run / "checkpoint-2" / "trainer_state.json")
    (run / "checkpoint-4" / SEAL).unlink()
    assert resume(run) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "trainer_state.json has" in told and "it has no checksums.json" in told
    cut(run / "config.yaml")
    for words in (["--resume", "--output", str(run)], ["--config", str(run / "config.yaml")]):
        assert main(["train", *words]) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "config.yaml' is cut" in told
    (run / "config.yaml").write_text("")
    assert resume(run) == 2
    assert "config.yaml' is cut" in capsys.readouterr().err
    changed = {p.name for p in run.rglob("*") if before.get(p) != p.stat().st_mtime_ns}
    assert changed == {"trainer_state.json", "checkpoint-4", "config.yaml"}


def test_only_checkpoints_of_earlier_steps_make_room(tmp_path: Path) -> None:
    for name in ("2", "4", "6", "9", "99", "best"):
        (tmp_path / f"checkpoint-{name}").mkdir()
    keep_last(tmp_path, 9, None)
    assert len(list(tmp_path.iterdir())) == 6
    keep_last(tmp_path, 9, 2)
    left = {path.name.partition("-")[2] for path in tmp_path.iterdir()}
    assert left == {"6", "9", "99", "best"}


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "env.json"
    files.write_whole(path, "before")

    def fail(opened: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        files.write_whole(path, "after")
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["env.json"]


def test_rows_that_are_cut_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert files.read_rows(path) == ([], 0)
    path.write_bytes(b'{"step": 1}\n[2]\n{"step": "\xff\n{"step": 3}\n{"st')
    assert files.read_rows(path) == ([{"step": 1}, {"step": 3}], 3)
