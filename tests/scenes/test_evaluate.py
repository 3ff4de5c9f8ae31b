"""Intervals and the figures that stand on them."""

from __future__ import annotations

import random

import pytest

from builders import random_janus
from viceversa.config import ConfigError, EvalConfig
from viceversa.scenes.evaluate import (
    best_decoding,
    evaluate_scenes,
    mean_of_kinds,
    share,
    wilson,
)

SMALL = EvalConfig(specs_per_kind=3, held_out_per_kind=2)


def test_wilson_by_hand() -> None:
    """8 of 10 (Wilson 1927): centre (0.8 + 0.19207) / 1.38415, half-width 0.22658."""
    low, high = wilson(0.8, 10)
    assert low == pytest.approx(0.4901625, abs=1e-6)
    assert high == pytest.approx(0.9433178, abs=1e-6)
    assert wilson(0.0, 10)[0] == 0
    assert wilson(0.0, 10)[1] > 0.2


def test_repeated_inputs_widen_the_interval() -> None:
    """100 draws of 100 inputs, or of 4 inputs that are always right or always wrong."""
    right = [True, False] * 50
    apart = share(right, [str(i) for i in range(100)])
    together = share(right, [str(i % 4) for i in range(100)])
    assert apart.effective_n == pytest.approx(100)
    assert together.effective_n == pytest.approx(4)
    assert together.distinct == 4
    assert together.interval[0] < apart.interval[0]


def test_interval_covers_the_truth() -> None:
    """Of 300 simulated samples of p = 0.3, about 95 % of the intervals hold it."""
    rng = random.Random(0)
    hits = 0
    for _ in range(300):
        right = [rng.random() < 0.3 for _ in range(60)]
        low, high = share(right, [str(i) for i in range(60)]).interval
        hits += low <= 0.3 <= high
    assert 0.91 <= hits / 300 <= 0.99


def test_mean_over_kinds_weighs_kinds_alike() -> None:
    a = share([True] * 10, [str(i) for i in range(10)])
    b = share([False] * 90, [str(i) for i in range(90)])
    figures = mean_of_kinds({"a": a, "b": b})
    assert figures["accuracy"] == 0.5
    assert figures["interval"][0] < 0.5 < figures["interval"][1]


def test_evaluation_repeats_and_covers_every_task() -> None:
    adapter = random_janus()
    first = evaluate_scenes(adapter, SMALL)
    assert first == evaluate_scenes(adapter, SMALL)
    assert set(first) == {"t2i", "i2t", "questions"}
    assert len(first["t2i"]["kinds"]) == 7
    assert len(first["i2t"]["held_out"]["kinds"]) == 4


def test_decoding_search() -> None:
    adapter = random_janus()
    temperature, guidance, table = best_decoding(adapter, SMALL, (1.0, 0.0), (1.0,))
    assert (temperature, guidance) == (1.0, 1.0)
    assert len(table) == 2


def test_another_picture_size_is_refused() -> None:
    adapter = random_janus()
    adapter.image_size = 384
    with pytest.raises(ConfigError, match="24 pixels"):
        evaluate_scenes(adapter, SMALL)
