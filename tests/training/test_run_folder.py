"""What a run folder survives: damage, a second run, a disk that fails. One line says what was."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from test_cli import QUICK, lines
from viceversa import files
from viceversa.cli import main
from viceversa.config import Config, ConfigError, load_config
from viceversa.training import trainer as trainer_module
from viceversa.training.checkpoint import SEAL, damage, keep_last, last_whole, seal
from viceversa.training.lock import Lock
from viceversa.training.recorder import SAMPLES, Recorder


def train(model: Path, out: Path, *more: str) -> int:
    quick = [*QUICK, "--set=eval.specs_per_kind=0"]
    return main(["train", "--model", str(model), "--output", str(out), *quick, *more])


def resume(out: Path, *more: str) -> int:
    return main(["train", "--resume", "--output", str(out), *more])


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with checkpoints after two and after four."""
    out = tmp_path_factory.mktemp("runs") / "run"
    (out / ".partial" / "checkpoint-7").mkdir(parents=True)  # of a save that was killed
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
    assert {path.name for path in run.rglob("*checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert damage(folder) is None
    for name in names - {"README.md"}:  # the card is for people: theirs to write in
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


def test_weights_alone_are_nothing_to_go_on_from(run: Path) -> None:
    """As `train.save_only_model` leaves them: whole, and no use."""
    folder = run / "checkpoint-4"
    (folder / "optimizer.pt").unlink()
    (folder / SEAL).unlink()
    seal(folder)
    assert damage(folder) == "it was saved without optimizer.pt"


def test_a_damaged_run_goes_on_from_what_is_whole_to_the_same_end(
    run: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoint-4" / "optimizer.pt").unlink()
    (run / "checkpoint-best").mkdir()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        path = run / name
        path.write_bytes(path.read_bytes()[:-20])
    assert resume(run) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "checkpoint-4 is damaged: optimizer.pt is missing: going on from checkpoint-2" in told
    assert "checkpoint-best is of no step" in told
    assert "metrics.jsonl has 1 line that cannot be read" in told
    assert "rollouts.jsonl has 1 line that cannot be read" in told
    weights = "checkpoint-4/model.safetensors"
    assert (run / weights).read_bytes() == (finished / weights).read_bytes()
    assert damage(run / "checkpoint-4") is None
    assert (run / "checkpoint-best").is_dir()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        got, want = lines(run / name), lines(finished / name)
        assert [row.get("step") for row in got] == [row.get("step") for row in want], name
        assert [row.get("loss") for row in got] == [row.get("loss") for row in want], name
        assert [row.keys() for row in got] == [row.keys() for row in want], name


@pytest.mark.parametrize("do", [None, "cut eval", "cut index", "no picture"])
def test_figures_of_the_base_are_kept_where_they_are_whole(tmp_path: Path, do: str | None) -> None:
    figures = {"base": {"t2i": 0.5}, "tuned": {"t2i": 0.6}, "settings": {}}
    (tmp_path / "eval.json").write_text(json.dumps(figures))
    (tmp_path / "samples").mkdir()
    index = tmp_path / SAMPLES
    rows = [{"base": {"image": f"samples/base-{k}.png"}} for k in range(2)]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for k in range(2):
        (tmp_path / "samples" / f"base-{k}.png").touch()
    if do:
        cut(tmp_path / "eval.json") if do == "cut eval" else None
        index.write_text(index.read_text()[:-5]) if do == "cut index" else None
        (tmp_path / "samples" / "base-1.png").unlink() if do == "no picture" else None
    told = Console(file=io.StringIO(), width=1000)
    recorder = Recorder(tmp_path, Config())
    recorder._read_figures(told)
    said = told.file.getvalue()  # type: ignore[attr-defined]
    if do is None:
        assert recorder.eval == {"base": {"t2i": 0.5}, "settings": {}} and not said
    else:
        assert recorder.eval == {} and not index.exists()
        assert said.count("\n") == 1 and "the base is evaluated again" in said


def test_figures_are_written_once_their_gallery_is_whole(tmp_path: Path) -> None:
    """A run that is killed between the two does not lose the figures that it has."""

    class World:
        def gallery(self, *args: Any) -> Any:
            raise KeyboardInterrupt

        def evaluate(self, *args: Any) -> Any:
            return {"t2i": 0.6}

    before = '{"base": {"t2i": 0.5}, "settings": {}}'
    (tmp_path / "eval.json").write_text(before)
    recorder = Recorder(tmp_path, Config())
    recorder.eval, recorder.world = json.loads(before), World()
    adapter: Any = None
    with pytest.raises(KeyboardInterrupt):
        recorder.evaluate("tuned", adapter)
    assert (tmp_path / "eval.json").read_text() == before and "tuned" not in recorder.eval


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
    assert changed == {"trainer_state.json", "checkpoint-4", "config.yaml", ".lock"}


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
    path.write_text('{"text": "one\u2028line"}\n\n', encoding="utf-8")
    assert files.read_rows(path) == ([{"text": "one\u2028line"}], 0)


slow = pytest.mark.slow
DISKS = [
    ("optimizer", "checkpoint-5 could not be saved: File too large"),
    ("metrics", "No space left on device"),
    pytest.param("weights", "checkpoint-5 could not be saved: File too large", marks=slow),
    pytest.param("move", "could not be saved: Read-only file system", marks=slow),
]
HOLD = "import sys, time; from pathlib import Path; from viceversa.training.lock import Lock\n"
HOLD += "lock = Lock(Path(sys.argv[1])); lock.take(); print('held', flush=True); time.sleep(100)"


def test_a_run_that_lives_is_named_and_left_alone(
    model: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lock(run) as lock:
        lock.take()
        before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
        who = f"process {os.getpid()} on {socket.gethostname()} has been writing it since 2"
        again = partial(resume, run), partial(resume, run, "--steps=8"), partial(train, model, run)
        for attempt in again:
            assert attempt() == 2
            told = capsys.readouterr().err
            assert told.count("\n") == 1 and who in told
        assert {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")} == before


def test_a_run_that_began_meanwhile_is_not_moved_aside(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no folder when they looked first."""
    out, honest = tmp_path / "run", trainer_module.load_sources

    with Lock(out) as lock:

        def meanwhile(*args: Any) -> Any:
            out.mkdir()
            lock.take()
            (out / "config.yaml").write_text("the other's")
            return honest(*args)

        monkeypatch.setattr(trainer_module, "load_sources", meanwhile)
        assert train(model, out) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (out / "config.yaml").read_text() == "the other's"


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with Lock(tmp_path) as lock:
        with pytest.raises(ConfigError, match=f"process {other.pid} on"):
            lock.take()
        other.send_signal(signal.SIGKILL)
        other.communicate()
        lock.take()
        lock.take()


def test_a_folder_that_was_moved_away_is_let_go_of(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    with Lock(out) as lock, Lock(tmp_path / "old") as other:
        lock.take()
        out.rename(tmp_path / "old")
        with pytest.raises(ConfigError, match="process"):
            other.take()
        out.mkdir()
        lock.take()
        other.take()


def test_steps_of_a_resumed_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than were taken are an error, fewer than planned are one call's, more are the run's."""
    before = (run / "config.yaml").read_text()
    assert resume(run, "--steps=3") == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "steps is 3; the run has taken 4 already" in told
    shutil.rmtree(run / "checkpoint-4")
    assert resume(run, "--steps=3") == 0
    assert (run / "checkpoint-3").is_dir()
    assert (run / "config.yaml").read_text() == before
    assert resume(run, "--steps=5") == 0
    assert load_config(run / "config.yaml").steps == 5
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def no_space(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(path: Any, *args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


def files_of(size: int) -> None:
    """What this process writes fails at `size` bytes, for the C++ and Rust of torch, too."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def any_size() -> Iterator[None]:
    yield
    files_of(resource.RLIM_INFINITY)


def go_on(run: Path, fail: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Take a fifth step, and call `fail` in the middle of it."""
    honest = Recorder.record_rollout

    def at_once(self: Recorder, step: int, scored: Any) -> None:
        honest(self, step, scored)
        if scored.rollout.direction == "i2t":  # the last that is sampled
            fail()

    monkeypatch.setattr(Recorder, "record_rollout", at_once)
    return resume(run, "--steps=5")


@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(("kind", "cause"), DISKS)
def test_a_disk_that_fails_is_named_and_the_last_checkpoint_stays(
    run: Path,
    kind: str,
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = torch.save

    def too_large(*args: Any) -> None:
        files_of(1000)
        honest(*args)

    def fail() -> None:
        if kind == "weights":
            files_of((run / "checkpoint-4" / "model.safetensors").stat().st_size - 1000)
        elif kind == "optimizer":
            monkeypatch.setattr(torch, "save", too_large)
        elif kind == "metrics":
            monkeypatch.setattr(Recorder, "append", no_space)
        else:
            monkeypatch.setattr("viceversa.training.checkpoint.os.replace", read_only)

    assert go_on(run, fail, monkeypatch) == 1
    files_of(resource.RLIM_INFINITY)
    told = capsys.readouterr().err
    assert told.count("viceversa: ") == 1 and "Traceback" not in told
    line = next(line for line in told.splitlines() if line.startswith("viceversa: "))
    assert cause in line and f"the last good checkpoint is {run / 'checkpoint-4'}" in line
    assert last_whole(run) == (run / "checkpoint-4", [])
    assert not (run / ".partial").exists()


def test_a_run_that_ends_by_a_number_says_what_is_left(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise FloatingPointError("loss is nan")

    assert go_on(run, fail, monkeypatch) == 1
    line = f"viceversa: loss is nan; the last good checkpoint is {run / 'checkpoint-4'}\n"
    assert line in capsys.readouterr().err
    assert json.loads((run / "env.json").read_text())["ended_by"] == "loss is nan"


def test_a_folder_that_is_gone_is_not_made_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even by a save of a run that logs later."""
    options = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(options.replace("train:\n", "train:\n  logging_steps: 50\n"))
    assert go_on(run, partial(shutil.rmtree, run), monkeypatch) == 1
    told = capsys.readouterr().err
    assert f"viceversa: {run} is gone; no checkpoint is left" in told and "Traceback" not in told
    assert not run.exists()


def test_what_a_disk_failed_over_is_told_in_words(tmp_path: Path) -> None:
    torch_says = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576")
    assert files.storage_trouble(torch_says, tmp_path) is None
    assert files.storage_trouble(torch_says, tmp_path / "a") == f"{tmp_path / 'a'} is gone"
    rust_says = Exception("Error while serializing: I/O error: No space left (os error 28)")
    assert files.storage_trouble(rust_says, tmp_path) == f"No space left on device: {tmp_path}"
    lost = FileNotFoundError(errno.ENOENT, "No such file", "photos/a.png")
    assert files.storage_trouble(lost, tmp_path) == "No such file: photos/a.png"
