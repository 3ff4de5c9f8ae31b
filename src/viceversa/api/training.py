"""Train a model from Python, on inputs and rewards that need no name."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from transformers import TrainerCallback

from viceversa.api.model import Model
from viceversa.config import (
    Config,
    ConfigError,
    LoraConfig,
    load_config,
    load_object,
    to_dict,
    with_options,
)
from viceversa.data.given import held, is_named, name_of
from viceversa.files import read_rows
from viceversa.models import load_adapter
from viceversa.plan.defaults import resolve
from viceversa.plan.gpus import own_gpu
from viceversa.rl.rewards import OF_THE_STEP, REWARDS
from viceversa.training.checkpoint import checkpoints
from viceversa.training.run import Given
from viceversa.training.run import train as run_training
from viceversa.types import Direction, Monitor, Reward

Rewards = str | Reward | Mapping[str | Reward, float]
Schedule = Literal["joint", "alternate", "t2i", "i2t"]


@dataclass(frozen=True)
class Run:
    """A finished training run: its folder, figures and metrics."""

    folder: Path
    checkpoint: Path | None
    """The last one, in Hugging Face layout; None where none was saved. Of a run that a collapse
    stopped it is the best one."""
    report: Path
    """The page, `report.html`."""
    metrics: list[dict[str, Any]] = field(repr=False)
    """One dict a step; docs/metrics.md says what each entry is."""
    figures: dict[str, Any] = field(repr=False)
    """Measurements of the model before (`base`) and after (`tuned`); empty if there are none."""
    best: Path | None = None
    """The checkpoint that was best by the base's judgement, where the run was watched."""


def train(
    model: Model | str | Path | None = None,
    *,
    prompts: Any = None,
    images: Any = None,
    reward: Rewards | None = None,
    schedule: Schedule | None = None,
    steps: int | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    config: Config | str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    monitor: Monitor | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    console: Console | None = None,
) -> Run:
    """Train `model`, in place, on its own rewards or yours, and report on it.

    `model` is a loaded one, or a name as `vv.load` takes it; None is the config's, or `builtin`.
    `prompts` and `images` are names as the command takes them (a file, a folder, `hf://…`,
    `scenes`), or lists, PIL pictures or a `datasets.Dataset`; an `IterableDataset` is read as it
    comes, as with `data.streaming`. `reward` is `dual`, another built-in
    name, an import path, a function `Rollout -> [P, G]`, or a dict of several with their weights.
    `config` is a Config, a YAML file or a recipe's name; what it leaves open is decided as
    `viceversa train` does. `options` sets any other option by its name: `{"loss.name": "simpo"}`.
    `resume` goes on with the run in `output` from its last checkpoint. `monitor` tells right
    outputs from wrong ones, for the metrics alone.

    Raises ConfigError before any work for what cannot be used, and as training does later:
    FloatingPointError, MemoryError, StorageError, each in one line.
    """
    asked = _Asked(prompts, images, reward)
    tree = {
        "schedule": schedule,
        "steps": steps,
        "seed": seed,
        "output_dir": output and str(output),
    }
    tree = {**{k: v for k, v in tree.items() if v is not None}, **asked.tree, **(options or {})}
    if model is not None and not (resume and _left_in(model, tree)):
        tree |= _of_model(model)
    settings, said = _resumed(tree) if resume else _settings(config, tree)
    console = console or Console(markup=False)
    if said and os.environ.get("RANK", "0") == "0":  # one of several processes speaks
        console.print(said, highlight=False, soft_wrap=True)
    adapter = None
    if isinstance(model, Model):
        if resume:  # its weights may have moved since the run began
            model.adapter = load_adapter(settings.model, settings.lora, settings.seed)
        adapter = model.adapter
    given = Given(adapter, asked.inputs, asked.rewards, monitor, tuple(callbacks))
    run = _left_by(run_training(settings, console, resume, given))
    if isinstance(model, Model) and run.checkpoint is not None:
        model.config = replace(model.config, path=str(run.checkpoint))  # where it now comes from
        model.lora = LoraConfig()
    return run


class _Asked:
    """The caller's arguments: options for those that have a name, and the things themselves."""

    def __init__(self, prompts: Any, images: Any, reward: Rewards | None):
        self.tree: dict[str, Any] = {}
        self.inputs: dict[Direction, Any] = {}
        self.rewards: dict[str, Reward] = {}
        if prompts is not None:
            self.tree["data.prompts"] = self._named("t2i", prompts)
        if images is not None:
            self.tree["data.images"] = self._named("i2t", held(images))
        if reward is not None:
            weights = reward if isinstance(reward, Mapping) else {reward: 1.0}
            if not weights:
                raise ConfigError("reward is {}; name one reward at least")
            terms = [{"name": self._reward(r), "weight": float(w)} for r, w in weights.items()]
            first, *more = terms
            self.tree |= {f"reward.{name}": value for name, value in first.items()}
            if more:
                self.tree["reward.add"] = more

    def _named(self, direction: Direction, inputs: Any) -> str:
        if is_named(inputs):
            return str(inputs)
        self.inputs[direction] = inputs
        return name_of(inputs)

    def _reward(self, reward: str | Reward) -> str:
        if isinstance(reward, str):
            return reward
        name = path = import_path(reward)
        taken, number = {*self.rewards, *OF_THE_STEP, *REWARDS}, 1
        while name in taken:  # of another function, such as a second lambda, or built in
            number += 1
            name = f"{path}-{number}"
        self.rewards[name] = reward
        return name


def _left_in(model: Model | str | Path, tree: Mapping[str, Any]) -> bool:
    """Tell whether a model comes from the run folder: then it is the one that the run trained."""
    out = Path(tree.get("output_dir", Config().output_dir)).resolve()
    return isinstance(model, Model) and Path(model.config.path).resolve().is_relative_to(out)


def _of_model(model: Model | str | Path) -> dict[str, Any]:
    if not isinstance(model, Model):
        return {"model.path": str(model)}
    kind, lora = model.config, model.lora
    tree: dict[str, Any] = {"model.path": kind.path, "model.dtype": kind.dtype}
    tree["model.image_size"] = kind.image_size
    return {**tree, "lora.rank": lora.rank, "lora.alpha": lora.alpha}


def import_path(function: Any) -> str:
    """Return `module:name` where importing that gives `function`, so that a config can name it.

    Its bare name otherwise: of a script, a notebook or an inner function.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = getattr(function, "__module__", "__main__")
    if module != "__main__" and "<" not in name:
        with suppress(ConfigError):
            if load_object("reward.name", f"{module}:{name}") is function:
                return f"{module}:{name}"
    return name.rpartition(".")[2].strip("<>")


def _settings(config: Config | str | Path | None, tree: Mapping[str, Any]) -> tuple[Config, str]:
    """Return the config to train with, and one line on what was decided, or nothing."""
    if isinstance(config, Config):
        return with_options(config, tree.items()), ""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    return resolve(config, tree.items(), bool(tree.get("lora.rank")), own_gpu(), processes)


def _resumed(tree: Mapping[str, Any]) -> tuple[Config, str]:
    """Return the options of the run in `output_dir`, to go on with, and nothing to say.

    Raises ConfigError where the caller asks for other ones: only `steps` may change.
    """
    out = Path(tree.get("output_dir", Config().output_dir))
    before = load_config(out / "config.yaml", of_run=True)
    settings = with_options(before, tree.items())
    for name in tree.keys() - {"steps", "output_dir"}:
        path = name.split(".")
        was, now = (functools.reduce(_entry, path, to_dict(c)) for c in (before, settings))
        if was != now:
            raise ConfigError(
                f"{name} is {now!r}, and the run in {str(out)!r} has {was!r}: resume goes on "
                "with the run's own options; only steps may change"
            )
    settings.output_dir = str(out)  # it may have been moved
    return settings, ""


def _entry(section: Any, name: str) -> Any:
    return section.get(name) if isinstance(section, dict) else None


def _left_by(folder: Path) -> Run:
    saved = list(checkpoints(folder).values())
    metrics, _ = read_rows(folder / "metrics.jsonl")
    figures, env = (_read(folder / name) for name in ("eval.json", "env.json"))
    best = folder / env["best_checkpoint"] if env.get("best_checkpoint") else None
    last = saved[-1] if saved else None
    if env.get("stopped_on_collapse"):
        last = best
    return Run(folder, last, folder / "report.html", metrics, figures, best)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
