"""Out of memory: fewer rows at once, and the same result."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from builders import random_janus
from small_runs import check_same_update, config, trained, weights
from viceversa.inference import logprobs
from viceversa.inference.memory import RowBudget
from viceversa.rl import rewards, rollout
from viceversa.training.measuring import config_that_fits


def test_rows_are_halved_until_they_fit() -> None:
    tried = []

    def work(rows: int) -> str:
        tried.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return "done"

    budget = RowBudget("reward.batch_rows", 16)
    with pytest.warns(UserWarning, match=r"reward\.batch_rows is now 2"):
        assert budget(work, 100) == "done"
    assert tried == [16, 8, 4, 2]
    assert budget(work, 100) == "done"
    assert tried[-1] == 2  # remembered


def test_too_little_for_one_row_says_so() -> None:
    def work(rows: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.warns(UserWarning, match="rows is now 1"), pytest.raises(MemoryError, match="=1"):
        RowBudget("rows", 2)(work, 2)


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.parametrize(
    ("cap", "unit", "most", "fits", "attempts"),
    [
        (512, 1, 128, 50, [128, 64, 32]),
        (512, 8, 128, 50, [128, 64, 32]),
        (512, 8, 24, 8, [24, 8]),  # 12 rows are one group of 8, as 8 are
        (20, 8, 128, 8, [16, 8]),
        (5, 8, 128, 8, [8]),  # a group is the least
    ],
)
def test_no_attempt_repeats_the_one_before(
    cap: int, unit: int, most: int, fits: int, attempts: list[int]
) -> None:
    tried = []

    def work(rows: int) -> None:
        tried.append(rows)
        if rows > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    RowBudget("rows", cap, unit)(work, most)
    assert tried == attempts


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.parametrize("loss", ["simpo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_memory_errors_do_not_change_the_update(
    tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling, scoring and both halves of a backward pass run out, once each or more often."""
    given = [f"loss.name={loss}", "train.gradient_accumulation_steps=2"]
    whole, other = trained(config(tmp_path / "a", *given))
    adapter = random_janus()  # its making samples too
    start = weights(adapter)
    honest = {
        "sample": rollout.sample,
        "score": rewards.completion_logprobs,
        "learn": logprobs.completion_logprobs,
    }
    rows_of = {"sample": 2, "score": 3, "learn": 2}
    failed: list[tuple[str, int]] = []

    def tight(name: str) -> Any:
        def call(adapter: Any, prompts: Any, *rest: Any, **kwargs: Any) -> Any:
            learning = torch.is_grad_enabled()
            rows = len(prompts if name == "sample" else rest[0])
            if rows > rows_of[name] and (name != "learn" or learning):
                failed.append((name, rows))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return honest[name](adapter, prompts, *rest, **kwargs)

        return call

    monkeypatch.setattr(rollout, "sample", tight("sample"))
    monkeypatch.setattr(rewards, "completion_logprobs", tight("score"))
    monkeypatch.setattr(logprobs, "completion_logprobs", tight("learn"))
    split, one = trained(config(tmp_path / "b", *given), adapter=adapter)
    assert {name for name, _ in failed} == {"sample", "score", "learn"}
    for one_kind in ("sample", "score"):  # each failure is of less than the one before
        sizes = [rows for name, rows in failed if name == one_kind]
        assert all(later < sooner for sooner, later in itertools.pairwise(sizes)), sizes
    assert one.backward_rows.rows == 2
    assert config_that_fits(one).reward.batch_rows == 2  # nor does what is measured at the end
    check_same_update(split, whole, start)
    losses = [t.state.log_history[0]["loss"] for t in (other, one)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


@pytest.mark.parametrize("loss", ["simpo", "grpo", "dpo", "raft"])
def test_backward_rows_do_not_change_the_update(tmp_path: Path, loss: str) -> None:
    whole, one = trained(config(tmp_path / "a", f"loss.name={loss}"))
    split, other = trained(config(tmp_path / "b", f"loss.name={loss}", "loss.batch_rows=3"))
    check_same_update(split, whole, weights(random_janus()))
    for name, metric in one.step_metrics().items():
        # at the start DPO's policy is its reference, and who is preferred is rounding
        if not name.endswith(("_seconds", "grad_norm", "preferred")):
            assert other.step_metrics()[name] == pytest.approx(metric, rel=1e-4, abs=1e-4), name
