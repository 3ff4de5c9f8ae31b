"""What to train, from what was measured: the rules, each constant with its reason.

A direction is worth training where every check holds that its evidence allows. Ranking alone is not
learning: a reward that ranks well teaches nothing where all outputs are right already, where its
best output is no better than any, or where the judge knows no skill better than the one it judges.
The rules are to be tested against training; docs/audit.md says how far they have been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from viceversa.audit.measures import Estimate
from viceversa.report.skills import TASKS
from viceversa.types import DIRECTIONS, Direction

#: Least ranking accuracy, by its lower bound. Chance is 0.5; the weakest reward that is known to
#: have taught (captions of the bundled model, 0.79) stands well above, a random one below.
RANKING = 0.6
#: Least ranking of the hardest kind of corruption: above chance, or that skill is unlearned.
HARDEST = 0.5
#: Least share of groups with right and wrong outputs: below, nine groups of ten teach nothing.
HEADROOM = 0.1
#: Least gain of best-of-N, by its lower bound: more than nothing.
GAIN = 0.0
#: Least spread within groups over noise: at 2, four fifths of the variance are not noise.
SPREAD = 2.0
#: Rank correlation of reward with length from which on to warn: a quarter of the variance of ranks.
LENGTH = 0.5
#: Fewest inputs that an interval is trusted with.
FEWEST = 8
#: Bounds of the weight: below, a direction might as well be left out; above, the other one.
WEIGHTS = (0.1, 1.0)

Train = Literal["both", "t2i", "i2t", "none"]

JUDGES = {"t2i": "reading", "i2t": "drawing"}


@dataclass(frozen=True)
class Measured:
    """What one source (scenes, pairs, unpaired inputs) tells of one direction; None: it cannot."""

    ranking: Estimate | None = None
    skills: Mapping[str, Estimate] = field(default_factory=dict)
    """Ranking accuracy, skill by skill or by kind of corruption."""
    headroom: Estimate | None = None
    best_of: Mapping[int, Estimate] = field(default_factory=dict)
    """Accuracy of the best of N by the reward."""
    gain: Estimate | None = None
    """Of the largest N over one output."""
    teaches: Mapping[str, Estimate] = field(default_factory=dict)
    """Accuracy of the judging direction less that of this one, skill by skill."""
    noise: Mapping[str, Estimate] = field(default_factory=dict)
    """Spread of the reward within groups over each noise."""
    length: Estimate | None = None
    """Rank correlation with text length."""


@dataclass(frozen=True)
class Check:
    """One rule on one direction."""

    name: str
    holds: bool
    words: str


@dataclass(frozen=True)
class Verdict:
    train: Train
    i2t_weight: float | None
    """For `loss.i2t_weight`, where `loss.t2i_weight` is 1; None where nothing is to be trained."""
    weight_from: str
    checks: Mapping[Direction, Sequence[Check]]
    cautions: Sequence[str]


def checks_of(found: Measured, direction: Direction, source: str) -> list[Check]:
    """Hold a direction to every rule that its evidence allows; `source` is what it is by."""
    checks = []

    def add(
        name: str, estimate: Estimate | None, least: float, words: str, low: bool = True
    ) -> None:
        if estimate is None:
            checks.append(Check(name, False, f"{words}: nothing to measure it on"))
            return
        known = estimate.inputs >= FEWEST
        holds = known and (estimate.low if low else estimate.value) > least
        few = "" if known else f", on fewer than {FEWEST} inputs"
        checks.append(Check(name, holds, f"{words} {estimate}{few}; needs more than {least:g}"))

    if source != "unpaired":
        add("ranking", found.ranking, RANKING, "ranks right above wrong")
    if source == "pairs" and (known := _known(found.skills)):
        hardest = min(known, key=lambda k: known[k].value)
        add("hardest", known[hardest], HARDEST, f"hardest kind, {hardest},")
    if source == "scenes":
        add("headroom", found.headroom, HEADROOM, "groups with right and wrong", low=False)
        add("gain", found.gain, GAIN, f"best of {max(found.best_of, default=1)} gains")
        better = [k for k, e in _known(found.teaches).items() if e.low > 0]
        judge = JUDGES[direction]
        said = f"{judge} knows more of {', '.join(better)}" if better else f"{judge} knows no more"
        checks.append(Check("teacher", bool(better), said))
    if source == "unpaired":
        least = min(found.noise, key=lambda k: found.noise[k].value, default="")
        add("spread", found.noise.get(least), SPREAD, f"spread over {least or 'noise'}")
    return checks


def _known(skills: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Keep the skills that have enough inputs to be told."""
    return {k: e for k, e in skills.items() if e.inputs >= FEWEST}


def decide(sources: Mapping[str, Mapping[Direction, Measured]]) -> Verdict:
    """Decide what to train, from each source's figures of the directions that it measures."""
    checks: dict[Direction, list[Check]] = {}
    for source, measured in sources.items():
        for direction, found in measured.items():
            checks.setdefault(direction, []).extend(checks_of(found, direction, source))
    good: list[Direction] = [
        d for d in DIRECTIONS if checks.get(d) and all(c.holds for c in checks[d])
    ]
    train: Train = "none"
    if good:
        train = good[0] if len(good) == 1 else "both"
    weight, reason = _weight(train, sources.get("scenes", {}))
    return Verdict(train, weight, reason, checks, _cautions(sources))


def _weight(train: str, labelled: Mapping[Direction, Measured]) -> tuple[float | None, str]:
    """Weigh captions as the gain of their best of N stands to drawing's: both move one backbone."""
    if train != "both":
        return {"t2i": 0.0, "i2t": 1.0}.get(train), "one direction alone, or none"
    gains = [labelled[d].gain if d in labelled else None for d in DIRECTIONS]
    if gains[0] is None or gains[1] is None:
        return 1.0, "the default: no gain was measured"
    low, high = WEIGHTS
    share = gains[1].value / max(gains[0].value, 1e-9)
    return round(min(high, max(low, share)), 1), "gain of captions over gain of drawing"


def _cautions(sources: Mapping[str, Mapping[Direction, Measured]]) -> list[str]:
    found = []
    for source, measured in sources.items():
        for direction, m in measured.items():
            if (
                direction == "i2t"
                and m.length
                and (m.length.low > LENGTH or m.length.high < -LENGTH)
            ):
                longer = "longer" if m.length.value > 0 else "shorter"
                found.append(f"the reward for captions favours {longer} ones: {m.length}")
        if source == "unpaired":
            found.append("spread is not correctness: whether the best output is right is not known")
        if source == "pairs":
            found.append("corruptions are not the model's own mistakes: headroom and gain unknown")
    unknown = [d for d in DIRECTIONS if not any(d in m for m in sources.values())]
    return found + [f"{TASKS[d]}: not measured, for lack of inputs" for d in unknown]


def in_words(verdict: Verdict) -> list[str]:
    """Say the verdict in plain lines."""
    train = {
        "both": "train both directions",
        "t2i": "train drawing alone (schedule=t2i)",
        "i2t": "train captions alone (schedule=i2t)",
        "none": "do not train on this reward",
    }[verdict.train]
    lines = [f"verdict: {train}"]
    if verdict.train == "both":
        lines[0] += f", at loss.i2t_weight={verdict.i2t_weight} ({verdict.weight_from})"
    for direction, checks in verdict.checks.items():
        for c in checks:
            lines.append(f"  {'yes' if c.holds else 'no '} {TASKS[direction]}: {c.words}")
    return lines + [f"  caution: {c}" for c in verdict.cautions]
