"""Inputs that are kept from training, to measure with: the same ones in every run of a seed."""

from __future__ import annotations

import random

from viceversa.config import Config, ConfigError
from viceversa.data.sources import Pictures, Source, Streamed, salt_of
from viceversa.types import Direction

#: At most one input in so many is held out.
SHARE = 8


def hold_out(source: Source, direction: Direction, config: Config) -> None:
    """Set `source.held_out`, and take those inputs out of training.

    A built-in world gives others than training's. Texts and pictures that are equal to one held
    out are left out of training as well.
    """
    salt, count = f"{salt_of(config, direction)}/held out", config.eval.held_out_inputs
    if isinstance(source, Streamed):
        if count:
            source.withhold(count, SHARE, salt)
        return
    count = min(count, len(source.examples) // SHARE)
    if not count:
        return
    if source.world is not None:
        source.held_out = source.world.held_out(direction, config.seed, count)
        return
    some = random.Random(salt).sample(range(len(source.examples)), count)
    if isinstance(source.examples, Pictures):
        source.examples, source.held_out = source.examples.without(some)
        return
    source.held_out = [source.examples[i] for i in some]
    texts = {e.text for e in source.held_out}
    source.examples = [e for e in source.examples if e.text not in texts]
    if not source.examples:
        raise ConfigError(
            "data.prompts: nothing is left to train on beside what is held out: set "
            "eval.held_out_inputs to 0"
        )
