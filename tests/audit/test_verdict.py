"""The rules: what each missing piece of evidence turns the verdict to."""

from __future__ import annotations

import pytest

from viceversa.audit.measures import GAIN, LENGTH, MIXED, MORE, RANKING, SPREAD, Estimate, told
from viceversa.audit.table import in_words
from viceversa.audit.verdict import checks_of, decide
from viceversa.types import DIRECTIONS


def about(value: float, half: float = 0.05, inputs: int = 60) -> Estimate:
    return Estimate(value, value - half, value + half, inputs)


GOOD = {
    RANKING: about(0.9),
    MIXED: about(0.5),
    GAIN: about(0.2),
    f"{MORE}/colours": about(0.3),
    f"{MORE}/two": about(-0.3),
}
HALF = {**GOOD, GAIN: about(0.1)}


def test_both_at_the_ratio_of_gains() -> None:
    found = decide({"scenes": {"t2i": GOOD, "i2t": HALF}})
    assert (found.train, found.i2t_weight) == ("both", 0.5)
    assert "loss.i2t_weight=0.5" in in_words(found)[0]
    other = decide({"scenes": {"t2i": HALF, "i2t": GOOD}})
    assert other.i2t_weight == 1.0  # never above drawing's


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({RANKING: about(0.62)}, RANKING),
        ({RANKING: about(0.95, inputs=3)}, RANKING),
        ({RANKING: None}, RANKING),
        ({MIXED: about(0.08)}, MIXED),
        ({GAIN: about(0.04)}, GAIN),
        ({f"{MORE}/colours": about(0.04)}, MORE),
        ({f"{MORE}/colours": about(0.9, inputs=2)}, MORE),
    ],
)
def test_one_rule_that_fails_leaves_a_direction_out(change: dict, name: str) -> None:
    bad = told({**GOOD, **change})
    failed = [c.name for c in checks_of(bad, "scenes") if not c.holds]
    assert failed == [name]
    found = decide({"scenes": {"t2i": GOOD, "i2t": bad}})
    assert (found.train, found.i2t_weight) == ("t2i", 0.0)
    assert decide({"scenes": {"t2i": bad, "i2t": GOOD}}).train == "i2t"
    nothing = decide({"scenes": {"t2i": bad, "i2t": bad}})
    assert (nothing.train, nothing.i2t_weight) == ("none", None)


def test_pairs_want_every_kind_above_chance() -> None:
    kinds = {"swapped": about(0.99), "colour": about(0.52), "count": about(0.4, inputs=2)}
    pairs = {RANKING: about(0.9), **{f"{RANKING}/{kind}": e for kind, e in kinds.items()}}
    (failed,) = [c for c in checks_of(pairs, "pairs") if not c.holds]
    assert failed.name == "hardest kind, colour,"
    fine = {**pairs, f"{RANKING}/colour": about(0.7)}
    found = decide({"pairs": dict.fromkeys(DIRECTIONS, fine)})
    assert (found.train, found.i2t_weight) == ("both", 1.0)
    assert any("corruptions" in c for c in found.cautions)


def test_unpaired_inputs_are_held_to_the_noise_of_phrasing() -> None:
    loud, clear = {SPREAD: about(1.5)}, {SPREAD: about(3)}
    found = decide({"unpaired": {"t2i": clear, "i2t": loud}})
    assert found.train == "t2i"
    assert decide({"unpaired": {"t2i": clear}}).train == "t2i"
    assert any("captions: not measured" in c for c in decide({"unpaired": {"t2i": clear}}).cautions)
    blind = {RANKING: about(0.5)}
    assert (
        decide({"pairs": {"t2i": blind}, "unpaired": {"t2i": clear}}).train == "none"
    )  # every source has a say


def test_a_reward_that_goes_with_length_is_warned_of() -> None:
    short = {**GOOD, LENGTH: about(-0.7)}
    found = decide({"scenes": {"t2i": GOOD, "i2t": short}})
    assert any("favours shorter" in c for c in found.cautions) and found.train == "both"
