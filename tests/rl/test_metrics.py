"""Typed metrics add up as what they are."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from small_runs import config, trainer
from viceversa.rl.metrics import Max, Mean, Sum, merged, of_direction, values
from viceversa.scenes.rewards import verified


def test_each_kind_adds_up_as_what_it_is() -> None:
    """3 and 5 groups on two ranks are 8; a mean goes by its weights; seconds are the slowest's."""
    ranks = [
        {"groups": Sum(3.0), "margin": Mean(6.0, 3.0), "seconds": Max(2.0)},
        {"groups": Sum(5.0), "margin": Mean(1.0, 1.0), "seconds": Max(7.0)},
    ]
    assert values(merged(ranks)) == {"groups": 8.0, "margin": 7 / 4, "seconds": 7.0}


def test_a_part_that_counted_nothing_changes_no_mean() -> None:
    parts = [{"kl": Mean(2.0, 4.0)}, {"kl": Mean(0.0, 0.0)}, {}]
    assert values(merged(parts)) == {"kl": 0.5}
    assert values({"ranking": Mean(0.0, 0.0)}) == {}
    assert math.isnan(Mean(0.0, 0.0).value)


def test_one_name_has_one_kind() -> None:
    with pytest.raises(TypeError, match="metric pairs is a Sum"):
        merged([{"pairs": Sum(1.0)}, {"pairs": Mean(1.0, 1.0)}])


def test_names_say_the_direction() -> None:
    assert of_direction("t2i", {"groups": Sum(1.0)}) == {"t2i/groups": Sum(1.0)}


def test_the_page_says_how_each_metric_is_combined(tmp_path: Path) -> None:
    """The last column of docs/metrics.md against the kind that the code gives each metric."""
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    said: dict[str, str] = {}
    for line in page.splitlines():
        if line.startswith("| `"):
            cells = [c.strip() for c in line.strip("|").split("|")]
            for name in re.findall(r"`([\w/]+)`", cells[0]):
                said[name] = cells[-1]
    kinds = {Mean: "mean", Sum: "sum", Max: "largest"}
    seen = set()
    for loss in ("grpo", "simpo", "dpo"):
        given = [f"loss.name={loss}", "loss.i2t_kl=0.1", "replay.questions=scenes"]
        settings = config(tmp_path / loss, *given, "loss.direction_norms_every=1")
        one = trainer(settings, monitor=verified)
        one.train()
        for name, metric in merged([one._rollout[1], *one._learned]).items():
            short = name.partition("/")[2]
            row = name if name in said else short
            assert said[row] == kinds[type(metric)], name
            seen.add(row)
    assert {"kl", "reward_mean", "sample_seconds", "rows", "verified", "margin"} <= seen
