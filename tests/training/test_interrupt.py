"""Signals: what a run leaves when it is asked to stop, in one process and in two."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import JanusForConditionalGeneration

from processes import LIMIT, TORCHRUN, launch
from test_cli import QUICK, lines
from test_cli import train as train_model
from viceversa.cli import main
from viceversa.training import interrupt as module
from viceversa.training.interrupt import Interrupt, Interrupted
from viceversa.training.recorder import Recorder

HERE = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def heard(capfd: Any) -> Iterator[None]:
    """SIGHUP, also where pytest itself was started by nohup; away from its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_signal_leaves_a_run_that_resumes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any, signum: signal.Signals
) -> None:
    out, honest = tmp_path / "run", Recorder.record_rollout

    def send(self: Recorder, step: int, scored: Any) -> None:
        honest(self, step, scored)
        if step == 1 and scored.rollout.direction == "t2i":
            signal.raise_signal(signum)

    monkeypatch.setattr(Recorder, "record_rollout", send)
    quick = ["--set=eval.specs_per_kind=0", "--set=train.save_strategy=no", "--steps", "3"]
    assert train_model(model, out, *quick) == 128 + signum
    told = capfd.readouterr()
    assert f"{signum.name} once more stops at once" in " ".join(told.out.split())
    assert told.err == f"viceversa: interrupted by {signum.name}\n"
    assert signal.getsignal(signum) == signal.SIG_DFL
    assert json.loads((out / "env.json").read_text())["interrupted"]
    JanusForConditionalGeneration.from_pretrained(out / "checkpoint-2")
    monkeypatch.setattr(Recorder, "record_rollout", honest)
    assert main(["train", "--resume", "--output", str(out)]) == 0
    assert [row["step"] for row in lines(out / "metrics.jsonl")] == [1, 2, 3]


def cut_short(*signals: signal.Signals) -> bool:
    """Whether a step in which these signals come is not finished."""
    said: list[str] = []
    finished = False
    try:
        with Interrupt() as interrupt, interrupt.deferred(said.append):
            for signum in signals:
                signal.raise_signal(signum)
            finished = True
    except Interrupted:
        assert len(said) == 1
        return not finished
    raise AssertionError("the run goes on")


def test_the_second_signal_stops_at_once() -> None:
    assert not cut_short(signal.SIGTERM)
    assert cut_short(signal.SIGINT, signal.SIGINT)
    assert cut_short(signal.SIGHUP, signal.SIGTERM)
    with pytest.raises(Interrupted), Interrupt():  # no step to finish
        signal.raise_signal(signal.SIGTERM)


def test_what_torchrun_passes_on_is_no_second_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(module, "COPY_SECONDS", 1e9)
    assert not cut_short(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
    assert cut_short(signal.SIGINT, signal.SIGTERM)
    monkeypatch.setattr(module, "COPY_SECONDS", 0.0)
    assert cut_short(signal.SIGTERM, signal.SIGTERM)


def test_nohup_is_respected() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGHUP)
    assert not interrupt.asked


CASES = ["SIGINT-1-sampled", "SIGTERM-0-backward", "SIGHUP-1-backward", "SIGTERM-1-saving"]


@pytest.mark.slow
def test_one_of_two_processes_is_signalled_and_both_stop_and_resume(
    model: Path, tmp_path: Path
) -> None:
    launch(str(HERE / "signalled.py"), str(model), str(tmp_path), *CASES, cwd=tmp_path)
    for case in CASES:
        code = 128 + signal.Signals[case.split("-")[0]]
        for rank in (0, 1):
            assert json.loads((tmp_path / f"{case}-{rank}.json").read_text()) == [code, 0]
        assert [row["step"] for row in lines(tmp_path / case / "metrics.jsonl")] == [1, 2, 3, 4]
    told = " ".join((tmp_path / "output.txt").read_text().split())
    assert told.count("once more stops at once") == len(CASES)
    assert told.count("go on with") == len(CASES)


def long_run(model: Path, out: Path) -> list[str]:
    options = ["--steps", "100000", "--set=eval.specs_per_kind=0", *QUICK[:-2]]
    return ["-m", "viceversa", "train", "--model", str(model), "--output", str(out), *options]


def check_stopped(out: Path) -> Path:
    """The checkpoint, of the last step that was taken."""
    (checkpoint,) = out.glob("checkpoint-*")
    assert lines(out / "metrics.jsonl")[-1]["step"] == int(checkpoint.name.split("-")[1])
    assert (out / "report.html").exists()
    return checkpoint


@pytest.mark.slow
def test_a_terminal_that_hangs_up(model: Path, tmp_path: Path) -> None:
    """Nothing that the run prints from then on may stop it before it has saved."""
    out = tmp_path / "run"
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, *long_run(model, out)])
    while not (out / "metrics.jsonl").exists():
        os.read(terminal, 1024)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    check_stopped(out)


@pytest.mark.slow
def test_torchrun_passes_a_signal_on(model: Path, tmp_path: Path) -> None:
    """A scheduler signals every process of a job: torchrun's get it twice, and stop as for one."""
    out, told = tmp_path / "run", tmp_path / "output.txt"
    with told.open("w") as output:
        running = subprocess.Popen([*TORCHRUN, *long_run(model, out)], stdout=output, stderr=output)
        try:
            while not (out / "metrics.jsonl").exists():
                assert running.poll() is None, told.read_text()
                time.sleep(0.1)
            for worker in psutil.Process(running.pid).children():
                worker.terminate()
            running.terminate()
            assert running.wait(LIMIT) == 1
        finally:
            running.kill()
    assert told.read_text().count("viceversa: interrupted by SIGTERM") == 2
    assert (check_stopped(out) / "rng_state_1.pth").exists()
