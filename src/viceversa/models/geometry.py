"""Models without weights: an adapter on the meta device, to count and to plan before a download."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    Emu3Config,
    JanusConfig,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from viceversa.config import LoraConfig, ModelConfig
from viceversa.models import (
    ADAPTERS,
    make_adapter,
    select_trainable,
    supported_type,
    without_dropout,
)
from viceversa.models.base import Adapter
from viceversa.models.layouts import layout_of
from viceversa.models.loading import builtin_path, is_folder, reading
from viceversa.models.lora import CONFIG_FILE, base_of, lora_settings, of_checkpoint


def _janus_pro(width: int, layers: int, heads: int, mlp: int) -> JanusConfig:
    """Text sizes: the config.json of Janus-Pro. SigLIP-L/16 at 384 and VQ-16 (16,384 codes of 8
    numbers) are transformers' defaults, except that a picture has 384 / 16 patches a side."""
    text = LlamaConfig(
        vocab_size=102400,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=16384,
    )
    return JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(projection_dim=width),
        vq_config=JanusVQVAEConfig(
            num_patches=24, projection_dim=width, image_token_embed_dim=width
        ),
        tie_word_embeddings=False,
    )


def _emu3() -> Emu3Config:
    """Return transformers' defaults; 32,768 visual tokens from id 151,854, as in its tokenizer."""
    names = {f"<|visual token {code:06d}|>": 151854 + code for code in range(32768)}
    return Emu3Config(vocabulary_map={**names, "<|extra_200|>": 151846, "<image>": 151851})


def _anole() -> ChameleonConfig:
    """Return transformers' defaults, which are Chameleon-7B; 8,192 image tokens from id 4 on."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(code).translate(letters)}Z": 4 + code for code in range(8192)}
    return ChameleonConfig(vocabulary_map={**names, "<image>": 8711})


#: How a hub name begins, without its owner -> its geometry: nothing is downloaded to plan for it.
KNOWN: dict[str, Any] = {
    "janus-pro-1b": lambda: _janus_pro(2048, 24, 16, 5632),
    "janus-pro-7b": lambda: _janus_pro(4096, 30, 32, 11008),
    "emu3": _emu3,
    "anole-7b": _anole,
    "chameleon-7b": _anole,
}

#: Side of an Emu3 picture where its processor is not at hand: transformers' `image_area`, 720².
EMU3_SIDE = 720


def meta_adapter(config: ModelConfig, lora: LoraConfig | None = None) -> Adapter:
    """Build the model that `load_adapter` would load and train, with shapes and without numbers.

    Raises ConfigError for a model whose geometry cannot be found out.
    """
    base = base_of(config.path)
    if base is not None:  # a LoRA checkpoint, to be trained further
        made = lora_settings(Path(config.path))
        modules = made.target_modules if isinstance(made.target_modules, str) else ""
        with reading(config.path, CONFIG_FILE):
            lora = LoraConfig(made.r, modules=modules)
        config = replace(config, path=base)
    with nullcontext() if base is None else of_checkpoint(config.path):
        geometry, processor = _geometry(config.path), _processor(config.path)
    _, model_class = ADAPTERS[geometry.model_type]
    with torch.device("meta"), reading(config.path, "config.json"):
        model = model_class._from_config(geometry, dtype=getattr(torch, config.dtype))
    for module in model.modules():  # buffers made from numbers stay on the CPU
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer.to("meta")
    adapter = make_adapter(
        without_dropout(model.eval()), processor or stand_in(geometry), config.image_size
    )
    select_trainable(adapter, lora, config.path)
    return adapter


def geometry_of(path: str) -> Any:
    """Read the config of a folder, a known name or from the hub; the base's, for a LoRA checkpoint.

    Raises ConfigError where it cannot be found out.
    """
    base = base_of(path)
    with nullcontext() if base is None else of_checkpoint(path):
        return _geometry(base or path)


def _geometry(path: str) -> Any:
    folder = str(builtin_path()) if path == "builtin" else path
    if not is_folder(folder):
        for name, build in KNOWN.items():
            if re.search(rf"(^|/){name}(?![\w.])", path.lower()):  # emu3.5 is no emu3
                return build()
    supported_type(folder, path)
    return layout_of(folder, path).read_config(folder, path)


def known_as(geometry: Any) -> str | None:
    """Find the first name in KNOWN of a model with layers of these sizes, whatever its folder."""
    sizes = _sizes(geometry)
    return next((name for name, build in KNOWN.items() if _sizes_built(build) == sizes), None)


@cache  # building Emu3's 32,768 names takes a third of a second
def _sizes_built(build: Callable[[], Any]) -> tuple[Any, ...]:
    return _sizes(build())


def _sizes(geometry: Any) -> tuple[Any, ...]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    text = geometry.get_text_config()  # of a damaged config.json, anything
    return (geometry.model_type, *(getattr(text, name, None) for name in names))


def _processor(path: str) -> Any:
    """Load the processor where it is local, else return None."""
    folder = str(builtin_path()) if path == "builtin" else path
    if not (Path(folder) / "tokenizer.json").is_file():
        return None
    adapter_class, _ = ADAPTERS[supported_type(folder, path)]
    return layout_of(folder, path).load_processor(adapter_class, folder, path)


def stand_in(geometry: Any) -> Any:
    """Stand in for a processor with as much as an adapter asks for when it is made."""
    text = geometry.get_text_config()
    tokenizer = SimpleNamespace(
        eos_token_id=text.eos_token_id or 0,
        bos_token_id=text.bos_token_id or 0,
        pad_token_id=text.pad_token_id or 0,
        convert_tokens_to_ids=lambda name: 0,
    )
    images = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3, rescale_factor=1 / 255)
    return SimpleNamespace(
        tokenizer=tokenizer,
        image_processor=images,
        image_area=EMU3_SIDE**2,
        image_token_id=0,
        image_start_token_id=0,
        image_start_token="",
    )
