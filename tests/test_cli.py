"""The command line, in process: a whole run, user files, one-line errors, Ctrl-C, resume."""

from __future__ import annotations

import html
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import JanusForConditionalGeneration, JanusProcessor

import hostile
from builders import random_chameleon, random_emu3, save
from viceversa.cli import COMMANDS, main
from viceversa.config import EvalConfig
from viceversa.inference.logprobs import policy_logprobs
from viceversa.models.base import Adapter
from viceversa.rl.rewards import DualReward
from viceversa.scenes import evaluate as evaluation
from viceversa.training import environment
from viceversa.training.recorder import Recorder
from viceversa.training.run import silent_troubles
from viceversa.types import Direction

QUICK = [
    "--set=data.prompts_per_step=2",
    "--set=data.images_per_step=2",
    "--set=data.scenes_size=8",
    "--set=sampling.group_size=2",
    "--set=sampling.max_caption_tokens=8",
    "--set=eval.specs_per_kind=2",
    "--set=eval.held_out_per_kind=1",
    "--set=eval.held_out_group=2",
]


#: A model that can choose draws other pictures than the built-in world's.
WIDE = ["--set=model.image_size=48"]


def train(model: Path, out: Path, *more: str) -> int:
    return main(["train", "--model", str(model), "--output", str(out), *QUICK, *more])


def fill(argument: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        argument = argument.replace(name, place)
    return argument


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_the_whole_folder(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(model, out, "--steps", "2") == 0
    assert [row["step"] for row in lines(out / "metrics.jsonl")] == [1, 2]
    for key in ("t2i/reward_mean", "i2t/reward_gap", "pictures_per_second", "grad_norm"):
        assert key in lines(out / "metrics.jsonl")[0]
    figures = json.loads((out / "eval.json").read_text())
    for name in ("base", "tuned"):
        for task in ("t2i", "i2t", "questions"):
            assert 0 <= figures[name][task]["accuracy"] <= 1
        assert len(figures[name]["t2i"]["kinds"]) == 7
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["steps"] == 2
    assert config["sampling"]["group_size"] == 2
    assert json.loads((out / "env.json").read_text())["torch"]
    assert {row["direction"] for row in lines(out / "rollouts.jsonl")} == {"t2i", "i2t"}
    page = (out / "report.html").read_text()
    assert all((out / src).is_file() for src in re.findall(r'<img src="([^"]+)"', page))
    assert page.count("<img ") > 40
    JanusForConditionalGeneration.from_pretrained(out / "checkpoint-2")
    JanusProcessor.from_pretrained(out / "checkpoint-2")


def test_user_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts and pictures of one's own: what is unreadable is named, counted and skipped."""
    (tmp_path / "prompts.txt").write_text("a cat on a mat\n\nein Bär 🐻\n")
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (50, 30), "red").save(folder / "wide.png")
    Image.new("L", (9, 9), 128).save(folder / "grey.jpg")
    (folder / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "run"
    args = ["--prompts", str(tmp_path / "prompts.txt"), "--images", str(folder), "--steps", "1"]
    args.append(f"--set=data.cache_dir={tmp_path / 'cache'}")
    assert train(model, out, *args) == 0
    assert "broken.png" in capsys.readouterr().out
    inputs = json.loads((out / "env.json").read_text())["inputs"]
    assert (inputs["i2t"]["inputs"], inputs["i2t"]["skipped"]) == (2, 1)
    assert (inputs["t2i"]["inputs"], inputs["t2i"]["skipped"]) == (2, 1)
    assert not (out / "eval.json").exists()
    assert "t2i/verified" not in lines(out / "metrics.jsonl")[0]


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (random_emu3, [*WIDE, "--images", "{photos}"]),
        (random_chameleon, []),
    ],
)
def test_prompts_of_the_built_in_world_for_pictures_that_its_verifier_cannot_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    adapter: Callable[[], Adapter],
    options: list[str],
) -> None:
    """Of another size, or none: the run goes without the monitor, and says so."""
    save(adapter(), tmp_path / "model")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 30), "red").save(tmp_path / "photos" / "red.png")
    options = [option.replace("{photos}", str(tmp_path / "photos")) for option in options]
    options += [f"--set=data.cache_dir={tmp_path / 'cache'}", "--steps", "1"]
    assert train(tmp_path / "model", tmp_path / "run", *options) == 0
    assert "nothing is verified" in " ".join(capsys.readouterr().out.split())
    assert "t2i/verified" not in lines(tmp_path / "run" / "metrics.jsonl")[0]
    measured = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert list(measured) == ["held_out"]  # without labels


@pytest.mark.parametrize("streaming", [False, True])
def test_hostile_files_and_prompts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], streaming: bool
) -> None:
    """The run finishes; report, env.json, skipped.jsonl and the console count each kind."""
    pictures = hostile.write_pictures(tmp_path / "photos")
    prompts = hostile.write_prompts(tmp_path / "prompts.txt")
    out = tmp_path / "run"
    args = ["--prompts", str(tmp_path / "prompts.txt"), "--images", str(tmp_path / "photos")]
    args += [f"--set=data.cache_dir={tmp_path / 'cache'}", "--steps", "2"]
    # enough a step that a stream comes round once
    per_step = ["--set=data.prompts_per_step=12", "--set=data.images_per_step=28"]
    args += [*per_step, f"--set=data.streaming={str(streaming).lower()}"]
    args += ["--set=eval.held_out_inputs=0"]  # every input is counted below
    assert train(model, out, *args) == 0
    printed = capsys.readouterr().out
    env = json.loads((out / "env.json").read_text())
    listed = Counter((row["direction"], row["kind"]) for row in lines(out / "skipped.jsonl"))
    rows = table_rows((out / "report.html").read_text())
    for direction, expected in (("t2i", prompts), ("i2t", pictures)):
        counted = {row["kind"]: row["count"] for row in env["inputs"][direction]["kinds"]}
        assert counted == {kind: n for kind, n in expected.items() if kind}
        for kind, count in counted.items():
            assert listed[direction, kind] == count
            assert [kind, str(count)] in rows
            assert f" {kind}: " in printed
    assert printed.count("skipped") + printed.count("changed") < 35  # lines, not one an input
    ids = env["image_ids"]
    assert ids["computed"] == 15  # different pictures among those used
    assert ids["computed"] + ids["from_cache"] == 28 * 2  # two steps, and none to estimate


def table_rows(page: str) -> list[list[str]]:
    """Kind and count of each row of the tables of inputs."""
    section = page.partition('<h2 id="inputs">')[2].partition("</section>")[0]
    found = re.findall(r'<tr><th scope="row">(.*?)</th><td>.*?</td><td>(.*?)</td>', section)
    return [[html.unescape(kind), count] for kind, count in found]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompts", "{empty}"], "holds no prompt"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--images", "nowhere"], "nowhere"),
        (["--set", "loss.betta=2"], "did you mean loss.beta"),
        (["--set", "loss.beta=two"], "loss.beta is 'two'"),
        (["--set", "train.lerning_rate=1"], "train.lerning_rate"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--model", "{other}"], "'llama' model"),
        (["--model", "{empty_dir}"], "no config.json"),
        (["--set", "train.report_to=wandb"], "'wandb'; it is not installed"),
        (["--set", "train.report_to=[tensorboard,nonsense]"], "'nonsense'; choose one of none,"),
        (["--output", "{empty}"], "empty.txt' is a file"),
        (["--output", "{empty}/deeper"], "empty.txt' is a file"),
        (["--output", ""], "output_dir is ''; it takes a name"),
        (["--output", "x" * 300], "choose a name of at most 200 bytes"),
        (["--output", "a/" + "é" * 120 + "/b"], "choose a name of at most 200 bytes"),
        (["--config", "x" * 300], "config file 'xxx"),
        (["--config", "{empty_dir}/"], "void' cannot be read"),
        (["--model", "x" * 300], "no such folder"),
        (["--set", "train.learning_rate=.nan"], "train.learning_rate is nan; it must be at least"),
        (["--set", "train.learning_rate=-1"], "train.learning_rate is -1; it must be at least 0"),
        (["--set", "train.adam_beta2=1"], "train.adam_beta2 is 1; it must be from 0 to 0.999999"),
        (
            ["--model", "{wide}", *WIDE, "--set=schedule=t2i", "--set=reward.name=verifier"],
            "reward.name is verifier; it needs labels",
        ),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "void").mkdir()
    if "{wide}" in arguments:
        save(random_emu3(), tmp_path / "wide")
    places = {
        "{wide}": str(tmp_path / "wide"),
        "{empty}": str(tmp_path / "empty.txt"),
        "{other}": str(tmp_path / "other"),
        "{empty_dir}": str(tmp_path / "void"),
    }
    out = tmp_path / "run"
    assert train(model, out, *(fill(a, places) for a in arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error
    assert not out.exists()


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_no_pass_of_a_users_model_is_larger_than_its_budget(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    schedule: str,
) -> None:
    """From the first on, estimate included; and the time is told once a whole round is over."""
    rows: list[int] = []

    def counted(adapter: Adapter, batch: Any, *more: Any) -> Any:
        rows.append(max(len(completions) for _, completions in batch))
        return policy_logprobs(adapter, batch, *more)

    monkeypatch.setattr("viceversa.rl.step.policy_logprobs", counted)
    more = ["--set=loss.batch_rows=2", "--set=sampling.group_size=4", "--set=eval.specs_per_kind=0"]
    more.append(f"--set=schedule={schedule}")
    assert train(model, tmp_path / "run", "--steps", "3", *more) == 0
    assert max(rows) == 2
    printed = capsys.readouterr().out
    assert printed.index("time after") < printed.index("about ")
    steps = 1 if schedule == "joint" else 2
    assert printed.count(f"after {steps} of 3 steps: about") == 1


def test_the_built_in_model_gets_an_estimate_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "2", "--output", str(tmp_path / "run"), "--set=eval.specs_per_kind=0"]
    assert main(["train", *QUICK, *more]) == 0
    printed = capsys.readouterr().out
    assert printed.index("min of training") < printed.index("step 1/2")
    assert "after 1 of" not in printed


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_no_memory_is_one_line(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    def full(*_: Any) -> None:
        raise error("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has\nno more.")

    monkeypatch.setattr(DualReward, "__call__", full)
    more = ["--steps", "1", "--set", "eval.specs_per_kind=0"]
    assert train(model, tmp_path / "run", *more) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "CUDA out of memory" in said and "viceversa plan" in said and "GPU 0" not in said


@pytest.mark.parametrize("error", ["KeyError('x')", "FileNotFoundError(2, 'No such file', 'x')"])
def test_an_error_in_a_reward_is_one_line_that_names_it(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: str,
) -> None:
    mine = tmp_path / "failing.py"
    mine.write_text(f"def clip(rollout):\n    raise {error}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    more = ["--steps=1", "--set=eval.specs_per_kind=0", "--set=reward.name=failing:clip"]
    assert train(model, tmp_path / "run", *more) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    start = f"viceversa: reward clip failed on t2i outputs, at {mine}, line 2: "
    assert said.startswith(start + error.partition("(")[0])
    del sys.modules["failing"]


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", "--output", str(tmp_path / "none")]) == 2
    assert "config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("train --stepz 3", ["--stepz", "Perhaps you meant", "--steps INT"]),
        ("evaluate --best_decodin", ["--best_decodin", "Perhaps you meant", "--best-decoding"]),
        ("train -steps 3", ["Unrecognized options: -steps"]),
        ("train --steps many", ["--steps", "INT", "'many'"]),
        ("evaluate --temperature=hot", ["--temperature", "float", "'hot'"]),
        ("train --steps", ["Missing value", "'--steps'"]),
        ("train --steps None", ["--steps", "INT", "'None'"]),
        ("train --resume=maybe", ["Unrecognized options: maybe"]),
        ("plan more", ["Unrecognized options: more"]),
        ("merge", ["Missing from viceversa merge", "PATH", "--output"]),
        ("trian", ["trian", "Available subcommands: train, plan"]),
        ("", ["Expected one of {train, plan, evaluate"]),
        ("--nothing", ["Unrecognized options: --nothing"]),
    ],
)
def test_wrong_usage_is_named_with_what_there_is_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: str, named: list[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    told = capsys.readouterr()
    for name in (*named, "--help"):
        assert name in told.err
    assert told.out == "" and "Traceback" not in told.err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"Try: viceversa {command}" in " ".join(capsys.readouterr().out.replace("│", "").split())


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(command in told for command in COMMANDS)


def test_ctrl_c_leaves_a_checkpoint_and_a_report_and_the_run_resumes(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    honest = Recorder.record_rollout

    def press(self: Recorder, step: int, scored: Any) -> None:
        honest(self, step, scored)
        if step == 1 and scored.rollout.direction == "t2i":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "record_rollout", press)
    assert train(model, out, "--steps", "4") == 130
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("Ctrl-C once more stops at once") == 1
    assert told.index("Ctrl-C once more") < told.index("step 2/4")
    assert json.loads((out / "env.json").read_text())["interrupted"]
    JanusForConditionalGeneration.from_pretrained(out / "checkpoint-2")
    assert "<html" in (out / "report.html").read_text()
    monkeypatch.setattr(Recorder, "record_rollout", honest)
    assert main(["train", "--resume", "--output", str(out), "--seed", "3"]) == 2
    assert main(["train", "--resume", "--output", str(out)]) == 0
    assert [row["step"] for row in lines(out / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not json.loads((out / "env.json").read_text())["interrupted"]
    assert "tuned" in json.loads((out / "eval.json").read_text())


def test_ctrl_c_before_training_says_that_there_is_nothing_to_resume(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    press = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "evaluate", press)
        assert train(model, out, "--steps", "1") == 130
    told = " ".join(capsys.readouterr().out.split())
    assert "nothing to resume: start again" in told
    assert "once more" not in told  # it did stop at once
    assert main(["train", "--resume", "--output", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "stopped before a step was trained" in error
    again = ["train", "--config", str(out / "config.yaml"), "--set=eval.specs_per_kind=0"]
    assert main(again) == 0
    assert (out / "checkpoint-1").exists()


def test_tensorboard_gets_the_rewards_of_both_directions(model: Path, tmp_path: Path) -> None:
    more = ["--set=train.report_to=tensorboard", "--set=eval.specs_per_kind=0", "--steps", "2"]
    assert train(model, tmp_path / "run", *more) == 0
    events = next((tmp_path / "run").rglob("events.out.tfevents*"))
    found = EventAccumulator(str(events)).Reload()
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    for name in ("t2i/reward_mean", "i2t/reward_mean"):
        scalars = found.Scalars(f"train/{name}")
        assert [s.step for s in scalars] == [1, 2]
        assert [s.value for s in scalars] == pytest.approx([row[name] for row in rows])


def test_an_old_run_is_kept(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):
        assert train(model, out, "--steps", "1", "--set", "eval.specs_per_kind=0") == 0
    assert len(list(tmp_path.glob("run*"))) == 2


def test_a_run_in_the_current_folder_is_kept(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It cannot be renamed, and is not overwritten; from outside its name may look like markup."""
    out = tmp_path / "t" / "y[/b]"
    assert train(model, out, "--steps", "1", "--set=eval.specs_per_kind=0") == 0
    assert f"model  {out}" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.chdir(out / "images")
    for name in ("..", str(out)):
        assert main(["train", "--model", str(model), "--output", name, *QUICK]) == 2
        assert "the current one lies in" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("evaluate --temperature nan", "eval.temperature is nan"),
        ("evaluate --seed -1", "eval.seed is -1"),
        ("evaluate --output .", "--output is '.', a folder; name a file"),
        ("evaluate --output {file}/x.json", "is a file: choose a folder"),
        ("plan --memory nan", "--memory is nan; it must be at least 0"),
        ("plan --prompt-tokens -5", "--prompt-tokens is -5; it must be at least 1"),
        ("plan --json /", "--json is '/', a folder"),
        ("pretrain --steps 0", "--steps is 0; it must be at least 1"),
        ("pretrain --device tpu", "--device is 'tpu'; choose cpu"),
        ("report {file}", "does not exist"),
    ],
)
def test_wrong_options_of_the_other_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, named: str
) -> None:
    (tmp_path / "file").touch()
    assert main([a.replace("{file}", str(tmp_path / "file")) for a in arguments.split()]) == 2
    told = capsys.readouterr().err
    assert named in told and told.count("\n") == 1


def test_evaluate_and_report(model: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert main(["evaluate", str(model), "--specs", "2", "--output", str(figures)]) == 0
    assert json.loads(figures.read_text())["figures"]["t2i"]["kinds"]["single"]["n"] == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2


def test_each_direction_is_measured_at_its_own_best_decoding(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, tuple[float, float]] = {}
    honest = evaluation.accuracy
    best = {"t2i": (0.5, 2.0, []), "i2t": (0.0, 1.0, [])}
    monkeypatch.setattr(evaluation, "best_decoding", lambda *a, direction: best[direction])

    def spy(adapter: Any, direction: Direction, specs: Any, config: EvalConfig) -> Any:
        asked[direction] = (config.temperature, config.guidance)
        return honest(adapter, direction, specs, config)

    monkeypatch.setattr(evaluation, "accuracy", spy)
    assert main(["evaluate", str(model), "--specs", "1", "--best-decoding"]) == 0
    assert asked == {"t2i": (0.5, 2.0), "i2t": (0.0, 1.0)}


def test_silent_troubles_are_said_aloud() -> None:
    healthy = {"grad_norm": 1.0, "t2i/groups": 4, "t2i/degenerate_groups": 1, "i2t/samples": 8}
    assert silent_troubles({**healthy, "i2t/invalid": 2}) == []
    sick = {"grad_norm": 0, "t2i/groups": 4, "t2i/degenerate_groups": 4}
    told = silent_troubles({**sick, "i2t/samples": 8, "i2t/invalid": 7})
    assert len(told) == 3


def test_the_commit_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    honest = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: asked.append(a) or honest(*a, **k))
    environment._commit.cache_clear()
    assert environment.environment()["commit"] == environment.environment()["commit"]
    assert len(asked) <= 2  # none where there is no git


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_not_that_of_the_users_own_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package may be installed inside a repository: its file is then no part of that."""
    names = ("-c", "user.name=me", "-c", "user.email=me@example.org")
    installed = tmp_path / "site" / "environment.py"
    installed.parent.mkdir()
    installed.touch()
    (tmp_path / "mine.py").touch()
    for command in (("init", "-q"), ("add", "mine.py"), (*names, "commit", "-qm", "Begin")):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "__file__", str(installed))
    environment._commit.cache_clear()
    assert environment.environment()["commit"] is None
    subprocess.run(["git", "add", "site"], cwd=tmp_path, check=True)
    environment._commit.cache_clear()
    assert len(environment.environment()["commit"]) == 40
    environment._commit.cache_clear()
