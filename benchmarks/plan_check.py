"""`viceversa plan` against a real training step, phase by phase; prints a table.

    python benchmarks/plan_check.py            # two small Janus geometries, on the CPU
    python benchmarks/plan_check.py --cuda     # Janus-Pro-1B and 7B geometries, random weights

Each case runs two optimizer steps in a process of its own. On the CPU the peak is the kernel's
figure for resident memory (VmHWM, set back before every phase) minus what the process held after a
warm-up on the built-in model; on a GPU it is torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fresh import MIB, Meter, child
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

from viceversa.config import Config, load_config
from viceversa.data.sources import load_sources
from viceversa.data.stream import Stream
from viceversa.inference import sampler as rollout
from viceversa.inference.engines import Plain
from viceversa.models import load_adapter
from viceversa.models.geometry import KNOWN
from viceversa.plan.plan import make_plan
from viceversa.plan.simulate import PROMPT_WORDS
from viceversa.pretrain import tiny
from viceversa.rl import rewards
from viceversa.training.arguments import training_arguments
from viceversa.training.trainer import DualRewardTrainer

LORA = ["lora.rank=16", "train.activation_checkpointing=true", "loss.name=simpo"]
#: case -> (geometry, overrides)
SMALL: dict[str, tuple[str, list[str]]] = {
    "256 x 4, full": ("256x4", []),
    "256 x 4, LoRA, checkpointing": ("256x4", LORA),
    "512 x 6, full": ("512x6", []),
    "512 x 6, LoRA, checkpointing": ("512x6", LORA),
}
LARGE: dict[str, tuple[str, list[str]]] = {
    "Janus-Pro-1B, LoRA": ("janus-pro-1b", ["model.dtype=bfloat16", *LORA]),
    "Janus-Pro-1B, full": ("janus-pro-1b", ["model.dtype=bfloat16", "loss.batch_rows=4"]),
    "Janus-Pro-7B, LoRA": ("janus-pro-7b", ["model.dtype=bfloat16", *LORA]),
}
COMMON = [
    "data.prompts_per_step=4",
    "data.images_per_step=4",
    "sampling.group_size=4",
    "sampling.max_caption_tokens=16",
    "train.save_strategy=no",
    "loss.direction_norms_every=0",
    "steps=2",
]


def geometry(name: str) -> JanusConfig:
    """A known one, or width x layers: pictures of 96 pixels and 144 tokens."""
    if name in KNOWN:
        return KNOWN[name]()
    width, layers = map(int, name.split("x"))
    text = LlamaConfig(
        vocab_size=4096,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
    )
    vision = JanusVisionConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=96,
        patch_size=8,
        projection_dim=width,
        num_image_tokens=144,
    )
    codec = JanusVQVAEConfig(
        num_embeddings=1024,
        latent_channels=64,
        base_channels=32,
        channel_multiplier=[1, 1, 2, 2],
        num_patches=12,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    return JanusConfig(
        text_config=text, vision_config=vision, vq_config=codec, tie_word_embeddings=False
    )


def prepare(folder: Path, name: str) -> None:
    """Random weights, a tokenizer, prompts of one length and pictures of noise."""
    processor = tiny.build_processor()
    config = geometry(name)
    config.image_token_id = processor.tokenizer.convert_tokens_to_ids(tiny.IMAGE)
    torch.manual_seed(0)
    model: Any = tiny.build_model(config)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    prompts = [f"a {c} {s}" for c in ("red", "blue") for s in ("ring", "star", "square", "cross")]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0)
    for i in range(8):
        pixels = noise.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i}.png")


def options(folder: Path, overrides: list[str], cuda: bool) -> Config:
    paths = [
        f"model.path={folder / 'model'}",
        f"data.prompts={folder / 'prompts.txt'}",
        f"data.images={folder / 'photos'}",
        f"data.cache_dir={folder / 'cache'}",
        f"output_dir={folder / 'run'}",
        f"train.use_cpu={str(not cuda).lower()}",
    ]
    return load_config(None, [*paths, *COMMON, *overrides])


def trainer_of(config: Config) -> DualRewardTrainer:
    args = training_arguments(config)
    adapter = load_adapter(config.model, config.lora)
    sources = load_sources(config, adapter.image_size, adapter.text_limits(""))
    return DualRewardTrainer(adapter, config, Stream(config, sources, 1), args)


def measure(folder: Path, overrides: list[str], cuda: bool) -> dict[str, int]:
    """Peak by phase of the second step, when the optimizer has its state."""
    warm = ["sampling.max_caption_tokens=4", f"output_dir={folder / 'warm'}"]
    warm += [f"train.use_cpu={str(not cuda).lower()}", "steps=1", "train.save_strategy=no"]
    trainer_of(load_config("builtin", warm)).train()
    meter, peaks = Meter(cuda), {}
    if not cuda:
        meter.begin()
        # the engine that the plan counts
        rollout.engine_of = lambda adapter: Plain
    # a random model's captions never stop; were they all invalid, nothing would be learned
    rewards.invalid_captions = lambda rollout: ~rollout.completions.completion_mask.any(-1)
    trainer = trainer_of(options(folder, overrides, cuda))

    def watched(name: Callable[[Any], str], work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            meter.start()
            try:
                return work(*args, **kwargs)
            finally:
                peaks[name(args[0])] = meter.peak()

        return run

    step, learn = trainer.step, trainer.training_step
    step.sample = watched(lambda e: f"{e[0].direction} sampling", step.sample)  # type: ignore[method-assign]
    trainer.training_step = watched(lambda _: "backward", learn)  # type: ignore[method-assign]
    step.rewards = [watched(lambda r: f"{r.direction} reward", reward) for reward in step.rewards]
    trainer.train()
    return peaks


def planned(config: Config) -> dict[str, int]:
    """The plan's peaks under the names that are measured: pixels are made inside the sampling."""
    adapter = load_adapter(config.model)
    lengths = [len(adapter.text_ids(adapter.prompt_text("t2i", t))) for t in ("", "a red ring")]
    words = lengths[1] - lengths[0] or PROMPT_WORDS
    found: dict[str, int] = {}
    for phase in make_plan(config, 1, words).phases:
        name = {"t2i pixels": "t2i sampling", "i2t image ids": "i2t reward"}.get(
            phase.name, phase.name
        )
        found[name] = max(found.get(name, 0), phase.bytes)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        folder, overrides, cuda = given.child
        print(json.dumps(measure(Path(folder), overrides, cuda)))
        return
    table = Table(title="peak memory, MiB: planned / measured = ratio")
    rows: dict[str, list[str]] = {}
    for case, (name, overrides) in (LARGE if given.cuda else SMALL).items():
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            prepare(folder, name)
            measured = child(__file__, [str(folder), overrides, given.cuda])
            plan = planned(options(folder, overrides, given.cuda))
        rows[case] = [_cell(plan[phase], size) for phase, size in measured.items()]
        rows[case].append(_cell(max(plan.values()), max(measured.values())))
        if not table.columns:
            for column in ("case", *measured, "peak"):
                table.add_column(column, justify="right")
    for case, cells in rows.items():
        table.add_row(case, *cells)
    Console(width=160).print(table)


def _cell(plan: int, measured: int) -> str:
    return f"{plan / MIB:.0f} / {measured / MIB:.0f} = {plan / measured:.2f}"


if __name__ == "__main__":
    main()
