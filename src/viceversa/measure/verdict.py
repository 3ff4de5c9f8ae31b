"""Says in a sentence whether a model got better, from measures that need no label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from viceversa.report.paired import Change

#: A group of outputs, or a token's distribution, that keeps less than this share of its diversity
#: has collapsed. The runs of LOG.md, 2026-11-27, that set it stand there.
LEAST_KEPT = 0.33
#: Captions that never stop: so many more, as a share of all, are a collapse.
MOST_ENDLESS = 0.1


@dataclass(frozen=True)
class Verdict:
    """`better`, `unchanged`, `worse` or `suspicious`, why, and what to do."""

    word: str
    why: str


Measured = Mapping[str, Mapping[str, Any]]
"""Of one direction at training's decoding, by measure: base, tuned and their Change."""


def of_direction(task: str, found: Measured) -> Verdict:
    """Judge one direction. What collapsed is suspicious, whatever the likelihoods say."""
    for name, what in (("diversity", "outputs of a group"), ("entropy", "tokens")):
        figure = found.get(name)
        if figure and figure["tuned"] < LEAST_KEPT * figure["base"]:
            kept = f"{figure['base']:.2f} to {figure['tuned']:.2f}"
            return Verdict("suspicious", f"{task}: {what} hardly differ any longer ({name} {kept})")
    endless = found.get("never_stops")
    if endless and endless["tuned"] > endless["base"] + MOST_ENDLESS:
        share = f"{endless['tuned']:.0%}"
        return Verdict("suspicious", f"{task}: {share} of the captions never stop")
    own, judged = (found[n]["change"] for n in ("own_likelihood", "base_likelihood"))
    return _of_likelihoods(task, own, judged)


def _of_likelihoods(task: str, own: Change, judged: Change) -> Verdict:
    if judged.low > 0:
        return Verdict(
            "better", f"{task} better by the base's own judgement ({judged} nats a token)"
        )
    if judged.high < 0 and own.low > 0:
        return Verdict(
            "suspicious",
            f"{task}: the tuned model finds its outputs better ({own}), the base worse ({judged})",
        )
    if judged.high < 0:
        return Verdict("worse", f"{task} worse by the base's own judgement ({judged} nats a token)")
    return Verdict("unchanged", f"{task}: no change that can be told ({judged} nats a token)")


ADVICE = {
    "suspicious": "Do not use this model: lower train.learning_rate, raise loss.t2i_kl and "
    "loss.i2t_kl, or train fewer steps, with reward.scorer=frozen.",
    "worse": "Lower train.learning_rate, or look with `viceversa report` at what was rewarded.",
    "unchanged": "Train longer or at a higher rate, or with more inputs to measure "
    "(eval.held_out_inputs).",
    "better": "Look at the outputs below, and measure what you need the model for.",
}


def together(verdicts: Mapping[str, Verdict]) -> Verdict:
    """Join the directions' verdicts: the worst counts, and better only where none is worse."""
    words = {v.word for v in verdicts.values()}
    word = next(w for w in ("suspicious", "worse", "better", "unchanged") if w in words)
    whys = [v.why for v in verdicts.values() if v.word == word]
    whys += [v.why for v in verdicts.values() if v.word != word]
    title = {"unchanged": "No change that can be told"}.get(word, word.capitalize())
    return Verdict(word, f"{title}. {'; '.join(whys)}. {ADVICE[word]}")
