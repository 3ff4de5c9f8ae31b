"""One training run, start to finish: folder, evaluation before and after, progress, report."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from viceversa.config import (
    Config,
    ConfigError,
    blamed,
    check_folder,
)
from viceversa.data.cache import DiskCache
from viceversa.data.image_ids import ImageIds
from viceversa.data.sources import WORLDS, Source
from viceversa.data.stream import Stream
from viceversa.files import StorageError, storage_trouble
from viceversa.inference.logprobs import Policy
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.publish.card import add_figures
from viceversa.rl.algorithms import algorithm_of
from viceversa.rl.rewards import OF_THE_STEP, reward_of
from viceversa.training.arguments import first_line, training_arguments
from viceversa.training.checkpoint import last_whole, step_of
from viceversa.training.interrupt import Interrupt, StopTogether
from viceversa.training.lock import Lock
from viceversa.training.measuring import measure_held_out, unmeasured, whole
from viceversa.training.parallel import first_decides, leave_group_at_exit
from viceversa.training.progress import Progress
from viceversa.training.recorder import Recorder
from viceversa.training.trainer import DualRewardTrainer, stream_of
from viceversa.training.watch import Inputs, watched
from viceversa.types import DIRECTIONS, Direction, Monitor, Reward, Rollout

UNVERIFIED = (
    "the verifier of the built-in world cannot read this model's pictures: nothing is verified or "
    "evaluated, and training goes on without"
)


@dataclass(frozen=True)
class Given:
    """Objects that a caller in Python hands over instead of naming them in the config."""

    adapter: Adapter | None = None
    """The model, loaded."""
    inputs: Mapping[Direction, Any] = field(default_factory=dict)
    """Prompts and pictures in memory (data.given)."""
    rewards: Mapping[str, Reward] = field(default_factory=dict)
    """Reward functions by the names that the config has for them."""
    monitor: Monitor | None = None
    callbacks: tuple[TrainerCallback, ...] = ()


def train(
    config: Config, console: Console, resume: bool = False, given: Given | None = None
) -> Path:
    """Run `config` and return the run folder.

    Raises ConfigError before any work for inputs that cannot be used, and, once the folder is in
    order, Interrupted after a signal to stop and, in one line, MemoryError where memory ends,
    FloatingPointError where a number is not finite, StorageError where a file cannot be written.
    """
    try:
        with Lock(Path(config.output_dir)) as lock:
            return _train(config, console, resume, lock, given or Given())
    except (torch.OutOfMemoryError, MemoryError) as error:
        reason = re.split(r"\. |\n", str(error) or "out of memory")[0]
        hint = "`viceversa plan` with the same options says what to change"
        raise MemoryError(f"{reason}; {hint}") from error


def _train(config: Config, console: Console, resume: bool, lock: Lock, given: Given) -> Path:
    transformers_logging.disable_progress_bar()
    out = check_folder(config.output_dir, "output_dir")
    if not resume and (out / "config.yaml").exists() and Path.cwd().is_relative_to(out.resolve()):
        raise ConfigError(
            f"output_dir is {config.output_dir!r}, a run's folder that the current one lies in, "
            "so it cannot be renamed: choose another, or go on with --resume"
        )
    args = training_arguments(config)
    leave_group_at_exit()
    checkpoint = first_decides(lambda: _claim(out, config.steps, console, resume, lock))
    algorithm_of(config.loss)
    named = {**dict.fromkeys(OF_THE_STEP, _unrated), **given.rewards}
    rewards = [reward_of(term, named) for term in config.reward.terms()]
    names = [term.name for term in config.reward.terms()]
    if len(set(names)) == len(names):  # the step does not make them a second time
        made = {n: r for n, r in zip(names, rewards, strict=True) if r is not _unrated}
        given = replace(given, rewards={**given.rewards, **made})
    adapter = given.adapter or load_adapter(config.model, config.lora, config.seed)
    stream = stream_of(adapter, config, args, console, given.inputs)
    sources = stream.sources
    check_references(rewards, config, sources)
    run = Recorder(out, config, args.process_index == 0, checkpoint)
    if config.data.images not in WORLDS and "i2t" in sources:  # theirs are tiny: no need
        cache = DiskCache(Path(config.data.cache_dir) / "image_ids.sqlite")
        run.image_ids = ImageIds(adapter, cache)
    world = next((s.world for s in sources.values() if s.monitored), None)
    trainer = _trainer(adapter, config, stream, args, run, world, given)
    with _saying_what_is_left(run):
        first_decides(lambda: run.start(sources, console, lock))
    run.draws_pixels = adapter.draws_pixels
    run.world = world if run.draws_pixels else None
    measured = bool(run.world) and config.eval.specs_per_kind > 0
    run.env["unmeasured"] = unmeasured(config, sources, measured)
    ignored: tuple[type[Exception], ...] = ()
    with (
        _saying_what_is_left(run),
        Progress(console, config, run.enabled) as progress,
        Interrupt() as interrupt,
    ):
        try:
            if not run.world and WORLDS.keys() & set(config.inputs().values()):
                progress.say(UNVERIFIED)
            for why in run.env["unmeasured"].values():
                progress.say(why)
            if config.replay.questions and not config.replays:
                progress.say(f"schedule {config.schedule} reads no pictures: nothing is replayed")
            done = step_of(checkpoint) if checkpoint else 0
            progress.begin("estimating the time")
            progress.say(_estimate(trainer, config, adapter, run.world if measured else None, done))
            if measured and "base" not in run.eval:
                progress.begin("evaluating the base model")
                run.evaluate("base", adapter)
            trainer.add_callback(_Log(run, progress))
            held_out: Inputs = {d: s.held_out for d, s in sources.items() if s.held_out}
            watch = watched(trainer, held_out, run, progress)
            trainer.add_callback(StopTogether(interrupt, config.loss.updates_per_rollout))
            with interrupt.deferred(progress.say):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            if watch is not None:
                watch.end(progress.say)
                run.note_best(trainer.best_checkpoint, watch.collapse)
            _measure(run, progress, trainer, measured, held_out)
            stopped = watch is not None and watch.collapse  # then it is the best that was measured
            _tell_card(run, trainer.best_step if stopped else trainer.state.global_step)
        except Exception as error:
            ignored = (OSError,)  # what ended the run is told, and not what came of it
            run.env["ended_by"] = str(error)
            raise
        finally:
            with suppress(*ignored):
                run.finish(console, interrupted=bool(interrupt.asked))
    return out


def _measure(
    run: Recorder, progress: Progress, trainer: DualRewardTrainer, verified: bool, inputs: Inputs
) -> None:
    """Measure the tuned model on the first process: by the verifier where `verified`, by `inputs`.

    Training is done, so that trouble is only told.
    """
    if not run.enabled:
        return
    trouble = ""
    try:
        if verified:
            trouble = "the tuned model is not evaluated"
            progress.begin("evaluating the tuned model")
            run.evaluate("tuned", whole(trainer.adapter, run.checkpoint, run.config))
        if inputs:
            trouble = "held-out inputs are not measured"
            progress.begin("measuring held-out inputs, without labels")
            run.keep_held_out(measure_held_out(trainer, run.checkpoint, inputs))
    except ConfigError as error:
        run.env["unmeasured"]["tuned"] = why = f"{trouble}: {error}"
        progress.say(why)


def _tell_card(run: Recorder, step: int | None) -> None:
    """Add what was measured to the card of the checkpoint measured; the best one's points to it."""
    if run.enabled and run.checkpoint is not None and step_of(run.checkpoint) == step:
        add_figures(run.checkpoint, run.eval)
        if run.best is not None and run.best != run.checkpoint:
            add_figures(run.best, run.eval, elsewhere=run.checkpoint.name)


def _trainer(
    adapter: Adapter,
    config: Config,
    stream: Stream,
    args: TrainingArguments,
    run: Recorder,
    world: Any,
    given: Given,
) -> DualRewardTrainer:
    """Make the trainer, before anything is written. Raises ConfigError for refused options."""
    try:
        trainer = DualRewardTrainer(
            adapter,
            config,
            stream,
            args,
            run.record_rollout,
            rewards=given.rewards,
            monitor=given.monitor or (world and world.monitor),
            image_ids=run.image_ids,
            callbacks=list(given.callbacks),
        )
        trainer.get_train_dataloader()
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError, ImportError, RuntimeError, OSError) as error:
        raise ConfigError(f"train: {first_line(error)}") from error
    return trainer


@contextmanager
def _saying_what_is_left(run: Recorder) -> Iterator[None]:
    """Add to the line about what ended training which checkpoint there is to go on from."""
    try:
        yield
    except (FloatingPointError, StorageError, OSError, SafetensorError) as error:
        if blamed(error):
            raise
        if isinstance(error, FloatingPointError | StorageError):
            raise type(error)(f"{error}; {run.left()}") from error
        why = storage_trouble(error, run.out) or str(error).partition("\n")[0]
        raise StorageError(f"{why}; {run.left()}") from error


def _unrated(rollout: Rollout) -> Any:
    """Stand in for a reward that the step makes, while names are checked."""


def check_references(
    rewards: Sequence[Any], config: Config, sources: dict[Direction, Source]
) -> None:
    """Raise ConfigError for a reward that asks for labels where an input has none."""
    for term, reward in zip(config.reward.terms(), rewards, strict=True):
        bare = [d for d, s in sources.items() if s.examples and s.examples[0].reference is None]
        if getattr(reward, "needs_references", False) and bare:
            raise ConfigError(
                f"reward.name is {term.name}; it needs labels, and the inputs of {bare[0]} carry "
                "none that it can read: use data.prompts=scenes, data.images=scenes"
            )


def probe(trainer: DualRewardTrainer) -> float:
    """Measure the seconds of one optimizer step, by running the first one without taking it.

    In one backward pass, whatever `loss.batch_rows`: for a model that is sure to fit.
    """
    step, parts = trainer.step, trainer.args.gradient_accumulation_steps
    began = time.perf_counter()
    step.keep_start()
    stream: Any = trainer.train_dataset
    examples = [e for i in range(parts) for e in stream[i]]
    policy = Policy(trainer.adapter).train()
    for micro in step.rows(examples, 0, parts)[0]:
        losses, _ = step.losses(micro, policy(partial(step.logprobs, micro)))
        sum(losses.values()).backward()  # type: ignore[union-attr]
    policy.zero_grad()
    if step.known is not None:
        step.known.forget()  # the step itself is still to come
    return time.perf_counter() - began


def _estimate(
    trainer: DualRewardTrainer, config: Config, adapter: Adapter, world: Any, done: int
) -> str:
    """Describe the run to come, after `done` steps, and for the built-in model how long it takes.

    A step run for the purpose would be dear for a large model, and untried at its memory's limit:
    its time is told after its first steps (_Log).
    """
    if config.model.path == "builtin":
        probe(trainer)  # the first pass pays for warm-up
        training = f"about {probe(trainer) * (config.steps - done) / 60:.1f} min of training"
    else:
        training = f"time after {_steps(_round(config))} of training"
    trained = sum(p.numel() for p in adapter.model.parameters() if p.requires_grad)
    steps = f"{config.steps} steps" + (f", {done} of them done," if done else "")
    text = (
        f"{config.model.path}: {trained / 1e6:.2f} M parameters to train, {steps} of "
        f"{config.loss.name} on the {config.reward.name} reward, schedule {config.schedule}; "
        f"{training}"
    )
    if not adapter.draws_pixels and config.schedule != "i2t":
        text += ". This model has no decoder from image ids to pixels: its pictures cannot be shown"
    if world:
        began = time.perf_counter()
        world.evaluate(adapter, replace(config.eval, specs_per_kind=10, held_out_per_kind=2))
        share = (time.perf_counter() - began) * config.eval.specs_per_kind / 10
        when, times = ("", 1) if done else (", before and after together", 2)
        text += f"; about {times * share / 60:.1f} min of evaluation{when}"
    return text


def _round(config: Config) -> int:
    """Steps until each kind has been taken: updates of one rollout, directions in turn."""
    return config.loss.updates_per_rollout * (2 if config.schedule == "alternate" else 1)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _claim(out: Path, steps: int, console: Console, resume: bool, lock: Lock) -> Path | None:
    """Lock a folder that holds a run, and find the checkpoint to go on from.

    A new run's folder is locked when it is made, once its inputs are known to be good.
    """
    if resume or lock.path.exists():
        lock.take()
    return _to_resume(out, steps, console) if resume else None


def _to_resume(out: Path, steps: int, console: Console) -> Path:
    """Return the last whole checkpoint of a run; name damaged ones after it.

    Raises ConfigError where there is none, or where it is past `steps` already.
    """
    found, wrong = last_whole(out)
    again = f"Start again with --config {out / 'config.yaml'} in place of --resume"
    if found is None:
        trained = (out / "metrics.jsonl").exists()
        why = "the run saved none" if trained else "the run was stopped before a step was trained"
        why = "; ".join(wrong) or why
        raise ConfigError(
            f"output_dir is {str(out)!r}; it holds no checkpoint to resume: {why}. {again}"
        )
    if step_of(found) > steps:
        raise ConfigError(
            f"steps is {steps}; the run has taken {step_of(found)} already ({found}): ask for more"
        )
    for line in wrong:
        told = f"{line}: going on from {found.name}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    return found


class _Log(TrainerCallback):
    """Write the log and the progress display after every step."""

    def __init__(self, run: Recorder, progress: Progress):
        self.run, self.progress = run, progress
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say the time, once, after the first round of a model that was not timed before.

        Raises FileNotFoundError where the run folder is gone: saving would make a new one.
        """
        if self.run.enabled:
            (self.run.out / "config.yaml").stat()
        config = self.run.config
        done, left = state.global_step - self.first, config.steps - state.global_step
        if config.model.path == "builtin" or done != _round(config) or not left:
            return
        minutes = (time.perf_counter() - self.began) / done * left / 60
        self.progress.say(f"after {done} of {_steps(config.steps)}: about {minutes:.1f} min left")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.run.checkpoint = self.run.out / f"checkpoint-{state.global_step}"

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        row = {"step": state.global_step, "seconds": self.run.seconds(), **logs}
        self.run.append("metrics.jsonl", row)
        self.progress.step(row)
        for trouble in silent_troubles(row):
            self.progress.warn(f"step {row['step']}: {trouble}")


def silent_troubles(row: dict[str, Any]) -> list[str]:
    """Find troubles that a healthy-looking loss hides."""
    found = []
    for direction in DIRECTIONS:
        idle, groups = (row.get(f"{direction}/{k}") for k in ("degenerate_groups", "groups"))
        if groups and idle == groups:
            found.append(
                f"all {groups:.0f} {direction} groups have equal rewards and teach nothing"
            )
        invalid, samples = (row.get(f"{direction}/{k}", 0) for k in ("invalid", "samples"))
        if invalid and invalid > samples / 2:
            found.append(f"{invalid:.0f} of {samples:.0f} captions are empty or never stop")
    if row.get("grad_norm") == 0:
        found.append("the gradient is exactly 0")
    return found
