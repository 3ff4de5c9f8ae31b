"""Measures against numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from viceversa.audit import measures
from viceversa.audit.measures import Estimate
from viceversa.rl.selection import wins_by_input

REWARDS = np.array([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
RIGHT = np.array([[True, False, False, True], [True, False, True, False]])


def test_wins_by_hand() -> None:
    """First: 3 beats 1 and 2, 0 neither: 2 of 4. Second: 1 ties 1 and beats 0, 0 ties 0: 2 of 4."""
    won, pairs = wins_by_input(torch.tensor(REWARDS), torch.tensor(RIGHT))
    assert won.tolist() == [2.0, 2.0] and pairs.tolist() == [4, 4]
    found = measures.ranking(REWARDS, RIGHT)
    assert found is not None and found.value == 0.5 and found.inputs == 2


def test_a_perfect_and_a_random_reward() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((200, 8)) < 0.5
    perfect = measures.ranking(right + 0.1 * rng.random(right.shape), right)
    random = measures.ranking(rng.random(right.shape), right)
    assert perfect is not None and perfect.value == 1.0 and 0.95 < perfect.low < 1
    assert random is not None and random.low < 0.5 < random.high
    assert random.value == pytest.approx(0.5, abs=0.04)
    best = measures.best_of(rng.random(right.shape), right, 8).mean()
    assert best == pytest.approx(right.mean(), abs=0.1)


def test_best_of_is_the_mean_over_subsets() -> None:
    rng = np.random.default_rng(1)
    rewards, right = rng.random((5, 6)), rng.random((5, 6)) < 0.4
    for n in (1, 2, 4, 6):
        wanted = [
            np.mean([ok[max(s, key=lambda k: row[k])] for s in itertools.combinations(range(6), n)])
            for row, ok in zip(rewards, right, strict=True)
        ]
        assert measures.best_of(rewards, right, n) == pytest.approx(np.array(wanted))


def test_equal_rewards_share_their_chances() -> None:
    """Of (1, 1, 0, 0), right the first and third: the best of 4 is the first half the time."""
    found = measures.best_of(REWARDS[1:], RIGHT[1:], 4)
    assert found.tolist() == [0.5]
    assert measures.best_of(np.zeros((1, 4)), RIGHT[:1], 2) == pytest.approx([0.5])


def test_mixed_groups_are_counted_as_a_share() -> None:
    right = np.array([[True, True], [True, False], [False, False], [False, True]])
    found = measures.mixed(right)
    assert found is not None and found.value == 0.5


def test_spearman_by_hand() -> None:
    """Ranks (0, 1, 2, 3) and (0, 2, 1, 3): 1 - 6 * 2 / (4 * 15) = 0.8; ties take mean ranks."""
    assert measures.spearman(np.array([1, 2, 3, 4]), np.array([1, 5, 4, 9])) == pytest.approx(0.8)
    assert measures.average_ranks(np.array([5, 1, 5, 0])).tolist() == [2.5, 1, 2.5, 0]
    assert math.isnan(measures.spearman(np.array([1, 2]), np.array([3, 3])))


def test_length_within_groups_leaves_out_what_does_not_vary() -> None:
    rewards = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    lengths = np.array([[4, 5, 6], [6, 5, 4], [5, 5, 5]])
    found = measures.length_within(rewards, lengths)
    assert found is not None and found.value == 0 and found.inputs == 2


def test_spread_over_noise_by_hand() -> None:
    """Variances (1, 9) over noise (0.25, 2.25): 10 / 2.5, its root."""
    rewards = np.array([[-1.0, 1.0], [-3.0, 3.0]])
    found = measures.spread_over_noise(rewards, rewards / 2)
    assert found is not None and (found.value, found.low, found.high) == (2, 2, 2)
    assert measures.spread_over_noise(rewards, np.zeros((2, 2))) is None


def test_inputs_of_one_name_are_one() -> None:
    """80 inputs of 4 names, half of them all right: wider than 80 inputs apart."""
    sums = np.repeat([1.0, 0.0, 1.0, 0.0], 20)
    apart = measures.ratio(sums, np.ones(80))
    together = measures.ratio(sums, np.ones(80), [str(i // 20) for i in range(80)])
    assert apart is not None and together is not None
    assert (apart.value, apart.inputs) == (0.5, 80) and (together.value, together.inputs) == (
        0.5,
        4,
    )
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_few_inputs_that_are_all_right_are_not_certain() -> None:
    """Three of three: Wilson's interval from 3 / (3 + 1.96^2) = 0.4385."""
    found = measures.ratio(np.ones(3), np.ones(3), share=True)
    assert found is not None and found.low == pytest.approx(0.4385, abs=1e-4)
    assert measures.ratio(np.zeros(2), np.zeros(2)) is None
    assert measures.mean(np.array([1.0, np.nan])) == Estimate(1.0, 1.0, 1.0, 1)


def test_an_interval_covers_the_truth() -> None:
    """Of 200 simulated sets of 60 inputs with a mean of 0.3, about 95 % of intervals hold it."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        found = measures.mean((rng.random(60) < 0.3).astype(float))
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.88 <= hits / 200 <= 0.99
