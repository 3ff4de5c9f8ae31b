"""Says in a sentence whether a model got better, from measures that need no label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from viceversa.report.paired import Change

#: Outputs of different inputs that keep less than this share of their variety have collapsed into
#: one, and so have those of a group at the lower share, which sharpening lowers, too. In the runs
#: of LOG.md, 2026-11-27, good training kept 0.96 and 0.39, a collapse 0.00 of both.
LEAST_VARIETY, LEAST_DIVERSITY = 0.5, 0.1
#: Captions that never stop: so many more, as a share of all, are a collapse.
MOST_ENDLESS = 0.1


#: Fewer inputs give no interval to rely on.
FEWEST = 8


@dataclass(frozen=True)
class Verdict:
    """`better`, `unchanged`, `worse` or `suspicious`, why, and what to do."""

    word: str
    why: str
    collapsed: bool = False
    """Outputs have become alike, or captions no longer end."""


Measured = Mapping[str, Mapping[str, Any]]
"""Of one direction at one decoding, by measure: base, tuned and their Change."""

#: From the worst.
WORDS = ("suspicious", "worse", "better", "unchanged")


def of_decodings(task: str, found: Mapping[str, Measured], inputs: int) -> Verdict:
    """Judge one direction as sampled in `training`; harm to how the model is used comes first.

    `use` is the decoding that the model is used with, where that is another one.
    """
    training = of_direction(task, found["training"], inputs)
    if "use" not in found:
        return training
    use = of_direction(f"{task} as the model is used", found["use"], inputs)
    harmed = use.word in ("suspicious", "worse")
    return use if harmed and WORDS.index(use.word) < WORDS.index(training.word) else training


def of_direction(task: str, found: Measured, inputs: int) -> Verdict:
    """Judge one direction by its figures over so many inputs.

    What collapsed is suspicious, whatever the likelihoods say.
    """
    for name, least, whose in (
        ("variety", LEAST_VARIETY, "different inputs"),
        ("diversity", LEAST_DIVERSITY, "one input"),
    ):
        figure = found.get(name)
        if figure and figure["tuned"] < least * figure["base"]:
            kept = f"{figure['base']:.2f} to {figure['tuned']:.2f}"
            why = f"{task}: outputs of {whose} hardly differ any longer ({name} {kept})"
            return Verdict("suspicious", why, collapsed=True)
    endless = found.get("never_stops")
    if endless and endless["tuned"] > endless["base"] + MOST_ENDLESS:
        share = f"{endless['tuned']:.0%}"
        why = f"{task}: {share} of the captions never stop"
        return Verdict("suspicious", why, collapsed=True)
    if inputs < FEWEST:
        return Verdict("unchanged", f"{task}: {inputs} inputs are too few to tell")
    own, judged = (found[n]["change"] for n in ("own_likelihood", "base_likelihood"))
    return _of_likelihoods(task, own, judged)


def _of_likelihoods(task: str, own: Change, judged: Change) -> Verdict:
    if judged.low > 0:
        why = f"{task} got better by the base's own judgement ({judged} nats a token)"
        return Verdict("better", why)
    if judged.high < 0 and own.low > 0:
        return Verdict(
            "suspicious",
            f"{task}: the tuned model finds its outputs better ({own}), the base worse ({judged})",
        )
    if judged.high < 0:
        why = f"{task} got worse by the base's own judgement ({judged} nats a token)"
        return Verdict("worse", why)
    return Verdict("unchanged", f"{task}: no change that can be told ({judged} nats a token)")


ADVICE = {
    "suspicious": "Do not use this model: lower train.learning_rate, raise loss.t2i_kl and "
    "loss.i2t_kl, or train fewer steps, with reward.scorer=frozen.",
    "worse": "Lower train.learning_rate, or look with `viceversa report` at what was rewarded.",
    "unchanged": "Train longer or at a higher rate, or with more inputs to measure "
    "(eval.held_out_inputs).",
    "better": "Look at the outputs in the report, and measure what you need the model for.",
}


def together(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Join the directions' verdicts: the worst counts, and better only where none is worse."""
    words = {v.word for v in verdicts.values()}
    word = next(w for w in WORDS if w in words)
    whys = [v.why for v in verdicts.values() if v.word == word]
    whys += [v.why for v in verdicts.values() if v.word != word]
    told = "; ".join(whys)
    title = "Suspicious. " if word == "suspicious" else ""  # the others say it themselves
    return Verdict(word, f"{title}{told[0].upper()}{told[1:]}. {ADVICE[word]}")
