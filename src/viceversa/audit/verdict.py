"""What to train, from what was measured: the rules, each constant with its reason.

A direction is worth training where every check holds that its evidence allows. Ranking alone is not
learning: a reward that ranks well teaches nothing where all outputs are right already, where its
best output is no better than any, or where the judge knows no skill better than the one it judges.
The rules are to be tested against training; docs/audit.md says how far they have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from viceversa.audit.measures import (
    GAIN,
    LENGTH,
    MIXED,
    MORE,
    RANKING,
    SPREAD,
    Estimate,
    Figures,
    Sources,
)
from viceversa.report.skills import TASKS
from viceversa.types import DIRECTIONS, Direction

#: What a figure must be above, by its lower bound; `MIXED` by its value.
LEAST = {
    # Chance is 0.5; the weakest reward that is known to have taught (captions of the bundled
    # model, 0.79) stands well above, a random one below.
    RANKING: 0.6,
    # Below, nine groups of ten teach nothing.
    MIXED: 0.1,
    # More than nothing.
    GAIN: 0.0,
    # At 2, four fifths of the variance are not noise.
    SPREAD: 2.0,
}
#: Least ranking of the hardest kind of corruption: above chance, or that skill is unlearned.
HARDEST = 0.5
#: Rank correlation of reward with length from which on to warn: a quarter of the variance of ranks.
TOO_LONG = 0.5
#: Fewest inputs that an interval is trusted with.
FEWEST = 8
#: Bounds of the weight: below, a direction might as well be left out; above, the other one.
WEIGHTS = (0.1, 1.0)
#: Figures that must be above their least, by what was measured on.
NEEDED = {"scenes": (RANKING, MIXED, GAIN), "pairs": (RANKING,), "unpaired": (SPREAD,)}

Train = Literal["both", "t2i", "i2t", "none"]

JUDGES = {"t2i": "reading", "i2t": "drawing"}


@dataclass(frozen=True)
class Check:
    """One rule on one direction."""

    name: str
    holds: bool
    found: str
    """What was found, in words that go on from the name."""


@dataclass(frozen=True)
class Verdict:
    """Which directions to train, and why."""

    train: Train
    i2t_weight: float | None
    """For `loss.i2t_weight`, where `loss.t2i_weight` is 1; None where nothing is to be trained."""
    checks: Mapping[Direction, Sequence[Check]]
    cautions: Sequence[str]


def checks_of(figures: Figures, source: str) -> list[Check]:
    """Hold a direction to every rule that its evidence allows; `source` is what it is by."""
    checks = [_above(name, figures.get(name), LEAST[name]) for name in NEEDED[source]]
    if source == "pairs" and (kinds := skills_of(figures, RANKING)):
        hardest = min(kinds, key=lambda k: kinds[k].value)
        checks.append(_above(f"hardest kind, {hardest},", kinds[hardest], HARDEST))
    if source == "scenes":
        better = [k for k, e in skills_of(figures, MORE).items() if e.low > 0]
        checks.append(Check(MORE, bool(better), f"of {', '.join(better) or 'no skill'}"))
    return checks


def _above(name: str, estimate: Estimate | None, least: float) -> Check:
    """Check that a figure is above `least`: never on fewer than FEWEST inputs."""
    if estimate is None:
        return Check(name, False, "cannot be told: nothing to measure it on")
    known = estimate.inputs >= FEWEST
    few = "" if known else f", on fewer than {FEWEST} inputs"
    bound = estimate.value if name == MIXED else estimate.low
    return Check(name, known and bound > least, f"{estimate}{few}; needs more than {least:g}")


def skills_of(figures: Figures, name: str) -> dict[str, Estimate]:
    """Return a figure skill by skill, of those that have enough inputs to be told."""
    skills = {k.removeprefix(f"{name}/"): e for k, e in figures.items() if k.startswith(f"{name}/")}
    return {k: e for k, e in skills.items() if e.inputs >= FEWEST}


def decide(sources: Sources) -> Verdict:
    """Decide what to train, from each source's figures of the directions that it measures."""
    checks: dict[Direction, list[Check]] = {}
    for source, measured in sources.items():
        for direction, figures in measured.items():
            checks.setdefault(direction, []).extend(checks_of(figures, source))
    good: list[Direction] = [
        d for d in DIRECTIONS if checks.get(d) and all(c.holds for c in checks[d])
    ]
    train: Train = "none"
    if good:
        train = good[0] if len(good) == 1 else "both"
    weight = _weight(sources) if train == "both" else {"t2i": 0.0, "i2t": 1.0}.get(train)
    return Verdict(train, weight, checks, _cautions(sources))


def _weight(sources: Sources) -> float:
    """Weigh captions as the gain of their best of N stands to drawing's: both move one backbone.

    Where both are worth training, so both gain. 1, the default, where no gain was measured.
    """
    if "scenes" not in sources:
        return 1.0
    drawing, captions = (sources["scenes"][d][GAIN].value for d in DIRECTIONS)
    low, high = WEIGHTS
    return round(min(high, max(low, captions / drawing)), 1)


def _cautions(sources: Sources) -> list[str]:
    found = []
    for source, measured in sources.items():
        length = measured.get("i2t", {}).get(LENGTH)
        if length and (length.low > TOO_LONG or length.high < -TOO_LONG):
            longer = "longer" if length.value > 0 else "shorter"
            found.append(f"the reward for captions favours {longer} ones: {length}")
        if source == "unpaired":
            found.append("spread is not correctness: whether the best output is right is not known")
        if source == "pairs":
            found.append("corruptions are not the model's own mistakes: headroom and gain unknown")
    unknown = [d for d in DIRECTIONS if not any(d in m for m in sources.values())]
    return found + [f"{TASKS[d]}: not measured, for lack of inputs" for d in unknown]
