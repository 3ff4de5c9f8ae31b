"""Follows a few held-out inputs through training: what the model makes of them, now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from viceversa.data.sources import Source
from viceversa.models.base import Adapter
from viceversa.training.recorder import Recorder
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import Direction, Example

#: Times that a run looks at the inputs it follows, at most, besides start and end.
LOOKS = 12
#: Outputs of each input, where the run's own groups are not smaller.
OUTPUTS = 4


class Follow(TrainerCallback):
    """Draws and captions the same inputs with the same random numbers, and keeps the outputs.

    At the start, then up to `LOOKS` times, then at the end. What changes between two looks is the
    model. Every process takes part, as one of a sharded model has to; the first one writes.
    """

    def __init__(
        self, trainer: DualRewardTrainer, run: Recorder, inputs: Mapping[Direction, list[Example]]
    ):
        self.trainer, self.run, self.inputs = trainer, run, inputs
        self.every = -(-run.config.steps // LOOKS)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.global_step:  # a resumed run has looked already
            self.look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.every == 0 or step == self.run.config.steps:
            self.look(step)

    def look(self, step: int) -> None:
        """Sample, score and keep the outputs of every followed input."""
        group = min(OUTPUTS, self.run.config.sampling.group_size)
        for direction, examples in self.inputs.items():
            scored = self.trainer.step.scored(examples, group)
            self.run.record_followed(direction, step, scored)


def followed_inputs(
    sources: Mapping[Direction, Source], adapter: Adapter, trainer: DualRewardTrainer
) -> dict[Direction, list[Example]]:
    """Choose inputs of each direction among those held out: the first ones.

    Never more than one process samples in a step, so that memory suffices for them. Pictures that
    cannot be decoded are not followed.
    """
    config, found = trainer.config, dict[Direction, list[Example]]()
    per_step = {"t2i": config.data.prompts_per_step, "i2t": config.data.images_per_step}
    for direction, source in sources.items():
        most = max(1, per_step[direction] // trainer.ranks.count)
        chosen = list(source.held_out[: min(config.eval.followed_inputs, most)])
        if chosen and (direction == "i2t" or adapter.draws_pixels):
            found[direction] = chosen
    return found
