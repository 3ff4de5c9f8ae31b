"""The models and inputs that the speed benchmarks run on, and what the machine could do at best."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from timing import copy_bandwidth, matrix_rate
from transformers import JanusConfig, JanusForConditionalGeneration, logging

from viceversa.config import ModelConfig
from viceversa.models import load_adapter
from viceversa.models.geometry import KNOWN, stand_in
from viceversa.models.janus import JanusAdapter
from viceversa.types import Direction, PromptBatch

#: `medium` has what Janus-Pro has outside the language model's layers that costs time in them: 576
#: tokens a picture, 16,384 image ids, 102,400 words, guidance 5. Cut are the layers (width 512, 8
#: of them), the vision tower (4 layers of 256 for 24 of 1,024) and the codec (32 channels for 128).
SIZES = ("medium", "builtin", "1b", "7b")
IMAGE_ID = 3  # of random weights: what holds the place of a picture's tokens
PROMPT_TOKENS = {"builtin": 16}
GUIDANCE = {"builtin": 2.0}


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every speed benchmark may be told; what is not given follows the size."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="medium", choices=SIZES)
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--rounds", type=int)
    return parser


def settled(
    parser: argparse.ArgumentParser, medium: Mapping[str, Any], others: Mapping[str, Any]
) -> argparse.Namespace:
    """What was given; else the default of the size: `medium` takes minutes where others do not."""
    given = parser.parse_args()
    for name, value in (medium if given.size == "medium" else others).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def begin(size: str, console: Console) -> tuple[JanusAdapter, Machine]:
    """The model and what the machine can do, which is printed."""
    torch.manual_seed(0)
    logging.set_verbosity_error()  # `generate` warns of each setting that makes work equal
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapter = make(size, device)
    machine = Machine.of(adapter)
    threads, weights = torch.get_num_threads(), sum(p.numel() for p in adapter.model.parameters())
    console.print(
        f"{size}, {weights / 1e6:.1f} M weights, {adapter.model.dtype}, {device}, "
        f"{threads} threads, torch {torch.__version__}, {machine}"
    )
    return adapter, machine


def make(size: str, device: torch.device) -> JanusAdapter:
    """The built-in model; random weights: `medium` in float32, a released geometry in bfloat16."""
    if size == "builtin":
        adapter = load_adapter(ModelConfig())
        assert isinstance(adapter, JanusAdapter)
        return adapter
    if size == "medium":
        return random_weights(narrow(512, 8), device, torch.float32)
    return random_weights(KNOWN[f"janus-pro-{size}"](), device, torch.bfloat16)


def narrow(
    width: int, layers: int, side: int = 24, image_ids: int = 16384, words: int = 102400
) -> JanusConfig:
    """Janus-Pro with a narrow backbone and a small vision tower and codec; side² tokens a picture.

    What is cut is the same at every side: 16 pixels a token, 64 numbers a head.
    """
    geometry = KNOWN["janus-pro-1b"]()
    text, vision, codec = geometry.text_config, geometry.vision_config, geometry.vq_config
    text.hidden_size, text.intermediate_size = width, 11 * width // 4
    text.num_hidden_layers, text.vocab_size = layers, words
    text.num_attention_heads = text.num_key_value_heads = width // 64
    text.head_dim = 64
    vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads = 256, 4, 4
    vision.image_size, vision.num_image_tokens = 16 * side, side**2
    codec.base_channels, codec.latent_channels, codec.num_res_blocks = 32, 64, 1
    codec.num_embeddings, codec.num_patches = image_ids, side
    vision.projection_dim = codec.projection_dim = codec.image_token_embed_dim = width
    return geometry


def random_weights(geometry: JanusConfig, device: torch.device, dtype: torch.dtype) -> JanusAdapter:
    """A model of this geometry as it is before any training."""
    geometry.image_token_id = IMAGE_ID
    with torch.device(device):
        model = JanusForConditionalGeneration._from_config(geometry, dtype=dtype)
    adapter = JanusAdapter(model.eval(), stand_in(geometry))
    # a stand-in tokenizer knows no ids: any distinct ones do
    adapter.bos_id, adapter.boi_id, adapter.pad_id, adapter.image_id = 0, 1, 2, IMAGE_ID
    return adapter


def prompt_tokens(size: str) -> int:
    return PROMPT_TOKENS.get(size, 32)


def guidance_of(size: str) -> float:
    """Of drawing: the released models', or the recipe's of the built-in one."""
    return GUIDANCE.get(size, 5.0)


@dataclass(frozen=True)
class Machine:
    bandwidth: float
    """Bytes a second, read and written."""
    rate: float
    """Operations a second."""

    @staticmethod
    def of(adapter: JanusAdapter) -> Machine:
        device = adapter.device
        return Machine(copy_bandwidth(device), matrix_rate(device, adapter.model.dtype))

    def __str__(self) -> str:
        return f"{self.bandwidth / 1e9:.1f} GB/s copied, {self.rate / 1e12:.2f} TFLOP/s"


def prompts_of(adapter: JanusAdapter, direction: Direction, n: int, tokens: int) -> PromptBatch:
    """Random ids between BOS and begin-of-image; or a picture of noise and an instruction."""
    special = {adapter.bos_id, adapter.boi_id, adapter.pad_id, adapter.image_id}
    plain = torch.tensor([i for i in range(400) if i not in special], device=adapter.device)
    words = plain[torch.randint(len(plain), (n, tokens), device=adapter.device)]
    edge = torch.full((n, 1), adapter.bos_id, device=adapter.device)
    begin = torch.full((n, 1), adapter.boi_id, device=adapter.device)
    if direction == "t2i":
        ids = torch.cat([edge, words, begin], dim=1)
        return PromptBatch("t2i", ids, torch.ones_like(ids, dtype=torch.bool))
    holders = torch.full((n, adapter.image_tokens), adapter.image_id, device=adapter.device)
    ids = torch.cat([edge, begin, holders, words], dim=1)
    size = (n, 3, adapter.image_size, adapter.image_size)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=adapter.device)
    return PromptBatch("i2t", ids, torch.ones_like(ids, dtype=torch.bool), pixels)
