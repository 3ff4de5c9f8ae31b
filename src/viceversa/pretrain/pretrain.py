"""The built-in model from nothing: the image tokenizer, then both directions and questions."""

from __future__ import annotations

import io
import json
import math
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import tqdm
from rich.console import Console
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from viceversa.config import (
    INF,
    ConfigError,
    EvalConfig,
    ModelConfig,
    check_folder,
    check_number,
)
from viceversa.files import read_rows, write_whole
from viceversa.inference.logprobs import policy_logprobs
from viceversa.models import load_adapter
from viceversa.models.janus import JanusAdapter
from viceversa.pretrain import tiny
from viceversa.pretrain.codec import CodecTraining
from viceversa.pretrain.recipe import PretrainConfig
from viceversa.scenes.evaluate import evaluate_scenes
from viceversa.scenes.examples import picture
from viceversa.scenes.language import Question, caption, questions
from viceversa.scenes.spec import KINDS, Spec, draw_spec
from viceversa.types import Completion, PromptBatch

#: The losses, in the output folder and beside the finished weights.
LOG = "pretrain.jsonl"
LOG_EVERY = 10


def draw_batch(config: PretrainConfig, step: int) -> list[Spec]:
    """Draw the specs of one step from its seed and number alone, so that a run resumes."""
    rng = random.Random(f"{config.seed}/pretrain/{step}")
    kinds = rng.choices(KINDS, config.drawn_weights, k=config.drawn_per_step)
    kinds += rng.choices(KINDS, config.read_weights, k=config.read_per_step)
    return [draw_spec(rng, kind, "train") for kind in kinds]


def batch_rows(
    adapter: JanusAdapter, config: PretrainConfig, step: int
) -> list[tuple[PromptBatch, Completion]]:
    """Drawing rows, blanked drawing rows, caption and question rows."""
    rng = random.Random(f"{config.seed}/rows/{step}")
    specs = draw_batch(config, step)
    drawn, read = specs[: config.drawn_per_step], specs[config.drawn_per_step :]
    with torch.no_grad():
        images = adapter.encode_images(_pictures(drawn).to(adapter.device))
    prompts = adapter.prompts("t2i", [caption(s) for s in drawn])
    written = adapter.image_completion(images)
    blank = max(1, round(config.blank_share * len(drawn)))
    asked = [_draw_question(s, rng) if rng.random() < config.question_share else None for s in read]
    instructions = [q.text if q else adapter.default_instruction for q in asked]
    answers = [q.answer if q else caption(s) for q, s in zip(asked, read, strict=True)]
    return [
        (prompts.select(slice(blank, None)), written.select(slice(blank, None))),
        (adapter.blank_prompts(prompts.select(slice(blank))), written.select(slice(blank))),
        (adapter.prompts("i2t", instructions, _pictures(read)), adapter.text_completion(answers)),
    ]


def _draw_question(spec: Spec, rng: random.Random) -> Question:
    """Draw any question that fits; "yes" as often as all the kinds of "no"."""
    found = questions(spec, rng)
    negatives = sum(q.answer == "no" for q in found)
    return rng.choice([*found, *found[:1] * (negatives - 1)])


def _pictures(specs: list[Spec]) -> Tensor:
    return torch.stack([picture(s) for s in specs])


def pretrain(config: PretrainConfig, console: Console) -> Path:
    """Build, train, evaluate and save; resumes from `output` where a checkpoint is found.

    Returns the folder of the finished model. Raises FloatingPointError on a non-finite loss, and
    ConfigError for what `check_recipe` refuses and where `output` holds the checkpoints of another
    recipe.
    """
    check_recipe(config)
    out = check_folder(config.output, "--output")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    processor = tiny.build_processor()
    model = tiny.build_model(tiny.build_config(processor))
    model.to(torch.device(config.device))  # type: ignore[arg-type]
    adapter = JanusAdapter(model, processor)
    if config.codec:
        _take_codec(adapter, config.codec)
    else:
        _train_codec(adapter, config, console)
    _train_model(adapter, config, console)
    folder = out / "model"
    model.eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shutil.copyfile(out / LOG, folder / LOG)
    figures = evaluate_scenes(adapter, EvalConfig(specs_per_kind=300, split="test"))
    record = {"config": asdict(config), "figures": figures}
    write_whole(out / "pretrain.json", json.dumps(record, indent=1))
    console.print(summary(figures), highlight=False)
    return folder


def summary(figures: dict[str, Any]) -> str:
    """Return one line a task: the mean, then every kind."""
    lines = []
    for task in ("t2i", "i2t", "questions"):
        kinds = ", ".join(f"{k} {v['accuracy']:.2f}" for k, v in figures[task]["kinds"].items())
        lines.append(f"{task:9s} {figures[task]['accuracy']:.3f}  {kinds}")
    return "\n".join(lines)


def _take_codec(adapter: JanusAdapter, folder: str) -> None:
    """Copy the image tokenizer of a finished model of this geometry."""
    given: Any = load_adapter(ModelConfig(path=folder)).image_tokenizer
    try:
        adapter.model.model.vqmodel.load_state_dict(given.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"--codec is {folder!r}, whose image tokenizer is of another geometry; take `builtin` "
            "or a model that `viceversa pretrain` made"
        ) from error
    adapter.model.model.vqmodel.eval()


def check_recipe(config: PretrainConfig) -> None:
    """Raise ConfigError for a number out of its bounds, or weights that are not one a kind."""
    # of the pictures to draw, at least one has a prompt and one a blank prompt
    least = {"steps": 1, "codec_steps": 1, "drawn_per_step": 2, "read_per_step": 1}
    for name, low in least.items():
        check_number(_option(name), getattr(config, name), low, INF)
    check_number("--seed", config.seed, 0, 2**32 - 1)
    if config.device != "cpu" and not (config.device == "cuda" and torch.cuda.is_available()):
        found = f"--device is {config.device!r}"
        raise ConfigError(f"{found}; choose cpu, or cuda where there is a GPU")
    for name in ("drawn_weights", "read_weights"):
        weights = getattr(config, name)
        if len(weights) != len(KINDS) or min(weights) < 0 or not 0 < sum(weights) < INF:
            raise ConfigError(
                f"{_option(name)} is {' '.join(map(str, weights))}; it takes {len(KINDS)} weights "
                f"of 0 or more, of which one is above 0: for {', '.join(KINDS)}"
            )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _train_codec(adapter: JanusAdapter, config: PretrainConfig, console: Console) -> None:
    codec, steps = adapter.model.model.vqmodel.train(), config.codec_steps
    training = CodecTraining(codec, steps, config.codec_batch_size, config.seed)
    schedule = schedule_of(training, steps, config.codec_learning_rate, 0.0)
    optimise("tokenizer", training, schedule, training.losses, config, console)
    codec.eval()


def _train_model(adapter: JanusAdapter, config: PretrainConfig, console: Console) -> None:
    adapter.model.model.vqmodel.requires_grad_(False)
    model = adapter.model.train()

    def losses(step: int) -> dict[str, Tensor]:
        rows = batch_rows(adapter, config, step)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
            drawn, blanked, read = policy_logprobs(adapter, rows)
        image = -(drawn.sum() + blanked.sum()) / (drawn.numel() + blanked.numel())
        text = -read.sum() / rows[2][1].completion_mask.sum()
        return {"loss": image + text, "image": image, "text": text}

    schedule = schedule_of(model, config.steps, config.learning_rate, config.weight_decay)
    optimise("model", model, schedule, losses, config, console)


def schedule_of(module: Module, steps: int, rate: float, decay: float) -> OneCycleLR:
    """Return the learning rates of a stage, with AdamW on what is trained of a module."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = AdamW(trained, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    return OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.04, cycle_momentum=False)


def optimise(
    stage: str,
    module: Module,
    schedule: OneCycleLR,
    losses: Callable[[int], dict[str, Tensor]],
    config: PretrainConfig,
    console: Console,
) -> None:
    """Train a module to the end of its schedule, from its last checkpoint where there is one.

    `losses` takes the number of a step, from 0, and returns what is logged: `loss`, which is
    minimised, and its parts if any, in nats a token (the tokenizer's is no likelihood). Raises
    FloatingPointError, before any weight changes, where loss or gradient is nan or infinite.
    """
    steps = schedule.total_steps
    path, log = (Path(config.output) / name for name in (f"{stage}.pt", LOG))
    parts = {"module": module, "optimizer": schedule.optimizer, "schedule": schedule}
    if path.exists():
        _load(path, config, parts)
        found = f"{stage}: resumed at step {schedule.last_epoch} from {path}"
        console.print(found, highlight=False, soft_wrap=True)
    start = logged = schedule.last_epoch
    rows, _ = read_rows(log)  # of this stage, what comes after the checkpoint comes again
    rows = [row for row in rows if row["stage"] != stage or row["step"] <= start]
    logged_at = time.time()
    bar = tqdm(
        range(start + 1, steps + 1),
        desc=stage,
        initial=start,
        total=steps,
        file=console.file,
        mininterval=0.5 if console.is_terminal else 60,
        main_process_only=False,
    )
    for done in bar:
        now = update(schedule, losses(done - 1), stage, done)
        bar.set_postfix(now, refresh=False)
        if done % LOG_EVERY == 0 or done == steps:
            seconds = (time.time() - logged_at) / (done - logged)
            logged, logged_at = done, time.time()
            rows.append({"stage": stage, "step": done, **now, "seconds": round(seconds, 4)})
            write_whole(log, "".join(json.dumps(row) + "\n" for row in rows))
        if done % config.checkpoint_every == 0 or done == steps:
            _save(path, config, parts)


def update(
    schedule: OneCycleLR, losses: dict[str, Tensor], stage: str, step: int
) -> dict[str, float]:
    """Take one optimizer step, the gradient clipped to norm 1, and return the losses."""
    optimizer = schedule.optimizer
    optimizer.zero_grad()
    losses["loss"].backward()
    norm = clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0).item()
    found = {name: round(value.item(), 5) for name, value in losses.items()}
    if not (math.isfinite(found["loss"]) and math.isfinite(norm)):
        told = f"{stage}: loss is {found['loss']}, gradient norm {norm} at step {step}"
        raise FloatingPointError(told)
    optimizer.step()
    schedule.step()
    return found


def _recipe(config: PretrainConfig) -> dict[str, Any]:
    """Return the settings that a checkpoint must agree on to be gone on with."""
    free = ("output", "device", "checkpoint_every")
    return {name: value for name, value in asdict(config).items() if name not in free}


def _save(path: Path, config: PretrainConfig, parts: dict[str, Any]) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    content = io.BytesIO()
    torch.save({"recipe": _recipe(config), **state}, content)
    write_whole(path, content.getvalue())


def _load(path: Path, config: PretrainConfig, parts: dict[str, Any]) -> None:
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, value in _recipe(config).items():
        if state["recipe"][name] != value:
            raise ConfigError(
                f"{path} is of a recipe with {name}={state['recipe'][name]}, not {value}; "
                "choose another --output, or delete it"
            )
    for name, part in parts.items():
        part.load_state_dict(state[name])
