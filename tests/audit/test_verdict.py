"""The rules: what each missing piece of evidence turns the verdict to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from viceversa.audit.measures import Estimate
from viceversa.audit.verdict import Measured, checks_of, decide, in_words
from viceversa.types import DIRECTIONS


def about(value: float, half: float = 0.05, inputs: int = 60) -> Estimate:
    return Estimate(value, value - half, value + half, inputs)


GOOD = Measured(
    ranking=about(0.9),
    headroom=about(0.5),
    best_of={1: about(0.5), 8: about(0.7)},
    gain=about(0.2),
    teaches={"colours": about(0.3), "two": about(-0.3)},
)
HALF = replace(GOOD, gain=about(0.1))


def test_both_at_the_ratio_of_gains() -> None:
    found = decide({"scenes": {"t2i": GOOD, "i2t": HALF}})
    assert (found.train, found.i2t_weight) == ("both", 0.5)
    assert "loss.i2t_weight=0.5" in in_words(found)[0]
    other = decide({"scenes": {"t2i": HALF, "i2t": GOOD}})
    assert other.i2t_weight == 1.0  # never above drawing's


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"ranking": about(0.62)}, "ranking"),
        ({"ranking": about(0.95, inputs=3)}, "ranking"),
        ({"ranking": None}, "ranking"),
        ({"headroom": about(0.08)}, "headroom"),
        ({"gain": about(0.04)}, "gain"),
        ({"teaches": {"two": about(0.04)}}, "teacher"),
        ({"teaches": {"two": about(0.9, inputs=2)}}, "teacher"),
    ],
)
def test_one_rule_that_fails_leaves_a_direction_out(change: dict, name: str) -> None:
    bad = replace(GOOD, **change)
    failed = [c.name for c in checks_of(bad, "i2t", "scenes") if not c.holds]
    assert failed == [name]
    found = decide({"scenes": {"t2i": GOOD, "i2t": bad}})
    assert (found.train, found.i2t_weight) == ("t2i", 0.0)
    assert decide({"scenes": {"t2i": bad, "i2t": GOOD}}).train == "i2t"
    nothing = decide({"scenes": {"t2i": bad, "i2t": bad}})
    assert (nothing.train, nothing.i2t_weight) == ("none", None)


def test_pairs_want_every_kind_above_chance() -> None:
    skills = {"swapped": about(0.99), "colour": about(0.52), "count": about(0.4, inputs=2)}
    pairs = Measured(ranking=about(0.9), skills=skills)
    failed = [c for c in checks_of(pairs, "i2t", "pairs") if not c.holds]
    assert [c.name for c in failed] == ["hardest"] and "colour" in failed[0].words
    fine = replace(pairs, skills={"swapped": about(0.99), "colour": about(0.7)})
    found = decide({"pairs": dict.fromkeys(DIRECTIONS, fine)})
    assert (found.train, found.i2t_weight) == ("both", 1.0)
    assert any("corruptions" in c for c in found.cautions)


def test_unpaired_inputs_are_held_to_the_worse_noise() -> None:
    loud = Measured(noise={"phrasing": about(1.5), "rounding": about(90)})
    clear = Measured(noise={"phrasing": about(3), "rounding": about(90)})
    found = decide({"unpaired": {"t2i": clear, "i2t": loud}})
    assert found.train == "t2i"
    assert decide({"unpaired": {"t2i": clear}}).train == "t2i"
    assert any("captions: not measured" in c for c in decide({"unpaired": {"t2i": clear}}).cautions)
    blind = Measured(ranking=about(0.5))
    assert (
        decide({"pairs": {"t2i": blind}, "unpaired": {"t2i": clear}}).train == "none"
    )  # every source has a say


def test_a_reward_that_goes_with_length_is_warned_of() -> None:
    short = replace(GOOD, length=about(-0.7))
    found = decide({"scenes": {"t2i": GOOD, "i2t": short}})
    assert any("favours shorter" in c for c in found.cautions) and found.train == "both"
