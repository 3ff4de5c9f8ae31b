"""One look at a model in training: held-out inputs compared with the start, no label used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from viceversa.measure.held_out import compared
from viceversa.measure.verdict import Verdict, of_direction
from viceversa.report.skills import TASKS
from viceversa.types import Direction

#: By direction and measure: one number an input.
Measures = Mapping[Direction, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Look:
    """Figures and verdicts of each direction after `step` optimizer steps."""

    step: int
    figures: Mapping[Direction, Mapping[str, dict[str, Any]]]
    """By measure: the start's mean, the mean now, and their Change."""
    verdicts: Mapping[Direction, Verdict]

    @property
    def progress(self) -> float:
        """Return how far outputs improved by the start's judgement, averaged over directions.

        The unit is what choosing the best output of a group gains with the start: at 1 a single
        output is as good, on average, as the best of a group was.
        """
        shares = []
        for found in self.figures.values():
            room = found["best_of_gain"]["base"]
            if room > 0:
                shares.append(found["base_likelihood"]["change"].value / room)
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def sound(self) -> bool:
        """Tell whether no direction is suspicious."""
        return all(v.word != "suspicious" for v in self.verdicts.values())

    @property
    def collapse(self) -> str:
        """Say how outputs collapsed; empty where they did not."""
        return "; ".join(v.why for v in self.verdicts.values() if v.collapsed)

    def record(self) -> dict[str, Any]:
        """Return a line of watch.jsonl: the means now, the verdicts and the progress."""
        row: dict[str, Any] = {"step": self.step, "progress": round(self.progress, 5)}
        for direction, found in self.figures.items():
            row[direction] = {name: round(figure["tuned"], 5) for name, figure in found.items()}
            row[f"{direction}/verdict"] = self.verdicts[direction].word
        return {**row, "sound": self.sound, "collapse": self.collapse}


def look(step: int, start: Measures, now: Measures) -> Look:
    """Compare the measures of the model now with those of the start, input by input."""
    figures, verdicts = {}, {}
    for direction, before in start.items():
        after = now[direction]
        found = {name: compared(before[name], after[name]) for name in before}
        inputs = len(before["base_likelihood"])
        figures[direction] = found
        verdicts[direction] = of_direction(TASKS[direction], found, inputs)
    return Look(step, figures, verdicts)
