"""Two processes on gloo: the same global batch is the same step, whatever the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from builders import random_janus, save
from processes import TORCHRUN, WAIT, apart, launch
from small_runs import SMALL
from two_processes import build, learn

LOSSES = ("simpo", "grpo")
STEPS = [
    *SMALL,
    "steps=3",
    "train.save_strategy=no",
    "loss.group_share=0.7",
    "reward.likelihood_power=2",
    "sampling.top_k=20",  # so that what is sampled from is not what is optimised
    "replay.questions=scenes",
    "replay.per_step=12",
    "replay.max_answer_tokens=6",
    "train.learning_rate=1e-5",  # large steps would make much of what differs in the last bit
]


@pytest.fixture(scope="module", params=[pytest.param(x, marks=pytest.mark.slow) for x in LOSSES])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of the two-process run; one process's gradients, metrics and draws)."""
    out = tmp_path_factory.mktemp(request.param)
    overrides = [*STEPS, f"loss.name={request.param}"]
    script = str(Path(__file__).parents[1] / "two_processes.py")
    two = [*overrides, "loss.batch_rows=2", f"train.ddp_timeout={WAIT}"]
    launch(script, str(out), *two, cwd=out)
    _, trainer, drawn = build(out / "alone", overrides)
    gradients, logged = learn(trainer)
    return out, gradients, logged, drawn


def of_step(gradients: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    return {n.split("/")[1]: g for n, g in gradients.items() if n.startswith(f"{step}/")}


def test_two_processes_take_the_steps_of_one(outcome: Any) -> None:
    """With unlike numbers of rows, and in backward passes of 2 of them where one takes all."""
    out, gradients, *_ = outcome
    for rank in (0, 1):
        found = load_file(out / f"gradients-{rank}.safetensors")
        for step in range(3):
            want = of_step(gradients, step)
            assert len(want) > 10
            # rounding: 1e-6, and 4e-6 after an update, when the weights differ in the last bit
            assert apart(of_step(found, step), want) < 1e-4, (rank, step)
    first, second = (load_file(out / f"weights-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_sharded_gradients_are_those_of_one_process(outcome: Any) -> None:
    out, gradients, *_ = outcome
    assert apart(load_file(out / "sharded.safetensors"), of_step(gradients, 0)) < 1e-4


def test_draws_do_not_depend_on_the_rank(outcome: Any) -> None:
    out, *_, alone = outcome
    ranks = [json.loads((out / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone) / 2
    assert sorted(ranks[0] + ranks[1]) == sorted(alone)
    first = json.loads((out / "drawn-sharded.json").read_text())
    assert first == ranks[0][: len(first)]


def test_metrics_are_of_all_ranks(outcome: Any) -> None:
    out, *_, alone, _ = outcome
    ranks = [json.loads((out / f"metrics-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(alone) == 3
    for first, second, want in zip(*ranks, alone, strict=True):
        for name, value in want.items():
            if "/" in name and not name.endswith(("seconds", "grad_norm")):
                # a reward's last bit, by the spread of its group
                assert first[name] == pytest.approx(value, abs=1e-4), name
                assert second[name] == first[name], name


def test_a_process_leaves_its_group_before_it_ends() -> None:
    script = """
import atexit, torch.distributed as dist
from viceversa.training.parallel import leave_group_at_exit

atexit.register(lambda: print("open" if dist.is_initialized() else "closed"))  # called last
leave_group_at_exit()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for run in range(2):
    leave_group_at_exit()
print("running" if dist.is_initialized() else "ended")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["running", "closed"]), done.stderr


@pytest.mark.slow
def test_the_first_process_alone_writes(tmp_path: Path) -> None:
    """The command line under torchrun: one folder, one line a step, nothing left lying about."""
    model, work = tmp_path / "model", tmp_path / "work"
    adapter = random_janus()
    save(adapter, model)
    work.mkdir()
    sets = [*SMALL, "eval.specs_per_kind=0", f"train.ddp_timeout={WAIT}"]
    command = ["-m", "viceversa", "train", "--model", str(model), "--output", "run"]
    launch(
        *command, "--steps", "2", *(x for s in sets for x in ("--set", s)), cwd=work, by=TORCHRUN
    )
    assert sorted(p.name for p in work.iterdir()) == ["output.txt", "run"]
    run = work / "run"
    left = {"config.yaml", "env.json", "images", "metrics.jsonl", "report.html", "rollouts.jsonl"}
    left |= {"skipped.jsonl", "checkpoint-1", "checkpoint-2", ".lock", "eval.json", "samples"}
    assert {p.name for p in run.iterdir()} == left
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["t2i/samples"] == row["i2t/samples"] == 16  # 4 inputs x 4, of both processes
    drawn = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    assert [(row["step"], row["direction"]) for row in drawn] == [
        (step, direction) for step in (0, 1) for direction in ("t2i", "i2t")
    ]
    for step in (1, 2):
        names = {p.name for p in (run / f"checkpoint-{step}").iterdir()}
        assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "README.md"} <= names
    start = adapter.model.lm_head.weight
    loaded = JanusForConditionalGeneration.from_pretrained(run / "checkpoint-2")
    assert not torch.equal(loaded.lm_head.weight, start)
