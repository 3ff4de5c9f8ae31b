"""Will a recipe fit, and how long will a step take? Answered without weights and without a GPU.

Memory is counted by running the package's own code on the meta device (simulate.py). Time is an
estimate from data sheets and the assumptions below, not a measurement.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml
from rich.table import Table
from torch import nn

from viceversa import simulate
from viceversa.config import Config, ConfigError, check
from viceversa.gpus import Gpu
from viceversa.models.base import Adapter
from viceversa.simulate import PROMPT_WORDS, Cost, Geometry
from viceversa.types import DIRECTIONS, Direction, opposite

GIB = 2**30
#: Share of a GPU's memory that a peak may take: the rest is for the CUDA context, kernels'
#: workspaces and fragmentation. Assumed.
USABLE = 0.92
#: Share of the data sheet's FLOP/s that large matrix products reach. Assumed: Llama 3 reports 38 to
#: 43 % (arXiv:2407.21783).
EFFICIENCY = 0.4
#: Seconds to launch one operation from Python, the least that one can take. Assumed.
LAUNCH = 10e-6
#: Layers that FSDP2 holds gathered in a forward or backward pass: one at work, one prefetched.
GATHERED_LAYERS = 2
#: A change that lowers the peak by less is not worth naming.
LOWER = 0.98
MOST_CHANGES = 8
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
FIXED = PARTS[:4]
"""Whatever the rows at once."""
CODEC = ("t2i pixels", "i2t image ids")
"""Phases whose rows no option sets: a few pictures at once (models.base.CODEC_PIXELS)."""


@dataclass(frozen=True)
class Phase:
    """One kind of work in an optimizer step, on one process."""

    name: str
    memory: dict[str, int]
    """Bytes by part, at the moment of most."""
    tokens: int
    """Sampled, scored or learned from in one step."""
    seconds: float
    rows: int
    """At once."""

    @property
    def bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Plan:
    trainable: int
    frozen: int
    phases: tuple[Phase, ...]
    processes: int

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def seconds(self) -> float:
        """Of one optimizer step."""
        return sum(phase.seconds for phase in self.phases)

    def fits(self, memory: float) -> bool:
        return self.peak.bytes <= USABLE * memory * GIB


@dataclass(frozen=True)
class Advice:
    change: str
    """As one would type it."""
    config: Config
    plan: Plan
    """With this change."""


def make_plan(config: Config, gpu: Gpu, processes: int = 1, words: int = PROMPT_WORDS) -> Plan:
    """What `config` takes on each of `processes` GPUs, with prompts of `words` tokens."""
    return _Planner(config, gpu, processes, words).plan()


class _Planner:
    def __init__(self, config: Config, gpu: Gpu, processes: int, words: int):
        self.config, self.gpu, self.processes, self.words = config, gpu, processes, words
        train = config.train
        self.mixed = bool(train.get("bf16") or train.get("fp16"))
        self.sharded = bool(train.get("fsdp")) and processes > 1
        lora = config.lora
        stored = Geometry(
            config.model.path,
            config.model.dtype,
            config.model.image_size,
            (lora.rank, lora.alpha, lora.dropout, lora.modules),
            _checkpointing(train),
            self.mixed,
        )
        # FSDP2 gathers in bfloat16 whatever is not the image tokenizer's
        gathered = self.sharded and self.mixed
        self.geometry = replace(stored, dtype="bfloat16") if gathered else stored
        self.codec = stored
        self.adapter = self.geometry.adapter()
        self.low = self.mixed or config.model.dtype == "bfloat16"
        self.rate = gpu.bf16 if self.low else gpu.fp32
        self.weights = _Weights(self.adapter, 2 if config.model.dtype == "bfloat16" else 4)
        self.captions = config.sampling.max_caption_tokens

    def plan(self) -> Plan:
        both = self.config.schedule in ("joint", "alternate")
        directions: list[Direction] = [d for d in DIRECTIONS if both or d == self.config.schedule]
        phases = [p for d in directions for p in (*self._sample(d), self._score(d))]
        if self.sharded:  # every process loads the whole model first
            phases.insert(0, Phase("loading", {"weights": self.weights.bytes}, 0, 0.0, 0))
        phases += [self._freeze(d) for d in directions if self.config.loss.needs_reference(d)]
        if self.config.schedule == "alternate":
            phases = [replace(p, seconds=p.seconds / 2, tokens=p.tokens // 2) for p in phases]
            halves = [self._learn([d]) for d in directions]
            phases += [replace(p, seconds=p.seconds / 2, tokens=p.tokens // 2) for p in halves]
        else:
            phases.append(self._learn(directions))
        w = self.weights
        return Plan(w.trained, w.all - w.trained, tuple(phases), self.processes)

    def _phase(
        self,
        name: str,
        cost: Cost,
        rows: int,
        tokens: int,
        seconds: float,
        whole: bool = True,
    ) -> Phase:
        """With what is always there. `whole`: under FSDP, all weights are gathered throughout."""
        w, shards = self.weights, self.processes if self.sharded else 1
        memory = Counter(cost.memory)
        memory["weights"] += w.codec_bytes + (w.bytes - w.codec_bytes) // shards
        if self.sharded:
            numbers = w.root + (w.layers if whole else GATHERED_LAYERS * w.layer)
            memory["weights"] += self._compute_size() * numbers
        memory["optimizer"] += round(self._states() * w.trained_bytes / shards)
        reward, loss = self.config.reward, self.config.loss
        kept = (reward.scorer != "live") + any(map(loss.needs_reference, DIRECTIONS))
        memory["snapshots"] += kept * w.trained_bytes // shards
        parts = {part: memory[part] for part in PARTS if memory[part]}
        return Phase(name, parts, tokens, seconds, rows)

    def _states(self) -> float:
        name = str(self.config.train.get("optim", "adamw"))
        return next((v for k, v in STATES.items() if name.startswith(k)), 2.0)

    def _groups(self, direction: Direction) -> int:
        """Of one process in one optimizer step."""
        return math.ceil(self._all_groups(direction) / self.processes)

    def _all_groups(self, direction: Direction) -> int:
        data = self.config.data
        return data.prompts_per_step if direction == "t2i" else data.images_per_step

    def _output(self, direction: Direction) -> int:
        return self.adapter.image_tokens if direction == "t2i" else self.captions

    def _sample(self, direction: Direction) -> Iterator[Phase]:
        sampling, groups = self.config.sampling, self._groups(direction)
        group = sampling.group_size
        inputs = min(groups, max(1, sampling.batch_rows // group))
        words = self.words if direction == "t2i" else self.captions
        found = simulate.sampling(self.geometry, direction, inputs, group, words, sampling.guidance)
        moved = self.weights.read * self._compute_size() + found.cache_bytes / 2  # half full
        token = max(
            moved / (self.gpu.bandwidth * 1e9),
            found.token.flops / (self.rate * 1e12),
            found.token.operations * LAUNCH,
        )
        batches = math.ceil(groups / inputs)
        seconds = batches * (self._compute(found.whole) + found.steps * token)
        rows = groups * group
        tokens = rows * self._output(direction)
        yield self._phase(f"{direction} sampling", found.whole, inputs * group, tokens, seconds)
        once = min(rows if direction == "t2i" else groups, self.adapter.pictures_at_once)
        if direction == "t2i":
            drawn = simulate.drawing(self.codec, once)
            seconds = self._compute(drawn) * rows / once
            if drawn.flops:
                yield self._phase("t2i pixels", drawn, once, 0, seconds)
        else:
            seen = simulate.reading(self.codec, once)
            seconds = self._compute(seen) * groups / once
            yield self._phase("i2t image ids", seen, once, 0, seconds)

    def _score(self, direction: Direction) -> Phase:
        """The reward: the outputs read back, so it is the other direction that is scored."""
        rows = self._groups(direction) * self.config.sampling.group_size
        once = min(rows, self.config.reward.batch_rows)
        back = opposite(direction)
        words = self.words if back == "i2t" else self.captions
        cost = simulate.scoring(self.geometry, back, once, words)
        length = self.adapter.image_tokens if back == "t2i" else self.words
        return self._phase(
            f"{direction} reward",
            cost,
            once,
            rows * length,
            math.ceil(rows / once) * self._compute(cost),
        )

    def _freeze(self, direction: Direction) -> Phase:
        rows = self._rows(direction)
        once = min(rows, self.config.reward.batch_rows)
        words = self.words if direction == "t2i" else self.captions
        cost = simulate.scoring(self.geometry, direction, once, words, self._guidance(direction))
        seconds = math.ceil(rows / once) * self._compute(cost)
        tokens = rows * self._output(direction)
        return self._phase(f"{direction} reference", cost, once, tokens, seconds)

    def _guidance(self, direction: Direction) -> float:
        guided = self.config.loss.logprob_policy == "guided" and direction == "t2i"
        return self.config.sampling.guidance if guided else 1.0

    def _rows(self, direction: Direction) -> int:
        """Rows of one process, at most, that the loss learns from: all of the widest groups, their
        pairs or their best."""
        widest = math.ceil(self.config.loss.group_share * self._all_groups(direction))
        return min(self._groups(direction), widest) * self._sharing()

    def _sharing(self) -> int:
        return self.config.loss.rows_of(self.config.sampling.group_size)

    def _learn(self, directions: Sequence[Direction]) -> Phase:
        loss = self.config.loss
        micro = int(self.config.train.get("gradient_accumulation_steps", 1))
        rows = {d: math.ceil(self._rows(d) / micro) for d in directions}
        most = loss.batch_rows and max(loss.batch_rows, loss.unit)
        parts = math.ceil(max(rows.values()) / most) if most else 1
        once = tuple((d, math.ceil(n / parts)) for d, n in rows.items())
        passes = micro * parts
        norms = loss.direction_norms_every > 0 and self.processes == 1
        cost = simulate.learning(
            self.geometry,
            once,
            (self.words, self.captions),
            self._guidance("t2i"),
            passes > 1,
            norms,
            self._sharing(),
        )
        memory = Counter(cost.memory)
        self._settle_gradients(memory, joint=len(directions) > 1)
        tokens = sum(self._rows(d) * self._output(d) for d in directions)
        seconds = passes * self._compute(cost)
        name = "backward" if len(directions) > 1 else f"{directions[0]} backward"
        cost, most = replace(cost, memory=memory), max(n for _, n in once)
        return self._phase(name, cost, most, tokens, seconds, whole=False)

    def _settle_gradients(self, memory: Counter[str], joint: bool) -> None:
        """From the simulated type to the weights' own, and over processes.

        `joint`: a weight's gradient from one direction waits for the other's, so that a second set
        is alive; FSDP2 can shard neither before it is whole, and sums a layer's in float32.
        """
        w = self.weights
        if self.sharded:
            waiting = w.trained if joint else GATHERED_LAYERS * w.layer
            whole = waiting * self._compute_size() + 4 * w.layer
            memory["gradients"] = w.trained_bytes // self.processes + whole
            return
        memory["gradients"] = memory["gradients"] * w.trained_bytes // w.computed_bytes
        if self.processes > 1:
            memory["gradients"] += w.trained_bytes  # DistributedDataParallel's buckets

    def _compute_size(self) -> int:
        return 2 if self.low else 4

    def _compute(self, cost: Cost) -> float:
        """Seconds of one piece of work that large products fill."""
        return max(cost.flops / (self.rate * 1e12 * EFFICIENCY), cost.operations * LAUNCH)


class _Weights:
    """Numbers and bytes of an adapter's parameters as they are stored."""

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
        embeddings = _numbers(adapter.model.get_input_embeddings())
        #: read for every sampled token
        self.read = sum(p.numel() for p in adapter.trainable_parameters()) - embeddings


def _checkpointing(train: dict[str, Any]) -> bool:
    """Under any of the names that TrainingArguments has for it."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    sharded = train.get("fsdp_config") or {}
    return any(train.get(name) for name in names) or bool(sharded.get(names[0]))


def _numbers(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _layers(model: Any) -> list[nn.Module]:
    """Of the language model: what FSDP2 shards and gathers one at a time."""
    return next(
        list(m)
        for name, m in model.named_modules()
        if isinstance(m, nn.ModuleList)
        and name.endswith("layers")
        and ("language_model" in name or "text_model" in name or name == "model.layers")
    )


def table(plan: Plan, title: str) -> Table:
    """Peak by phase with its parts in GiB, tokens and seconds; on one process."""
    found = Table(title=title)
    found.add_column("phase of a step", no_wrap=True)
    found.add_column("peak, GiB", justify="right", no_wrap=True)
    found.add_column("of that")
    found.add_column("tokens", justify="right", no_wrap=True)
    found.add_column("seconds", justify="right", no_wrap=True)
    for phase in plan.phases:
        shown = {k: v for k, v in phase.memory.items() if v >= phase.bytes / 100}
        parts = ", ".join(f"{part} {size / GIB:.2f}" for part, size in shown.items())
        size, tokens = f"{phase.bytes / GIB:.2f}", f"{phase.tokens:,}" if phase.tokens else ""
        style = "bold" if phase == plan.peak else None
        found.add_row(phase.name, size, parts, tokens, f"{phase.seconds:.1f}", style=style)
    return found


def summary(plan: Plan, gpu: Gpu, words: int) -> list[str]:
    """Lines under the table."""
    peak, share = plan.peak, plan.peak.bytes / GIB / gpu.memory
    verdict = "fits" if plan.fits(gpu.memory) else "does not fit"
    codec = []
    if peak.name in CODEC and not plan.fits(gpu.memory):
        codec = [
            f"the peak is the image tokenizer's, {peak.rows} at once, which no option sets: as it "
            f"is, this wants {peak.bytes / GIB / USABLE:.0f} GiB"
        ]
    many = f"each of {plan.processes} processes: " if plan.processes > 1 else ""
    return [
        f"parameters: {plan.trainable / 1e6:,.1f} M trained, {plan.frozen / 1e6:,.1f} M frozen",
        f"{many}peak {peak.bytes / GIB:.1f} GiB in {peak.name}, {share:.0%} of {gpu.memory:g} GiB: "
        f"{verdict} (up to {USABLE:.0%} may be used)",
        f"time: about {plan.seconds:.0f} s a step; an estimate from the {gpu.name}'s data sheet "
        f"({gpu.source}), {EFFICIENCY:.0%} of its FLOP/s and {LAUNCH * 1e6:.0f} µs an operation "
        "assumed, exchange between GPUs left out; not measured",
        f"prompts of {words} tokens assumed, every caption at its longest",
        *codec,
    ]


def advice_lines(steps: Sequence[Advice], gpu: Gpu) -> list[str]:
    if not steps:
        return ["nothing tried here lowers the peak: take a smaller model or a larger GPU"]
    lines = []
    for number, step in enumerate(steps):
        peak = step.plan.peak
        then = "fits" if step.plan.fits(gpu.memory) else "not yet enough"
        first = "first change" if number == 0 else "and then"
        lines.append(f"{first}: {step.change} ({peak.bytes / GIB:.1f} GiB in {peak.name}: {then})")
    return lines


def record(plan: Plan) -> dict[str, Any]:
    """For a JSON file."""
    return {
        **asdict(plan),
        "peak_bytes": plan.peak.bytes,
        "peak_phase": plan.peak.name,
        "seconds": plan.seconds,
    }


def advise(
    config: Config,
    gpu: Gpu,
    processes: int,
    words: int = PROMPT_WORDS,
    only: Container[str] | None = None,
) -> list[Advice]:
    """What to change, one after the other, until the recipe fits; each tried by planning again.

    `only`: of these options, if given.
    """
    steps: list[Advice] = []
    now = make_plan(config, gpu, processes, words)
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
    """The first that makes it fit, else the first that lowers the peak."""
    lower: Advice | None = None
    for settings, processes in _changes(config, now, gpu):
        if only is not None and not (
            settings and all(s.partition("=")[0] in only for s in settings)
        ):
            continue
        if lower is not None and processes > now.processes:
            break  # more GPUs only where nothing else helps
        changed = _with(config, settings)
        if not _allowed(changed):
            continue
        then = make_plan(changed, gpu, processes, words)
        said = [f"--processes {processes}"] * (processes != now.processes)
        advice = Advice(" ".join([*said, *(f"--set {s}" for s in settings)]), changed, then)
        if then.fits(gpu.memory):
            return advice
        if lower is None and then.peak.bytes < LOWER * now.peak.bytes:
            lower = advice
    return lower


def _allowed(config: Config) -> bool:
    try:
        check(config)
    except ConfigError:
        return False
    return True


def _changes(config: Config, plan: Plan, gpu: Gpu) -> Iterator[tuple[Sequence[str], int]]:
    """(settings, processes): what never changes the result comes first."""
    peak, processes = plan.peak, plan.processes
    training, sampling = config.train, config.sampling
    unit = config.loss.unit
    knobs = {
        "backward": ("loss.batch_rows", unit),
        "sampling": ("sampling.batch_rows", sampling.group_size),
        "reward": ("reward.batch_rows", 1),
        "reference": ("reward.batch_rows", 1),
    }
    knob, smallest = knobs.get(peak.name.split()[-1], ("", 0))
    room = USABLE * gpu.memory * GIB - sum(peak.memory.get(part, 0) for part in FIXED)
    if training.get("fsdp") and processes == 1:  # what the recipe was written for
        yield (), 8
    if knob and peak.rows > smallest and room > 0:
        yield [f"{knob}={_fewer_rows(peak, room, smallest)}"], processes
    if knob == "loss.batch_rows" and room > 0 and not _checkpointing(training):
        yield ["train.activation_checkpointing=true"], processes
    if config.model.dtype == "float32" and config.lora.rank:
        yield ["model.dtype=bfloat16"], processes
    if not config.lora.rank:
        yield ["lora.rank=16", "model.dtype=bfloat16"], processes
        yield ["train.fsdp=true", "train.bf16=true"], 8 if processes < 8 else 2 * processes


def _with(config: Config, settings: Sequence[str]) -> Config:
    """A copy with `section.field=value` set."""
    config = copy.deepcopy(config)
    for setting in settings:
        name, _, text = setting.partition("=")
        section, field = name.split(".")
        holder, value = getattr(config, section), yaml.safe_load(text)
        if isinstance(holder, dict):
            holder[field] = value
        else:
            setattr(holder, field, value)
    return config


def _fewer_rows(phase: Phase, room: float, smallest: int) -> int:
    """The power of two that should fit into `room`, for what grows with rows."""
    grows = phase.bytes - sum(phase.memory.get(part, 0) for part in FIXED)
    fitting = 2 ** math.floor(math.log2(max(1.0, phase.rows * room / max(1, grows))))
    return max(smallest, min(phase.rows // 2, fitting))
