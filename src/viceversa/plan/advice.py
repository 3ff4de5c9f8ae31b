"""What to change in a recipe that does not fit into a GPU."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from viceversa.config import Config, ConfigError, with_options
from viceversa.plan.gpus import Gpu
from viceversa.plan.plan import FIXED, GIB, USABLE, Phase, Plan, make_plan, recomputes
from viceversa.plan.simulate import PROMPT_WORDS
from viceversa.rl.algorithms import algorithm_of

#: A change that lowers the peak by less is not worth naming.
LOWER = 0.98
MOST_CHANGES = 8


@dataclass(frozen=True)
class Advice:
    change: str
    """The change as one would type it."""
    config: Config
    plan: Plan
    """The plan with this change."""


def advise(
    config: Config,
    gpu: Gpu,
    processes: int,
    words: int = PROMPT_WORDS,
    only: Container[str] | None = None,
) -> list[Advice]:
    """Return what to change, one after the other, until the recipe fits; each is planned again.

    `only` names the options that may change; None lets all of them.
    """
    steps: list[Advice] = []
    now = make_plan(config, processes, words)
    while not now.fits(gpu.memory) and len(steps) < MOST_CHANGES:
        step = _first_change(config, now, gpu, words, only)
        if step is None:
            break
        steps.append(step)
        config, now = step.config, step.plan
    return steps


def _first_change(
    config: Config, now: Plan, gpu: Gpu, words: int, only: Container[str] | None
) -> Advice | None:
    """Return the first change that makes it fit, else the first that lowers the peak."""
    lower: Advice | None = None
    for settings, processes in _changes(config, now, gpu):
        if only is not None and not (
            settings and all(s.partition("=")[0] in only for s in settings)
        ):
            continue
        if lower is not None and processes > now.processes:
            break  # more GPUs only where nothing else helps
        try:
            changed = with_options(config, settings)
        except ConfigError:
            continue
        then = make_plan(changed, processes, words)
        said = [f"--processes {processes}"] * (processes != now.processes)
        advice = Advice(" ".join([*said, *(f"--set {s}" for s in settings)]), changed, then)
        if then.fits(gpu.memory):
            return advice
        if lower is None and then.peak.bytes < LOWER * now.peak.bytes:
            lower = advice
    return lower


def _changes(config: Config, plan: Plan, gpu: Gpu) -> Iterator[tuple[Sequence[str], int]]:
    """Yield (settings, processes) to try: what never changes the result comes first."""
    peak, processes = plan.peak, plan.processes
    training, sampling = config.train, config.sampling
    unit = algorithm_of(config.loss).unit
    knobs = {
        "backward": ("loss.batch_rows", unit),
        "sampling": ("sampling.batch_rows", sampling.group_size),
        "reward": ("reward.batch_rows", 1),
        "reference": ("reward.batch_rows", 1),
    }
    # a name is as "t2i reward, second term"
    knob, smallest = next((k for word, k in knobs.items() if word in peak.name), ("", 0))
    room = USABLE * gpu.memory * GIB - sum(peak.memory.get(part, 0) for part in FIXED)
    if training.get("fsdp") and processes == 1:  # what the recipe was written for
        yield (), 8
    if knob and peak.rows > smallest and room > 0:
        yield [f"{knob}={_fewer_rows(peak, room, smallest)}"], processes
    if knob == "loss.batch_rows" and room > 0 and not recomputes(training):
        yield ["train.activation_checkpointing=true"], processes
    if config.model.dtype == "float32" and config.lora.rank:
        yield ["model.dtype=bfloat16"], processes
    if not config.lora.rank:
        yield ["lora.rank=16", "model.dtype=bfloat16"], processes
        yield ["train.fsdp=true", "train.bf16=true"], 8 if processes < 8 else 2 * processes


def _fewer_rows(phase: Phase, room: float, smallest: int) -> int:
    """Return the power of two rows that should fit into `room` bytes."""
    grows = phase.bytes - sum(phase.memory.get(part, 0) for part in FIXED)
    fitting = 2 ** math.floor(math.log2(max(1.0, phase.rows * room / max(1, grows))))
    return max(smallest, min(phase.rows // 2, fitting))


def advice_lines(steps: Sequence[Advice], gpu: Gpu) -> list[str]:
    """Say in words what `advise` found."""
    if not steps:
        return ["nothing tried here lowers the peak: take a smaller model or a larger GPU"]
    lines = []
    for number, step in enumerate(steps):
        peak = step.plan.peak
        then = "fits" if step.plan.fits(gpu.memory) else "not yet enough"
        first = "first change" if number == 0 else "and then"
        lines.append(f"{first}: {step.change} ({peak.bytes / GIB:.1f} GiB in {peak.name}: {then})")
    return lines
