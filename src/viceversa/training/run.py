"""One training run, start to finish: folder, evaluation before and after, progress, report."""

from __future__ import annotations

import functools
import io
import json
import math
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from viceversa.config import (
    Config,
    ConfigError,
    check_folder,
    load_config,
    save_config,
)
from viceversa.data.cache import DiskCache
from viceversa.data.image_ids import ImageIds
from viceversa.data.pictures import to_numpy
from viceversa.data.sources import WORLDS, Source, Stream, load_sources
from viceversa.files import StorageError, read_rows, storage_trouble, write_whole
from viceversa.inference.logprobs import Policy
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.report.page import write_report
from viceversa.rl.algorithms import algorithm_of
from viceversa.rl.rewards import OF_THE_STEP, rewards_of
from viceversa.training.arguments import first_line, training_arguments
from viceversa.training.checkpoint import SEAL, last_whole, step_of
from viceversa.training.interrupt import Interrupt, StopTogether
from viceversa.training.lock import Lock
from viceversa.training.parallel import first_decides
from viceversa.training.progress import Progress
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import DIRECTIONS, Direction, Monitor, Reward, Rollout, ScoredRollout

#: Groups of each direction that a run keeps for its report.
RECORDED_GROUPS = 12
GALLERY_PER_KIND = 3
SAMPLES = "samples/samples.jsonl"
#: Of each kind of trouble with inputs; skipped.jsonl has them all.
NAMES_SHOWN = 5
UNVERIFIED = (
    "the verifier of the built-in world cannot read this model's pictures: nothing is verified or "
    "evaluated, and training goes on without"
)


@dataclass(frozen=True)
class Given:
    """What a caller in Python hands over instead of naming it in the config."""

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
    checkpoint = first_decides(lambda: _claim(out, config.steps, console, resume, lock))
    algorithm_of(config.loss)
    named = {**dict.fromkeys(OF_THE_STEP, _unrated), **given.rewards}
    rewards = rewards_of(config.reward, named)
    adapter = given.adapter or load_adapter(config.model, config.lora, config.seed)
    limits = adapter.text_limits(config.sampling.instruction)
    with args.main_process_first(local=True, desc="reading the inputs"):  # verdicts are cached
        told = console if args.process_index == 0 else None
        sources = load_sources(
            config, adapter.image_size, limits, told, adapter.draws_pixels, given.inputs
        )
    check_references(rewards, config, sources)
    stream = Stream(config, sources, args.gradient_accumulation_steps * args.world_size)
    run = Recorder(out, config, args.process_index == 0, checkpoint)
    if config.data.images not in WORLDS and "i2t" in sources:  # theirs are tiny: no need
        cache = DiskCache(Path(config.data.cache_dir) / "image_ids.sqlite")
        run.image_ids = ImageIds(adapter, cache)
    world = next((s.world for s in sources.values() if s.world), None)
    trainer = _trainer(adapter, config, stream, args, run, world, given)
    with _saying_what_is_left(run):
        first_decides(lambda: run.start(sources, console, lock))
    run.world = world if adapter.draws_pixels else None
    measured = run.world and config.eval.specs_per_kind > 0
    ignored: tuple[type[Exception], ...] = ()
    with (
        _saying_what_is_left(run),
        Progress(console, config, run.enabled) as progress,
        Interrupt() as interrupt,
    ):
        try:
            if not run.world and WORLDS.keys() & set(config.inputs().values()):
                progress.say(UNVERIFIED)
            progress.say(_estimate(trainer, config, adapter, run.world if measured else None))
            if measured and "base" not in run.eval:
                progress.say("evaluating the base model")
                run.evaluate("base", adapter)
            trainer.add_callback(_Watch(run, progress))
            trainer.add_callback(StopTogether(interrupt, config.loss.updates_per_rollout))
            with interrupt.deferred(progress.say):
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            if measured:
                progress.say("evaluating the tuned model")
                run.evaluate("tuned", adapter)
        except Exception as error:
            ignored = (OSError,)  # what ended the run is told, and not what came of it
            run.env["ended_by"] = str(error)
            raise
        finally:
            with suppress(*ignored):
                run.finish(console, interrupted=bool(interrupt.asked))
    return out


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
    except (FloatingPointError, StorageError) as error:
        raise type(error)(f"{error}; {run.left()}") from error
    except (OSError, SafetensorError) as error:
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
    return time.perf_counter() - began


def _estimate(trainer: DualRewardTrainer, config: Config, adapter: Adapter, world: Any) -> str:
    """What is about to happen, and, for the built-in model, how long it will take.

    A step run for the purpose would be dear for a large model, and untried at its memory's limit:
    its time is told after its first steps (_Watch).
    """
    if config.model.path == "builtin":
        probe(trainer)  # the first pass pays for warm-up
        training = f"about {probe(trainer) * config.steps / 60:.1f} min of training"
    else:
        training = f"time after {_steps(_round(config))} of training"
    trained = sum(p.numel() for p in adapter.model.parameters() if p.requires_grad)
    text = (
        f"{config.model.path}: {trained / 1e6:.2f} M parameters to train, {config.steps} steps of "
        f"{config.loss.name} on the {config.reward.name} reward, schedule {config.schedule}; "
        f"{training}"
    )
    if not adapter.draws_pixels and config.schedule != "i2t":
        text += ". This model has no decoder from image ids to pixels: its pictures cannot be shown"
    if world:
        began = time.perf_counter()
        world.evaluate(adapter, replace(config.eval, specs_per_kind=10, held_out_per_kind=2))
        share = (time.perf_counter() - began) * config.eval.specs_per_kind / 10
        text += f"; about {2 * share / 60:.1f} min of evaluation before and after"
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
    """The last whole checkpoint of a run; damaged ones after it are named.

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


class Recorder:
    """Writes the run folder. Other processes than the first write nothing."""

    def __init__(
        self, out: Path, config: Config, enabled: bool = True, checkpoint: Path | None = None
    ):
        self.out, self.config, self.enabled = out, config, enabled
        self.began = time.time()
        self.eval: dict[str, Any] = {}
        self.env: dict[str, Any] = {}
        self.every = max(1, config.steps // RECORDED_GROUPS)
        self._recorded: dict[Direction, int] = {}
        self._seconds_before = 0.0
        self.sources: dict[Direction, Source] = {}
        self.image_ids: ImageIds | None = None
        self.checkpoint = checkpoint
        """The last good one, which this run wrote or goes on from."""
        self.world: Any = None

    def start(self, sources: dict[Direction, Source], console: Console, lock: Lock) -> None:
        """Make the folder, or put it back to where it was when the checkpoint was saved."""
        options = self.out / "config.yaml"
        if self.checkpoint is None:
            self._make_folder(lock)
            save_config(self.config, options)
        else:
            self._rewind(step_of(self.checkpoint), console)
            self._read_figures(console)
            if self.config.steps > load_config(options, of_run=True).steps:
                save_config(self.config, options)  # fewer are this call's alone
        self.sources = sources
        self.env = {**environment(), "seed": self.config.seed}
        self._note_inputs(console)
        self._write("env.json", self.env)

    def _make_folder(self, lock: Lock) -> None:
        """A run that is there already is never overwritten: it is moved aside, unless it lives."""
        if lock.path.exists():
            lock.take()
        if (self.out / "config.yaml").exists():
            self.out.rename(self.out.with_name(f"{self.out.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
        (self.out / "images").mkdir(parents=True, exist_ok=True)
        lock.take()

    def _note_inputs(self, console: Console) -> None:
        """Counts by kind for env.json and the console, every one in skipped.jsonl."""
        counts = {d: count_inputs(source) for d, source in self.sources.items()}
        told = input_lines(self.env.get("inputs", {}))  # a streaming set's grow
        self.env["inputs"] = counts
        for line in input_lines(counts):
            if line not in told:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        rows = [
            json.dumps({"direction": direction, **asdict(note)}) + "\n"
            for direction, source in self.sources.items()
            for note in source.notes
        ]
        write_whole(self.out / "skipped.jsonl", "".join(rows))

    def _rewind(self, step: int, console: Console) -> None:
        """Drop the lines after the checkpoint, and cut ones; the clock goes on from it."""
        for name, last in (("metrics.jsonl", step), ("rollouts.jsonl", step - 1)):
            path = self.out / name
            rows, cut = read_rows(path)
            if cut:
                told = f"{path} has {cut} line{'s' * (cut != 1)} that cannot be read: left out"
                console.print(told, highlight=False, markup=False, soft_wrap=True)
            rows = [row for row in rows if _step(row) <= last]
            if path.exists():
                write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
            if name == "metrics.jsonl" and rows:
                self._seconds_before = rows[-1].get("seconds", 0.0)

    def _read_figures(self, console: Console) -> None:
        """The base model's, where they and their pictures can be read; else they are made again."""
        index, pictures = self.out / SAMPLES, list(self.out.glob("samples/base-*.png"))
        rows, cut = read_rows(index)
        try:
            found = json.loads((self.out / "eval.json").read_text(encoding="utf-8"))
            whole = not cut and len(rows) == len(pictures)
            self.eval = {name: found[name] for name in ("base", "settings")} if whole else {}
        except FileNotFoundError:
            return  # nothing is measured
        except (ValueError, TypeError, KeyError):
            self.eval = {}
        if not self.eval:
            index.unlink(missing_ok=True)
            told = f"{self.out / 'eval.json'} or {index} is damaged: the base is evaluated again"
            console.print(told, highlight=False, markup=False, soft_wrap=True)

    def seconds(self) -> float:
        """Since the run began, interruptions left out."""
        return round(self._seconds_before + time.time() - self.began, 2)

    def evaluate(self, name: str, adapter: Adapter) -> None:
        """Figures and a gallery of `base` or `tuned`, same specs and seeds."""
        if not self.enabled:
            return
        self.eval[name] = self.world.evaluate(adapter, self.config.eval)
        self.eval["settings"] = asdict(self.config.eval)
        self._write("eval.json", self.eval)
        self._gallery(name, adapter)

    def _gallery(self, name: str, adapter: Adapter) -> None:
        index = self.out / SAMPLES
        index.parent.mkdir(exist_ok=True)
        gallery = self.world.gallery(adapter, self.config.eval, GALLERY_PER_KIND)
        for i, pixels in enumerate(to_numpy(gallery.pixels)):
            write_whole(index.with_name(f"{name}-{i:03d}.png"), _png(pixels))
        rows, _ = read_rows(index)
        texts = zip(gallery.prompts, gallery.kinds, strict=True)
        rows = rows or [{"prompt": prompt, "kind": kind} for prompt, kind in texts]
        for i, (row, ok) in enumerate(zip(rows, gallery.right, strict=True)):
            row |= {name: f"{name}-{i:03d}.png", f"{name}_right": ok}
        write_whole(index, "".join(json.dumps(r) + "\n" for r in rows))

    def record_rollout(self, step: int, scored: ScoredRollout) -> None:
        """Keep the first group of this rollout, now and then, for the report."""
        direction = scored.rollout.direction
        if not self.enabled or step - self._recorded.get(direction, -self.every) < self.every:
            return
        self._recorded[direction] = step
        sampled, rewards = scored.rollout, scored.rewards[0]
        right = scored.right
        row: dict[str, Any] = {
            "step": step,
            "direction": sampled.direction,
            "example_id": sampled.examples[0].example_id,
            "group_size": sampled.group_size,
            "rewards": [round(float(r), 5) for r in rewards],
        }
        name = f"images/{step:06d}-{sampled.direction}"
        if sampled.direction == "t2i":
            row["input_text"] = sampled.examples[0].text
        else:
            pixels = sampled.examples[0].pixels
            assert pixels is not None
            row["input_image"] = self._picture(f"{name}-input.png", pixels)
        for which, k in (("best", int(rewards.argmax())), ("worst", int(rewards.argmin()))):
            entry: dict[str, Any] = {"reward": float(rewards[k])}
            entry["right"] = None if right is None else bool(right[0, k])
            if sampled.pixels is not None:
                entry["image"] = self._picture(f"{name}-{which}.png", sampled.pixels[k])
            elif sampled.direction == "t2i":
                ids = sampled.completions.completion_ids[k].tolist()
                entry["text"] = f"image ids {' '.join(map(str, ids))}"
            else:
                entry["text"] = sampled.texts[k]
            row[which] = entry
        self.append("rollouts.jsonl", row)

    def _picture(self, name: str, pixels: torch.Tensor) -> str:
        write_whole(self.out / name, _png(to_numpy(pixels.unsqueeze(0))[0]))
        return name

    def append(self, name: str, row: dict[str, Any]) -> None:
        if self.enabled:
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def finish(self, console: Console, interrupted: bool) -> None:
        if not self.enabled:
            return
        self.env |= {"seconds": self.seconds(), "interrupted": interrupted}
        if self.image_ids is not None:
            hits, misses = self.image_ids.hits, self.image_ids.misses
            self.env["image_ids"] = {"from_cache": hits, "computed": misses}
        self._note_inputs(console)
        self._write("env.json", self.env)
        page = write_report(self.out)
        if "tuned" in self.eval:
            console.print(figures_table(self.eval))
        last = self.checkpoint
        if last is not None:
            console.print(f"model  {last}", highlight=False, soft_wrap=True)
        if interrupted and last is not None:
            console.print(f"go on with: viceversa train --resume --output {self.out}")
        elif interrupted:
            console.print("no checkpoint was saved, so there is nothing to resume: start again")
        console.print(f"report {page}", highlight=False, soft_wrap=True)

    def left(self) -> str:
        """The last good checkpoint, in words."""
        if self.checkpoint is None:
            return "no checkpoint was saved"
        if not (self.checkpoint / SEAL).is_file():
            return "no checkpoint is left"
        return f"the last good checkpoint is {self.checkpoint}"

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_whole(self.out / name, json.dumps(record, indent=1))


def _step(row: dict[str, Any]) -> float:
    step = row.get("step")
    return step if isinstance(step, int) else math.inf


def _png(pixels: Any) -> bytes:
    """[H, W, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def count_inputs(source: Source) -> dict[str, Any]:
    """How many inputs are used, and how many were left out or changed, by kind, with some names."""
    kinds: dict[tuple[bool, str], list[str]] = {}
    for note in source.notes:
        kinds.setdefault((note.skipped, note.kind), []).append(note.name)
    ordered = sorted(kinds.items(), key=lambda kind: (not kind[0][0], -len(kind[1]), kind[0][1]))
    return {
        "inputs": source.used,
        "skipped": len(source.skipped),
        "kinds": [
            {"kind": kind, "skipped": skipped, "count": len(names), "names": names[:NAMES_SHOWN]}
            for (skipped, kind), names in ordered
        ],
    }


def input_lines(inputs: dict[str, Any]) -> list[str]:
    """One line a kind, for the console."""
    things = {"t2i": "prompt", "i2t": "picture"}
    lines = []
    for direction, counts in inputs.items():
        for row in counts["kinds"]:
            what = "skipped" if row["skipped"] else "changed"
            more = ", …" if row["count"] > len(row["names"]) else ""
            names = ", ".join(row["names"]) + more
            thing = things[direction] + "s" * (row["count"] != 1)
            lines.append(f"{what} {row['count']} {thing}, {row['kind']}: {names}")
    return lines


def figures_table(figures: dict[str, Any]) -> Table:
    """Base beside tuned, with 95 % intervals over inputs."""
    names = [n for n in ("base", "tuned") if n in figures]
    table = Table(title="accuracy, 95 % interval over inputs")
    table.add_column("task")
    for name in names:
        table.add_column(name, justify="right")
    titles = {"t2i": "drawing", "i2t": "captions", "questions": "questions"}
    for task, title in titles.items():
        table.add_row(title, *(_cell(figures[n][task]) for n in names), style="bold")
        for kind in figures[names[0]][task]["kinds"] if task == "t2i" else ():
            table.add_row(f"  {kind}", *(_cell(figures[n][task]["kinds"][kind]) for n in names))
        if "held_out" in figures[names[0]][task]:
            table.add_row("  held out", *(_cell(figures[n][task]["held_out"]) for n in names))
    return table


def _cell(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def environment() -> dict[str, Any]:
    """Versions, commit, machine and command of this run."""
    versions = {}
    for name in (
        "viceversa",
        "torch",
        "transformers",
        "accelerate",
        "datasets",
        "peft",
        "pillow",
        "tokenizers",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "argv": sys.argv,
    }


@functools.cache  # it does not change while this process runs
def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve().parent
    found = subprocess.run(
        [git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


class _Watch(TrainerCallback):
    """Feeds the log and the progress display after every step; moves a slow-average scorer."""

    def __init__(self, run: Recorder, progress: Progress):
        self.run, self.progress = run, progress
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began, self.first = time.perf_counter(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The time, once, after the first round of a model that was not timed before training.

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
    """What a run can suffer from while its loss looks healthy."""
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
