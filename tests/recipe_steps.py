"""Two steps of recipes, and steps on given outputs, in one process or under torchrun in two.

`python recipe_steps.py OUT RECIPE ...` writes what test_recipes.py compares. In OUT is a folder for
each recipe, with data and a tiny model of its class.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    _CHECKPOINT_PREFIX,
    CheckpointWrapper,
)
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from viceversa.config import Config, load_config
from viceversa.data.sources import load_sources
from viceversa.data.stream import Stream
from viceversa.models import load_adapter
from viceversa.rl.step import Step
from viceversa.training.arguments import training_arguments
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import Completion, Example, Rollout

#: What makes every number float32.
EXACT = ("model.dtype=float32", "train.bf16=false")
#: What keeps weights of another time, which sharding has to keep in shards.
KEPT = {
    "frozen": ["reward.scorer=frozen"],
    "average": ["reward.scorer=average", "reward.average_decay=0.5"],
    "dpo": ["loss.name=dpo", "loss.dpo_beta=1"],
    "kl": ["loss.t2i_kl=0.5", "loss.i2t_kl=0.5"],
}
#: So large that the second step's weights are far from the start; with an epsilon that keeps Adam
#: from making a whole step of a difference in the last bit. (torch loads no empty state, as SGD's.)
LARGE_STEPS = (
    "train.adam_epsilon=1",
    "train.learning_rate=0.03",
    "train.lr_scheduler_type=constant",
    "train.warmup_steps=0",
    "train.save_steps=1",
)


def overrides(folder: Path, run: str) -> list[str]:
    """Model, data, counts, caption length and output; nothing else of a recipe is changed."""
    return [
        f"model.path={folder / 'base'}",
        "model.image_size=24",
        f"data.prompts={folder / 'prompts.txt'}",
        f"data.images={folder / 'photos'}",
        f"data.cache_dir={folder / 'cache'}",
        "data.prompts_per_step=4",
        "data.images_per_step=4",
        "sampling.max_caption_tokens=6",
        "steps=2",
        f"output_dir={folder / run}",
    ]


class GivenOutputs(Step):
    """Its outputs depend on the inputs alone, not on rounding."""

    def sample(self, examples: Any, step: int) -> Rollout:
        sampled = super().sample(examples, step)
        rows = len(examples) * sampled.group_size
        image = sampled.direction == "t2i"
        size = self.adapter.image_vocab_size if image else 200
        ids = torch.cat(
            [_given(e, sampled.group_size, self.adapter.image_tokens, size) for e in examples]
        )
        if not image:
            ids = ids[:, :5]
        completions = Completion(ids, torch.ones_like(ids, dtype=torch.bool))
        if image:
            pixels = self.adapter.decode_images(ids) if self.adapter.draws_pixels else None
            sampled = replace(sampled, pixels=pixels)
        else:
            texts = tuple(self.adapter.decode_texts(completions))
            sampled = replace(sampled, texts=texts, truncated=torch.zeros(rows, dtype=torch.bool))
        drawn = torch.zeros(ids.shape)
        return replace(sampled, completions=completions, drawn_logprobs=drawn)


def _given(example: Example, group: int, length: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(example.example_id)
    return torch.randint(5, size, (group, length), generator=generator)


def build(settings: Config) -> DualRewardTrainer:
    adapter = load_adapter(settings.model, settings.lora, settings.seed)
    if settings.lora.rank:  # a new LoRA adds nothing, and half of its gradients are zero
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, p in adapter.model.named_parameters():
                if "lora_B" in name:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    args = training_arguments(settings)
    sources = load_sources(settings, adapter.image_size, adapter.text_limits(""))
    shares = args.gradient_accumulation_steps * args.world_size
    return DualRewardTrainer(adapter, settings, Stream(settings, sources, shares), args)


def two_steps(settings: Config) -> dict[str, Any]:
    """As a user takes them. What the wrapping was, and the metrics."""
    trainer = build(settings)
    trainer.train()
    model = trainer.adapter.model
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapped = [m for m in model.modules() if isinstance(m, CheckpointWrapper)]
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "world_size": trainer.args.world_size,
        "sharded": all(isinstance(p, DTensor) for p in trained),
        "wrapped_layers": len(wrapped),
        "codec": str(next(trainer.adapter.image_tokenizer.parameters()).dtype),
        "rows": [{k: v for k, v in row.items() if "seconds" not in k} for row in logged],
    }


class Gradients(TrainerCallback):
    """The gradients of the last step, whole, by parameter."""

    def __init__(self, trainer: DualRewardTrainer):
        self.trainer = trainer
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for wrapped, parameter in self.trainer.adapter.model.named_parameters():
            name = wrapped.replace(_CHECKPOINT_PREFIX, "")
            gradient: Any = parameter.grad
            if gradient is not None:
                whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
                self.found[name] = whole.detach().float().clone().contiguous()


def on_given_outputs(
    settings: Config, resume: str | None = None
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """The model's rewards by `step/direction/input`, and the last step's gradients, which are of
    rewards that are given, too."""
    trainer = build(settings)
    trainer.step.__class__ = GivenOutputs
    (dual,) = trainer.step.rewards
    found: dict[str, list[float]] = {}

    def noted(rollout: Rollout) -> Tensor:
        rewards = dual(rollout)
        assert rewards.dtype == torch.float32
        given = []
        for example, row in zip(rollout.examples, rewards, strict=True):
            found[f"{rollout.step}/{rollout.direction}/{example.example_id}"] = row.tolist()
            generator = torch.Generator().manual_seed(example.example_id)
            given.append(torch.rand(len(row), generator=generator))
        return torch.stack(given)

    trainer.step.rewards = [noted]
    trainer.args.max_grad_norm = 0.0  # clipping would hide a wrong scale
    gradients = Gradients(trainer)
    trainer.add_callback(gradients)
    trainer.train(resume_from_checkpoint=resume)
    return found, gradients.found


def forget() -> None:
    """Let the next run make an accelerator of its own in this process."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if dist.is_initialized():  # the group stays; sharding of the next run is its own matter
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    for name in [n for n in os.environ if n.startswith(("FSDP_", "ACCELERATE_"))]:
        del os.environ[name]
    gc.collect()


def compare(folder: Path, recipe: str, cell: str, rank: str) -> None:
    """Write rewards and gradients of one cell: the recipe itself, or sharded with kept weights."""
    more = {
        "exact": [*EXACT, "steps=1"],
        "as-is": ["steps=1"],
        "bf16-weights": ["steps=1", "model.dtype=bfloat16", "train.bf16=false"],
    }.get(cell) or [*EXACT, *LARGE_STEPS, *KEPT[cell]]
    run = f"{cell}-alone" if rank == "alone" else cell
    settings = load_config(recipe, [*overrides(folder, run), *more])
    if rank == "alone":
        settings.train.pop("fsdp", None)
        settings.train.pop("fsdp_config", None)
    rewards, gradients = on_given_outputs(settings)
    forget()
    if cell in KEPT and rank != "alone":  # the second step again, from the first one's checkpoint
        again, from_checkpoint = on_given_outputs(settings, f"{folder / cell}/checkpoint-1")
        forget()
        for name, value in again.items():
            assert torch.allclose(torch.tensor(value), torch.tensor(rewards[name]), atol=1e-5), name
        for name, gradient in from_checkpoint.items():
            assert torch.allclose(gradient, gradients[name], atol=1e-5, rtol=1e-3), name
        assert from_checkpoint.keys() == gradients.keys()
    (folder / f"rewards-{cell}-{rank}.json").write_text(json.dumps(rewards))
    save_file(gradients, folder / f"gradients-{cell}-{rank}.safetensors")


def main(out: Path, recipes: list[str]) -> None:
    rank = os.environ.get("RANK", "alone")
    for recipe in recipes:
        folder = out / recipe
        if rank != "alone":
            record = two_steps(load_config(recipe, overrides(folder, "run")))
            (folder / f"steps-{rank}.json").write_text(json.dumps(record))
            forget()
        cells = ["exact", "as-is", *(KEPT if "fsdp" in recipe else ())]
        if rank == "alone" and "fsdp" in recipe:
            cells.append("bf16-weights")
        for cell in cells:
            compare(folder, recipe, cell, rank)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
