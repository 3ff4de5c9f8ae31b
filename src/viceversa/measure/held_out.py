"""Base against tuned on held-out inputs: figures, changes, verdict and the outputs to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from viceversa.config import Config
from viceversa.measure.outputs import Written, decodings, judged, measures, write
from viceversa.measure.verdict import Verdict, of_decodings, together
from viceversa.models.base import Adapter
from viceversa.report.paired import Change, change_of_means
from viceversa.report.skills import TASKS
from viceversa.types import Direction, Example

#: Outputs by direction and decoding.
Outputs = dict[Direction, dict[str, Written]]


@dataclass(frozen=True)
class HeldOut:
    """What eval.json keeps, and the outputs that were measured."""

    figures: dict[str, Any]
    base: Outputs
    tuned: Outputs


def write_all(
    adapter: Adapter, inputs: Mapping[Direction, Sequence[Example]], config: Config
) -> Outputs:
    """Have one model write its outputs for every direction and decoding, at equal seeds."""
    return {
        direction: {
            name: write(adapter, examples, sampling, config.seed, config.reward.batch_rows)
            for name, sampling in decodings(adapter, direction, config).items()
        }
        for direction, examples in inputs.items()
    }


def compare(judge: Adapter, base: Outputs, tuned: Outputs, config: Config) -> HeldOut:
    """Judge both models' outputs by the base, and say what changed.

    `judge` is the base, which judged its own outputs when it wrote them.
    """
    figures: dict[str, Any] = {}
    verdicts: dict[str, Verdict] = {}
    for direction, written in base.items():
        found = {}
        for decoding, outputs in written.items():
            new = tuned[direction][decoding]
            by_base = judged(
                judge, new.parts, config.sampling.instruction, config.reward.batch_rows
            )
            before, after = measures(outputs, outputs.own), measures(new, by_base)
            found[decoding] = {name: compared(before[name], after[name]) for name in before}
        inputs = sum(len(part.examples) for part in written["training"].parts)
        verdicts[direction] = of_decodings(TASKS[direction], found, inputs)
        figures[direction] = {
            "inputs": inputs,
            "verdict": verdicts[direction].word,
            **{name: {m: _plain(f) for m, f in of.items()} for name, of in found.items()},
        }
    whole = together(verdicts)
    return HeldOut({"verdict": whole.word, "sentence": whole.why, **figures}, base, tuned)


def compared(before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Return both means of one measure, and their Change, paired by input."""
    change = change_of_means(before, after)
    old, new = (sum(values) / len(values) for values in (before, after))
    return {"base": old, "tuned": new, "change": change}


def _plain(figure: dict[str, Any]) -> dict[str, Any]:
    change: Change = figure["change"]
    return {**figure, "change": asdict(change)}
