"""The built-in model from nothing: the image tokenizer, then both directions and questions."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import tqdm
from rich.console import Console
from torch import Tensor

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
from viceversa.scenes.evaluate import evaluate_scenes
from viceversa.scenes.examples import picture
from viceversa.scenes.language import Question, caption, questions
from viceversa.scenes.spec import KINDS, Spec, draw_spec
from viceversa.types import Completion, PromptBatch

#: The losses, in the output folder and beside the finished weights.
LOG = "pretrain.jsonl"
LOG_EVERY = 10


@dataclass
class PretrainConfig:
    """The recipe of the shipped model; LOG.md has the run that set each number."""

    output_dir: str = "runs/pretrain"
    seed: int = 0
    codec: str = ""
    """A model folder whose image tokenizer is taken, or `builtin`; empty: one is trained."""
    codec_steps: int = 1500
    codec_batch_size: int = 64
    codec_learning_rate: float = 2e-3
    steps: int = 2700
    drawn_per_step: int = 16
    """Pictures to draw in a step."""
    drawn_weights: tuple[float, ...] = (1, 2, 3, 4, 2.5, 6, 3)
    """Of the kinds (scenes.spec.KINDS) among the pictures to draw. As in real unified models, the
    two directions learn from different data, so that each knows skills that the other lacks:
    colours and attribution are drawn often and read rarely, positions the other way round."""
    read_per_step: int = 64
    """Pictures to caption or ask about in a step."""
    read_weights: tuple[float, ...] = (2, 3, 0.4, 0.3, 5, 0.5, 5)
    question_share: float = 0.3
    """Share of the pictures to read that come with a question, not the caption instruction."""
    blank_share: float = 0.1
    """Share of the prompts that are blanked, so that guidance has an unconditional model."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    checkpoint_every: int = 500
    bf16: bool = False
    device: str = "cpu"


def draw_batch(config: PretrainConfig, step: int) -> list[Spec]:
    """The specs of one step; a function of the seed and the step alone, so that a run resumes."""
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
    """Any question that fits; "yes" as often as all the kinds of "no"."""
    found = questions(spec, rng)
    negatives = sum(q.answer == "no" for q in found)
    return rng.choice([*found, *found[:1] * (negatives - 1)])


def _pictures(specs: list[Spec]) -> Tensor:
    return torch.stack([picture(s) for s in specs])


def pretrain(config: PretrainConfig, console: Console) -> Path:
    """Build, train, evaluate and save; resumes from `output_dir` where a checkpoint is found.

    Returns the folder of the finished model. Raises FloatingPointError on a non-finite loss, and
    ConfigError where `output_dir` holds the checkpoints of another recipe.
    """
    out = check_folder(config.output_dir, "--output")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    processor = tiny.build_processor()
    model = tiny.build_model(tiny.build_config(processor))
    model.to(torch.device(config.device))  # type: ignore[arg-type]
    adapter = JanusAdapter(model, processor)
    if config.codec:
        _take_codec(adapter, config.codec)
    else:
        _train_codec(adapter, config, out, console)
    _train_model(adapter, config, out, console)
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
    """One line a task: the mean, then every kind."""
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
    for name in ("steps", "codec_steps", "drawn_per_step", "read_per_step"):
        check_number(_option(name), getattr(config, name), 1, INF)
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


def _train_codec(
    adapter: JanusAdapter, config: PretrainConfig, out: Path, console: Console
) -> None:
    codec = adapter.model.model.vqmodel
    training = CodecTraining(codec, config.codec_steps, config.codec_batch_size, config.seed)
    stage = Stage("tokenizer", codec, config, config.codec_steps, config.codec_learning_rate, 0.0)
    codec.train()
    for step in stage.run(out / "codec.pt", console, extra=training.used):
        stage.update(training.loss(step), step)
    codec.eval()


def _train_model(
    adapter: JanusAdapter, config: PretrainConfig, out: Path, console: Console
) -> None:
    adapter.model.model.vqmodel.requires_grad_(False)
    adapter.model.train()
    stage = Stage(
        "model", adapter.model, config, config.steps, config.learning_rate, config.weight_decay
    )
    for step in stage.run(out / "checkpoint.pt", console):
        rows = batch_rows(adapter, config, step)
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
            drawn, blanked, read = policy_logprobs(adapter, rows)
        image = -(drawn.sum() + blanked.sum()) / (drawn.numel() + blanked.numel())
        text = -read.sum() / rows[2][1].completion_mask.sum()
        stage.update(image + text, step, {"image": image, "text": text})
        if (step + 1) % config.checkpoint_every == 0:
            few = EvalConfig(specs_per_kind=40, held_out_per_kind=20, split="tune")
            figures = evaluate_scenes(adapter, few)
            console.print(f"step {step + 1}, on tuning specs\n{summary(figures)}", highlight=False)


class Stage:
    """One optimisation from its first step to its last: schedule, checkpoints, progress."""

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        config: PretrainConfig,
        steps: int,
        learning_rate: float,
        weight_decay: float,
    ):
        self.name, self.module, self.config, self.steps = name, module, config, steps
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, learning_rate, total_steps=steps, pct_start=0.04, cycle_momentum=False
        )
        self.losses: dict[str, float] = {}

    def run(self, path: Path, console: Console, extra: Tensor | None = None) -> Iterator[int]:
        """Yield every step that is still to do, saving to `path` now and then.

        `extra` is state of the caller's, saved and restored in place.
        """
        start = self._load(path, extra)
        log = path.with_name(LOG)
        rows, _ = read_rows(log)  # of this stage, what comes after the checkpoint comes again
        rows = [row for row in rows if row["stage"] != self.name or row["step"] <= start]
        if start:
            console.print(f"{self.name}: resumed at step {start} from {path}", highlight=False)
        steps = tqdm(
            range(start, self.steps),
            desc=self.name,
            initial=start,
            total=self.steps,
            file=console.file,
            mininterval=0.5 if console.is_terminal else 60,
            main_process_only=False,
        )
        logged, logged_at = start, time.time()
        for step in steps:
            yield step
            steps.set_postfix(self.losses, refresh=False)
            done = step + 1
            if done % LOG_EVERY == 0 or done == self.steps:
                seconds = (time.time() - logged_at) / (done - logged)
                logged, logged_at = done, time.time()
                rows.append(self._row(done, seconds))
                write_whole(log, "".join(json.dumps(row) + "\n" for row in rows))
            if done % self.config.checkpoint_every == 0 or done == self.steps:
                self._save(path, done, extra)

    def update(self, loss: Tensor, step: int, parts: dict[str, Tensor] | None = None) -> None:
        """One optimizer step on `loss`, which may be the sum of `parts`.

        Raises FloatingPointError, and changes nothing, where loss or gradient is nan or infinite.
        """
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            found = f"loss is {loss.item()}, gradient norm {norm.item()}"
            raise FloatingPointError(f"{self.name}: {found} at step {step}")
        self.optimizer.step()
        self.schedule.step()
        self.losses = {"loss": loss.item(), **{k: v.item() for k, v in (parts or {}).items()}}

    def _row(self, step: int, seconds: float) -> dict[str, Any]:
        """Log losses in nats a token (the tokenizer's is no likelihood), and seconds a step."""
        losses = {name: round(value, 5) for name, value in self.losses.items()}
        return {"stage": self.name, "step": step, **losses, "seconds": round(seconds, 4)}

    def _recipe(self) -> dict[str, Any]:
        """Return the settings that a checkpoint must agree on to be gone on with."""
        recipe = asdict(self.config)
        for name in ("output_dir", "device", "checkpoint_every"):
            recipe.pop(name)
        return recipe

    def _save(self, path: Path, step: int, extra: Tensor | None) -> None:
        state = {
            "recipe": self._recipe(),
            "step": step,
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "extra": extra,
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(path, content.getvalue())

    def _load(self, path: Path, extra: Tensor | None) -> int:
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        for name, value in self._recipe().items():
            if state["recipe"][name] != value:
                raise ConfigError(
                    f"{path} is of a recipe with {name}={state['recipe'][name]}, not {value}; "
                    "choose another --output, or delete it"
                )
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if extra is not None:
            extra.copy_(state["extra"])
        return int(state["step"])
