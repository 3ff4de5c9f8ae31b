"""A small contrastive judge of the built-in world: what CLIP is to photographs.

Trained on pairs of pictures and captions of training specs, so it has seen labels: a reward to
compare the dual one with, in which no pair takes part.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from viceversa.data.pictures import to_numpy
from viceversa.judges.clip import Clip
from viceversa.models.loading import builtin_path
from viceversa.scenes.examples import picture
from viceversa.scenes.language import caption
from viceversa.scenes.render import SIZE
from viceversa.scenes.spec import KINDS, draw_spec

STEPS, BATCH, LEARNING_RATE = 1000, 128, 1e-3


class ScenesClip(Clip):
    """`reward.name: scenes_clip`: trained when first asked, and kept in `cache_dir`."""

    def __init__(self, cache_dir: str = "~/.cache/viceversa", steps: int = STEPS, **options: Any):
        self.steps = steps
        self.folder = Path(cache_dir).expanduser() / f"scenes-clip-{steps}"
        super().__init__(str(self.folder), **options)

    def load(self, device: Any) -> tuple[Any, Any, Any]:
        if not self.folder.is_dir():
            train_clip(self.folder, self.steps)
        return super().load(device)


@torch.enable_grad()  # a reward is asked without
def train_clip(folder: Path, steps: int = STEPS, seed: int = 0) -> None:
    """Train it on pairs and save it in `folder`, whole or not at all."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_path(), trust_remote_code=False)
    tokenizer.padding_side = "right"
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, do_convert_rgb=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(_config(tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    console = Console(stderr=True)
    console.print(f"scenes_clip: training it once, kept in {folder}", highlight=False)
    for step in track(range(steps), "scenes_clip", console=console, transient=True):
        rng = random.Random(f"{seed}/clip/{step}")
        specs = [draw_spec(rng, kind, "train") for kind in rng.choices(KINDS, k=BATCH)]
        pixels = to_numpy(torch.stack([picture(s) for s in specs]))
        inputs = images(list(pixels), return_tensors="pt", input_data_format="channels_last")
        words = tokenizer([caption(s) for s in specs], padding=True, return_tensors="pt")
        words.pop("token_type_ids", None)
        loss = model(**words, **inputs, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for part in (model.eval(), tokenizer, images):
            part.save_pretrained(draft)
        os.replace(draft, folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _config(tokenizer: Any) -> CLIPConfig:
    shared = {"hidden_size": 96, "intermediate_size": 288, "num_attention_heads": 4}
    return CLIPConfig(
        text_config={
            **shared,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**shared, "num_hidden_layers": 3, "image_size": SIZE, "patch_size": 4},
        projection_dim=96,
    )
