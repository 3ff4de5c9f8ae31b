"""Accuracy on the built-in world, with confidence intervals: drawing, captions, questions."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from viceversa.config import ConfigError, EvalConfig, SamplingConfig
from viceversa.models.base import Adapter
from viceversa.rl.rollout import rollout
from viceversa.scenes.examples import examples_of, picture
from viceversa.scenes.language import Question, caption, questions
from viceversa.scenes.render import SIZE
from viceversa.scenes.rewards import verifier
from viceversa.scenes.spec import HELD_OUT_KINDS, Spec, draw_specs
from viceversa.types import Direction, Example, Rollout

Z95 = 1.959964


def wilson(p: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a share p of n (Wilson); n need not be whole."""
    z2 = Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Share:
    accuracy: float
    interval: tuple[float, float]
    n: int
    distinct: int
    """Different inputs among the n."""
    effective_n: float
    """Independent draws that would give the same interval."""
    outcomes: str = ""
    """`1` where an output was right, else `0`: one a spec, for paired comparisons."""
    inputs: str = ""
    """The number of each one's input among the different ones."""


def share(right: Sequence[bool], inputs: Sequence[str]) -> Share:
    """Return a share and its 95 % interval over inputs: outputs of one are not independent."""
    n = len(right)
    p = sum(right) / n
    residuals: dict[str, float] = {}
    for ok, name in zip(right, inputs, strict=True):
        residuals[name] = residuals.get(name, 0.0) + ok - p
    effective = float(len(residuals))
    if 0 < p < 1:
        clustered = sum(r * r for r in residuals.values()) / n**2
        effective = min(n, p * (1 - p) / clustered) if clustered else n
    numbers = {name: str(i) for i, name in enumerate(residuals)}
    outcomes = "".join("01"[bool(ok)] for ok in right)
    which = " ".join(numbers[name] for name in inputs)
    return Share(p, wilson(p, effective), n, len(residuals), effective, outcomes, which)


def mean_of_kinds(kinds: Mapping[str, Share]) -> dict[str, Any]:
    """Return the mean over kinds, its 95 % interval over inputs (by kind), and the kinds."""
    accuracy = sum(k.accuracy for k in kinds.values()) / len(kinds)
    variance = sum(_variance(k) for k in kinds.values()) / len(kinds) ** 2
    half = Z95 * math.sqrt(variance)
    return {
        "accuracy": accuracy,
        "interval": [max(0.0, accuracy - half), min(1.0, accuracy + half)],
        "kinds": {name: asdict(k) for name, k in kinds.items()},
    }


def _variance(k: Share) -> float:
    """Return the variance of a share, after Agresti and Coull: not zero at 0 or 1."""
    n = k.effective_n + Z95**2
    p = (k.accuracy * k.effective_n + Z95**2 / 2) / n
    return p * (1 - p) / n


def write_outputs(
    adapter: Adapter, direction: Direction, specs: Sequence[Spec], config: EvalConfig
) -> Rollout:
    """Make one output for each spec, with draws keyed by `config.seed`."""
    sampling = SamplingConfig(
        group_size=1, temperature=config.temperature, guidance=config.guidance
    )
    return rollout(adapter, examples_of(direction, specs), sampling, config.seed, step=0)


def accuracy(
    adapter: Adapter, direction: Direction, specs: Sequence[Spec], config: EvalConfig
) -> dict[str, Any]:
    right = verifier(write_outputs(adapter, direction, specs, config)).bool()
    inputs = [caption(s) if direction == "t2i" else s.key() for s in specs]
    return by_kind([s.kind for s in specs], right.flatten().tolist(), inputs)


def by_kind(kinds: Sequence[str], right: Sequence[bool], inputs: Sequence[str]) -> dict[str, Any]:
    grouped: dict[str, tuple[list[bool], list[str]]] = {}
    for kind, ok, name in zip(kinds, right, inputs, strict=True):
        oks, names = grouped.setdefault(kind, ([], []))
        oks.append(ok)
        names.append(name)
    return mean_of_kinds({k: share(*v) for k, v in grouped.items()})


def question_accuracy(
    adapter: Adapter, specs: Sequence[Spec], config: EvalConfig
) -> dict[str, Any]:
    """Greedy answers to the questions of the specs' own pictures."""
    rng = random.Random(f"{config.seed}/questions")
    asked: list[tuple[Spec, Question]] = [(s, q) for s in specs for q in questions(s, rng)]
    examples = [Example(i, "i2t", q.text, picture(s)) for i, (s, q) in enumerate(asked)]
    greedy = SamplingConfig(group_size=1, temperature=0.0, max_caption_tokens=4)
    answers = rollout(adapter, examples, greedy, config.seed, step=0).texts
    right = [a == q.answer for a, (_, q) in zip(answers, asked, strict=True)]
    return by_kind([q.kind for _, q in asked], right, [s.key() for s, _ in asked])


def evaluate_scenes(
    adapter: Adapter, config: EvalConfig, captions: EvalConfig | None = None
) -> dict[str, Any]:
    """Measure drawing (`t2i`), captions (`i2t`) and questions, on seen kinds and held-out specs.

    `captions` decodes captions otherwise than pictures. Raises ConfigError for a model whose
    pictures are not those of the built-in world.
    """
    captions = captions or config
    if not adapter.draws_pixels:
        raise ConfigError("this model has no decoder to pixels: its pictures cannot be evaluated")
    if adapter.image_size != SIZE:
        raise ConfigError(
            f"the built-in world's pictures have {SIZE} pixels a side, the model's "
            f"{adapter.image_size}: it cannot be evaluated on it"
        )
    seen = draw_specs(config.seed, config.specs_per_kind, config.split)
    result: dict[str, Any] = {
        "t2i": accuracy(adapter, "t2i", seen, config),
        "i2t": accuracy(adapter, "i2t", seen, captions),
        "questions": question_accuracy(adapter, seen, config),
    }
    if config.held_out_per_kind:
        apart = draw_specs(
            config.seed, config.held_out_per_kind, config.split, HELD_OUT_KINDS, held_out=True
        )
        result["t2i"]["held_out"] = accuracy(adapter, "t2i", apart, config)
        result["i2t"]["held_out"] = accuracy(adapter, "i2t", apart, captions)
    return result


def best_decoding(
    adapter: Adapter,
    config: EvalConfig,
    temperatures: Sequence[float] = (1.0, 0.7, 0.5, 0.3, 0.0),
    guidances: Sequence[float] = (1.0, 1.5, 2.0, 3.0),
    direction: Direction = "t2i",
) -> tuple[float, float, list[dict[str, float]]]:
    """Find where the model draws (or captions) best: temperature, guidance and all that was tried.

    Chosen on the tuning specs. Captions have no guidance.
    """
    specs = draw_specs(config.seed, config.specs_per_kind, "tune")
    table = []
    for guidance in guidances if direction == "t2i" else (1.0,):
        for temperature in temperatures:
            at = replace(config, temperature=temperature, guidance=guidance, split="tune")
            score = accuracy(adapter, direction, specs, at)["accuracy"]
            table.append({"temperature": temperature, "guidance": guidance, "accuracy": score})
    best = max(table, key=lambda row: row["accuracy"])
    return best["temperature"], best["guidance"], table
