"""The inputs of a run in training order, shared out among processes and micro-steps."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils.data import Dataset

from viceversa.config import Config, ConfigError
from viceversa.data.sources import Source, salt_of
from viceversa.types import Direction, Example


class Stream(Dataset[list[Example]]):
    """The inputs in training order. Item i is the share of one process in one micro-step.

    A function of the seed alone: the same examples make up an optimizer step whatever the number of
    processes and micro-steps, and a resumed run goes on where it stopped. Each pass over a source
    has a shuffle of its own.
    """

    def __init__(
        self,
        config: Config,
        sources: dict[Direction, Source],
        shares: int,
        questions: Sequence[str] = (),
    ):
        self.config, self.sources, self.shares, self.questions = config, sources, shares, questions
        for direction in sources:
            count = config.data.per_step(direction)
            if count % shares:
                raise ConfigError(
                    f"{count} {direction} inputs a step do not divide among "
                    f"{shares} micro-steps over all processes; change data.prompts_per_step, "
                    "data.images_per_step or train.gradient_accumulation_steps"
                )

    def __len__(self) -> int:
        return self.config.steps * self.shares

    def directions(self, rollout_step: int) -> tuple[Direction, ...]:
        """List the directions that one rollout trains."""
        if self.config.schedule == "joint":
            return ("t2i", "i2t")
        if self.config.schedule == "alternate":
            return ("t2i",) if rollout_step % 2 == 0 else ("i2t",)
        return (self.config.schedule,)

    def __getitem__(self, index: int) -> list[Example]:
        step, part = divmod(index, self.shares)
        rollout_step = step // self.config.loss.updates_per_rollout
        found: list[Example] = []
        for direction in self.directions(rollout_step):
            n = self.config.data.per_step(direction) // self.shares
            turn = self._turn(direction, rollout_step)
            first = turn * self.config.data.per_step(direction) + part * n
            salt = salt_of(self.config, direction)
            found += [self.sources[direction].nth(first + k, salt) for k in range(n)]
        return found

    def _turn(self, direction: Direction, rollout_step: int) -> int:
        """Count the rollouts of this direction that came before."""
        return rollout_step // 2 if self.config.schedule == "alternate" else rollout_step
