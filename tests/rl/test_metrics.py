"""Typed metrics add up as what they are."""

from __future__ import annotations

import math

import pytest

from viceversa.rl.metrics import Max, Mean, Sum, merged, of_direction, values


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
