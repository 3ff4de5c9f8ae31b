"""The built-in world as a source of prompts and pictures, with labels that no reward needs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from viceversa.config import EvalConfig
from viceversa.models.base import Adapter
from viceversa.scenes.evaluate import evaluate_scenes, write_outputs
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import questions
from viceversa.scenes.render import SIZE
from viceversa.scenes.rewards import verified
from viceversa.scenes.spec import KINDS, Spec, draw_specs
from viceversa.types import Direction, Example, Rollout


@dataclass(frozen=True)
class Scenes:
    """The built-in world as a run uses it: inputs, labels for metrics, evaluation."""

    side = SIZE
    """Of the pictures that `monitor` can read, in pixels."""
    monitor = staticmethod(verified)
    evaluate = staticmethod(evaluate_scenes)

    def prompts(self, seed: int, count: int) -> list[Example]:
        # a seed of their own: no prompt is the caption of a training picture, or if so by chance
        return examples_of("t2i", _specs(f"{seed}/prompts", count))

    def pictures(self, seed: int, count: int) -> list[Example]:
        return examples_of("i2t", _specs(f"{seed}/images", count))

    def held_out(self, direction: Direction, seed: int, count: int) -> list[Example]:
        """Draw inputs whose pictures training never shows."""
        per_kind = -(-count // len(KINDS))
        specs = draw_specs(f"{seed}/held out", per_kind, "tune")
        random.Random(seed).shuffle(specs)
        return examples_of(direction, specs[:count])

    def questions(self, seed: int, count: int) -> list[str]:
        """Draw questions about pictures of training; about which picture, nobody says."""
        rng, found = random.Random(f"{seed}/questions"), []
        for spec in _specs(f"{seed}/questions", count):
            found.append(rng.choice(questions(spec, rng)).text)
        return found

    def gallery(self, adapter: Adapter, config: EvalConfig, per_kind: int) -> Rollout:
        """Draw a few prompts of each kind, other ones than `evaluate` does; one output each."""
        settings = replace(config, seed=config.seed + 1)
        specs = draw_specs(settings.seed, per_kind, settings.split)
        return write_outputs(adapter, "t2i", specs, settings)


def _specs(seed: str, count: int) -> Sequence[Spec]:
    per_kind = -(-count // len(KINDS))
    return draw_specs(seed, per_kind, "train")[:count]
