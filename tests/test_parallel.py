"""Two processes on gloo: the same global batch is the same step, whatever the engine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from builders import random_janus
from test_trainer import SMALL
from two_processes import build, weights_of
from viceversa.parallel import combine_metrics

LOSSES = ("simpo", "grpo")
STEP = [
    *SMALL,
    "steps=1",
    "train.learning_rate=1.0",
    "train.save_strategy=no",
    "loss.group_share=0.7",
]


@pytest.fixture(scope="module", params=LOSSES)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of the two-process run, weights, metrics and draws of one process)."""
    out = tmp_path_factory.mktemp(request.param)
    overrides = [*STEP, f"loss.name={request.param}"]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent / "src")])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--master-port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    ran = subprocess.run(
        [*command, str(here / "two_processes.py"), str(out), *overrides],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    adapter, trainer, drawn = build(out / "alone", overrides)
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "loss" in row)
    return out, weights_of(adapter), logged, drawn


def test_two_processes_take_the_step_of_one(outcome: Any) -> None:
    """SGD at rate 1: the difference of the weights is the difference of the gradients."""
    out, alone, _, _ = outcome
    start = weights_of(random_janus())
    assert any((alone[n] - start[n]).abs().max() > 1e-3 for n in alone)
    for rank in (0, 1):
        for name, value in load_file(out / f"weights-{rank}.safetensors").items():
            torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4, msg=name)


def test_sharded_gradients_are_those_of_one_process(outcome: Any) -> None:
    out, alone, _, _ = outcome
    start = weights_of(random_janus())
    gradients = load_file(out / "gradients.safetensors")
    assert len(gradients) > 10
    for name, gradient in gradients.items():
        want = start[name] - alone[name]
        torch.testing.assert_close(gradient, want, atol=1e-5, rtol=1e-4, msg=name)


def test_draws_do_not_depend_on_the_rank(outcome: Any) -> None:
    out, _, _, alone = outcome
    ranks = [json.loads((out / f"drawn-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone) / 2
    assert sorted(ranks[0] + ranks[1]) == sorted(alone)
    assert sorted(json.loads((out / "drawn-sharded.json").read_text())) == sorted(ranks[0])


def test_metrics_are_of_all_ranks_and_rank_0_alone_writes(outcome: Any) -> None:
    out, _, alone, _ = outcome
    first, second = (json.loads((out / f"metrics-{rank}.json").read_text()) for rank in (0, 1))
    for name, value in alone.items():
        if "/" in name and not name.endswith(("seconds", "grad_norm")):
            assert first[name] == pytest.approx(value, abs=2e-5), name
            assert second[name] == first[name], name


def test_metrics_of_ranks_are_combined_by_their_kind() -> None:
    ranks = [
        {"t2i/groups": 2.0, "t2i/reward_mean": -1.0, "t2i/sample_seconds": 3.0, "t2i/tokens": 1.0},
        {"t2i/groups": 2.0, "t2i/reward_mean": -2.0, "t2i/sample_seconds": 5.0, "t2i/tokens": 3.0},
    ]
    ranks[0] |= {"t2i/ranking": 1.0, "t2i/ranking_pairs": 6.0, "t2i/sampling_gap": 0.4}
    ranks[1] |= {"t2i/ranking": 0.5, "t2i/ranking_pairs": 2.0, "t2i/sampling_gap": 0.0}
    got = combine_metrics(ranks)
    assert got["t2i/groups"] == 4
    assert got["t2i/reward_mean"] == -1.5
    assert got["t2i/sample_seconds"] == 5
    assert got["t2i/ranking"] == pytest.approx(0.875)
    assert got["t2i/sampling_gap"] == pytest.approx(0.1)
    del ranks[1]["t2i/ranking"]  # no pairs there
    assert combine_metrics(ranks)["t2i/ranking"] == 1.0
    assert math.isnan(combine_metrics([{"i2t/ranking": 0.5}])["i2t/ranking"])
