"""Will a recipe fit? Answered without weights and without a GPU.

Memory is counted by running the package's own code on the meta device (simulate.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table
from torch import nn

from viceversa.config import Config
from viceversa.models.base import Adapter
from viceversa.plan import simulate
from viceversa.plan.gpus import Gpu
from viceversa.plan.simulate import PROMPT_WORDS, Geometry, Memory
from viceversa.rl.algorithms import algorithm_of
from viceversa.types import DIRECTIONS, Direction, opposite

GIB = 2**30
#: Share of a GPU's memory that a peak may take: the rest is for the CUDA context, kernels'
#: workspaces and fragmentation. Assumed.
USABLE = 0.92
#: Layers that FSDP2 holds gathered in a forward or backward pass: one at work, one prefetched.
GATHERED_LAYERS = 2
#: Bytes of an optimizer's state per byte of trained weights, by the start of `train.optim`; AdamW
#: keeps two numbers of the weights' own type.
STATES = {"sgd": 0.0, "adafactor": 0.0}

PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "snapshots",
    "KV cache",
    "logits",
    "activations",
)
#: Parts that take the same memory however many rows are worked on at once.
FIXED = PARTS[:4]
#: Phases whose rows no option sets: a few pictures at once (models.base.CODEC_PIXELS).
CODEC = ("t2i pixels", "i2t image ids")


@dataclass(frozen=True)
class Phase:
    """One kind of work in an optimizer step, on one process."""

    name: str
    memory: dict[str, int]
    """Bytes by part, at the moment when their sum is largest."""
    rows: int
    """Rows worked on at once."""

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    """Parameters, and the memory of each phase of an optimizer step."""

    trainable: int
    frozen: int
    phases: tuple[Phase, ...]
    processes: int

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def fits(self, memory: float) -> bool:
        """Tell whether the peak fits into a GPU of `memory` GiB."""
        return self.peak.bytes <= USABLE * memory * GIB


def make_plan(config: Config, processes: int = 1, words: int = PROMPT_WORDS) -> Plan:
    """Plan what `config` takes on each of `processes` GPUs, with prompts of `words` tokens."""
    return _Planner(config, processes, words).plan()


class _Planner:
    def __init__(self, config: Config, processes: int, words: int):
        self.config, self.processes = config, processes
        train, lora = config.train, config.lora
        self.algorithm = algorithm_of(config.loss)
        mixed = bool(train.get("bf16") or train.get("fp16"))
        self.sharded = bool(train.get("fsdp")) and processes > 1
        self.codec = Geometry(
            config.model.path,
            config.model.dtype,
            config.model.image_size,
            (lora.rank, lora.alpha, lora.dropout, lora.modules),
            recomputes(train),
            mixed,
        )
        # FSDP2 gathers in bfloat16 whatever is not the image tokenizer's
        gathered = self.sharded and mixed
        self.geometry = replace(self.codec, dtype="bfloat16") if gathered else self.codec
        self.adapter = self.geometry.adapter()
        self.compute_size = 2 if mixed or config.model.dtype == "bfloat16" else 4
        self.weights = _Weights(self.adapter, 2 if config.model.dtype == "bfloat16" else 4)
        #: Tokens of a text: a prompt, or a caption.
        self.words: dict[Direction, int] = {"t2i": words, "i2t": config.sampling.max_caption_tokens}

    def plan(self) -> Plan:
        schedule = self.config.schedule
        joint = schedule == "joint"
        used: list[Direction] = [
            d for d in DIRECTIONS if schedule not in DIRECTIONS or d == schedule
        ]
        phases = [phase for d in used for phase in (*self.sample(d), *self.score(d))]
        if self.sharded:  # every process loads the whole model first
            phases.insert(0, Phase("loading", {"weights": self.weights.bytes}, 0))
        phases += [self.freeze(d) for d in used if self.algorithm.uses_reference(d)]
        phases += [self.learn(used)] if joint else [self.learn([d]) for d in used]
        w = self.weights
        return Plan(w.trained, w.all - w.trained, tuple(phases), self.processes)

    def phase(self, name: str, memory: Memory, rows: int, whole: bool = True) -> Phase:
        """Add what is always there; `whole`: under FSDP, all weights are gathered throughout."""
        w, shards = self.weights, self.processes if self.sharded else 1
        total = Counter(memory)
        total["weights"] += w.codec_bytes + (w.bytes - w.codec_bytes) // shards
        if self.sharded:
            numbers = w.root + (w.layers if whole else GATHERED_LAYERS * w.layer)
            total["weights"] += self.compute_size * numbers
        total["optimizer"] += round(self.states() * w.trained_bytes / shards)
        kept = (self.config.reward.scorer == "average") + self.keeps_start()
        total["snapshots"] += kept * w.trained_bytes // shards
        return Phase(name, {part: total[part] for part in PARTS if total[part]}, rows)

    def keeps_start(self) -> bool:
        """Tell whether the starting weights are kept: by scorer, replay, reference or watch."""
        config = self.config
        kept = config.reward.scorer == "frozen" or config.replays or config.watches
        return kept or any(map(self.algorithm.uses_reference, DIRECTIONS))

    def states(self) -> float:
        """Return the bytes of the optimizer's state per byte of trained weights."""
        name = str(self.config.train.get("optim", "adamw"))
        return next((v for k, v in STATES.items() if name.startswith(k)), 2.0)

    def groups(self, direction: Direction) -> int:
        """Count the groups of one process in one optimizer step."""
        return math.ceil(self.config.data.per_step(direction) / self.processes)

    def sample(self, direction: Direction) -> Iterator[Phase]:
        sampling, groups = self.config.sampling, self.groups(direction)
        group = sampling.group_size
        inputs = min(groups, max(1, sampling.batch_rows // group))
        words = self.words[direction]
        memory = simulate.sampling(
            self.geometry, direction, inputs, group, words, sampling.guidance
        )
        yield self.phase(f"{direction} sampling", memory, inputs * group)
        once = min(groups * (group if direction == "t2i" else 1), self.adapter.pictures_at_once)
        if direction == "i2t":
            yield self.phase("i2t image ids", simulate.reading(self.codec, once), once)
        elif self.adapter.draws_pixels:
            yield self.phase("t2i pixels", simulate.drawing(self.codec, once), once)

    def score(self, direction: Direction) -> Iterator[Phase]:
        """Plan the reward: the outputs are read back, so it is the other direction's text.

        The second term scores them as they were written.
        """
        rows = self.groups(direction) * self.config.sampling.group_size
        once = min(rows, self.config.reward.batch_rows)
        words = self.words[direction]
        scored = simulate.scoring(self.geometry, opposite(direction), once, words)
        yield self.phase(f"{direction} reward", scored, once)
        if self.config.reward.own(direction):
            scored = simulate.scoring(self.geometry, direction, once, words)
            yield self.phase(f"{direction} reward, second term", scored, once)

    def freeze(self, direction: Direction) -> Phase:
        """Plan the log-probs under the reference."""
        once = min(self.rows(direction), self.config.reward.batch_rows)
        guidance = self.config.guidance(direction)
        words = self.words[direction]
        memory = simulate.scoring(self.geometry, direction, once, words, guidance)
        return self.phase(f"{direction} reference", memory, once)

    def rows(self, direction: Direction) -> int:
        """Count the rows of one process, at most, that the loss learns from."""
        widest = math.ceil(self.config.loss.group_share * self.config.data.per_step(direction))
        return min(self.groups(direction), widest) * self.sharing()

    def sharing(self) -> int:
        """Count the rows of one group that the loss learns from."""
        return self.algorithm.rows_of(self.config.sampling.group_size)

    def learn(self, directions: Sequence[Direction]) -> Phase:
        loss = self.config.loss
        micro = int(self.config.train.get("gradient_accumulation_steps", 1))
        rows: dict[Direction, int] = {d: math.ceil(self.rows(d) / micro) for d in directions}
        most = loss.batch_rows and max(loss.batch_rows, self.algorithm.unit)
        parts = math.ceil(max(rows.values()) / most) if most else 1
        once = [(d, math.ceil(n / parts), self.words[d], self.sharing()) for d, n in rows.items()]
        replay = self.config.replay
        if replay.questions and "i2t" in directions:
            answers = math.ceil(replay.per_step / self.processes / micro / parts)
            once.append(("i2t", answers, replay.max_answer_tokens, 1))
        memory = Counter(
            simulate.learning(
                self.geometry,
                tuple(once),
                self.config.guidance("t2i"),
                again=micro * parts > 1,
                norms=loss.direction_norms_every > 0 and self.processes == 1,
            )
        )
        self.settle_gradients(memory, joint=len(directions) > 1)
        name = "backward" if len(directions) > 1 else f"{directions[0]} backward"
        return self.phase(name, memory, max(batch[1] for batch in once), whole=False)

    def settle_gradients(self, memory: Memory, joint: bool) -> None:
        """Turn gradients from the simulated type to the weights' own, and share them out.

        `joint`: a weight's gradient from one direction waits for the other's, so that a second set
        is alive; FSDP2 can shard neither before it is whole, and sums a layer's in float32.
        """
        w = self.weights
        if self.sharded:
            waiting = w.trained if joint else GATHERED_LAYERS * w.layer
            memory["gradients"] = w.trained_bytes // self.processes
            memory["gradients"] += waiting * self.compute_size + 4 * w.layer
            return
        memory["gradients"] = memory["gradients"] * w.trained_bytes // w.computed_bytes
        if self.processes > 1:
            memory["gradients"] += w.trained_bytes  # DistributedDataParallel's buckets


class _Weights:
    """Count an adapter's parameters, and their bytes as they are stored."""

    def __init__(self, adapter: Adapter, size: int):
        parameters = list(adapter.model.parameters())
        self.size = size
        self.all = sum(p.numel() for p in parameters)
        trained = [p for p in parameters if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.computed_bytes = sum(p.numel() * p.element_size() for p in trained)
        # peft keeps LoRA in float32
        self.trained_bytes = self.trained * (4 if adapter.lora is not None else size)
        buffers = sum(b.numel() * b.element_size() for b in adapter.model.buffers())
        self.bytes = (self.all - self.trained) * size + self.trained_bytes + buffers
        #: the image tokenizer stays whole on every process
        self.codec_bytes = size * _numbers(adapter.image_tokenizer)
        layers = [_numbers(layer) for layer in _layers(adapter.model)]
        self.layer, self.layers = max(layers), sum(layers)
        self.root = self.all - self.layers - _numbers(adapter.image_tokenizer)


def recomputes(train: dict[str, Any]) -> bool:
    """Tell whether activations are recomputed, under any name that TrainingArguments has for it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    sharded = train.get("fsdp_config") or {}
    return any(train.get(name) for name in names) or bool(sharded.get(names[0]))


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layers(model: Any) -> list[nn.Module]:
    """Return the language model's layers, which FSDP2 shards and gathers one at a time."""
    return next(
        list(m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
        and name.endswith("layers")
        and ("language_model" in name or "text_model" in name or name == "model.layers")
    )


def table(plan: Plan, title: str) -> Table:
    """Show the peak of each phase and its parts, in GiB, on one process."""
    shown = Table(title=title)
    shown.add_column("phase of a step", no_wrap=True)
    shown.add_column("peak, GiB", justify="right", no_wrap=True)
    shown.add_column("made up of")
    for phase in plan.phases:
        large = {part: size for part, size in phase.memory.items() if size >= phase.bytes / 100}
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in large.items())
        style = "bold" if phase == plan.peak else None
        shown.add_row(phase.name, f"{phase.bytes / GIB:.2f}", parts, style=style)
    return shown


def summary(plan: Plan, gpu: Gpu, words: int) -> list[str]:
    """Return the lines under the table."""
    peak, share = plan.peak, plan.peak.bytes / GIB / gpu.memory
    verdict = "fits" if plan.fits(gpu.memory) else "does not fit"
    codec = []
    if peak.name in CODEC and not plan.fits(gpu.memory):
        codec = [
            f"the peak is the image tokenizer's, {peak.rows} at once, which no option sets: as it "
            f"is, this wants {math.ceil(peak.bytes / GIB / USABLE)} GiB"
        ]
    many = f"each of {plan.processes} processes: " if plan.processes > 1 else ""
    return [
        f"parameters: {plan.trainable / 1e6:,.1f} M trained, {plan.frozen / 1e6:,.1f} M frozen",
        f"{many}peak {peak.bytes / GIB:.1f} GiB in {peak.name}, {share:.0%} of {gpu.memory:g} GiB: "
        f"{verdict} (up to {USABLE:.0%} may be used)",
        f"prompts of {words} tokens assumed, every caption at its longest; the run's first steps "
        "tell the time",
        *codec,
    ]


def record(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON holds it."""
    return {**asdict(plan), "peak_bytes": plan.peak.bytes, "peak_phase": plan.peak.name}
