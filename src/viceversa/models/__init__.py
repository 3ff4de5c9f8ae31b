"""Adapters: what rollout and scoring need to know of a model."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    ChameleonForConditionalGeneration,
    Emu3ForConditionalGeneration,
    JanusForConditionalGeneration,
)

from viceversa.config import ConfigError, LoraConfig, ModelConfig
from viceversa.models import original
from viceversa.models.base import Adapter
from viceversa.models.chameleon import ChameleonAdapter
from viceversa.models.emu3 import Emu3Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.models.layouts import layout_of
from viceversa.models.loading import (
    builtin_path,
    check_files,
    check_prompts,
    is_folder,
    model_type,
    reading,
)
from viceversa.models.lora import add_lora, base_of, load_lora, of_checkpoint

#: model_type of the checkpoint's config.json -> (adapter, model class)
ADAPTERS: dict[str, tuple[Any, Any]] = {
    "janus": (JanusAdapter, JanusForConditionalGeneration),
    "emu3": (Emu3Adapter, Emu3ForConditionalGeneration),
    "chameleon": (ChameleonAdapter, ChameleonForConditionalGeneration),
}

#: Layouts of the originals, which transformers loads only once converted.
ORIGINALS = {
    "Emu3": "its original layout; convert it, as the recipe emu3-lora says",
}

__all__ = ["ADAPTERS", "Adapter", "JanusAdapter", "builtin_path", "load_adapter", "usual_dtype"]


def usual_dtype() -> Literal["float32", "bfloat16"]:
    """Return the number format of weights that are not trained: bfloat16 on a GPU, else float32."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def load_adapter(config: ModelConfig, lora: LoraConfig | None = None, seed: int = 0) -> Adapter:
    """Load the model at `config.path`, trainable parts with gradients, everything else frozen.

    A folder with a LoRA checkpoint loads its base and the LoRA on top; `lora.rank` above 0 starts a
    new one, whose weights `seed` decides. Raises ConfigError for a path that holds no model, or a
    model of another class.
    """
    base = base_of(config.path)
    if base is None:
        adapter = _load_base(config)
        select_trainable(adapter, lora, config.path, seed)
        return adapter
    with of_checkpoint(config.path):
        adapter = _load_base(replace(config, path=base))
    adapter.model.requires_grad_(False)
    load_lora(adapter, Path(config.path))
    return adapter


def select_trainable(adapter: Adapter, lora: LoraConfig | None, base: str, seed: int = 0) -> None:
    """Gradients for what is trained: new LoRA weights, or the language model and its heads."""
    adapter.model.requires_grad_(False)
    if lora is not None and lora.rank:
        add_lora(adapter, lora, base, seed)
    else:
        for parameter in adapter.trainable_parameters():
            parameter.requires_grad_(True)


def _load_base(config: ModelConfig) -> Adapter:
    path = str(builtin_path()) if config.path == "builtin" else config.path
    adapter_class, model_class = ADAPTERS[supported_type(path, config.path)]
    if is_folder(path):
        check_files(Path(path), config.path)
    layout = layout_of(path, config.path)
    geometry = layout.read_config(path, config.path)
    processor = layout.load_processor(adapter_class, path, config.path)
    dtype = getattr(torch, config.dtype)
    model = layout.load_model(model_class, geometry, path, config.path, dtype)
    if torch.cuda.is_available():
        model = model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    with reading(config.path, "its settings"):
        adapter = make_adapter(without_dropout(model), processor, config.image_size)
    check_prompts(adapter, config.path)
    return adapter


def make_adapter(model: Any, processor: Any, image_size: int) -> Adapter:
    """Raises ConfigError where the model cannot have pictures of that size."""
    adapter_class, _ = ADAPTERS[model.config.model_type]
    try:
        return adapter_class(model, processor, image_size)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def without_dropout(model: Any) -> Any:
    """Turn dropout off: a pass with it is another policy than the one that was sampled from."""
    for module in model.modules():
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def supported_type(path: str, shown: str) -> str:
    """Return the model type at `path`, a key of ADAPTERS. Raises ConfigError that names `shown`."""
    kind = model_type(path, shown)
    if kind == original.TYPE:
        return "janus"
    if kind in ORIGINALS:
        raise ConfigError(f"model.path is {shown!r}, a {kind!r} model: {ORIGINALS[kind]}")
    if kind not in ADAPTERS:
        raise ConfigError(
            f"model.path is {shown!r}, a {kind!r} model; supported: {', '.join(ADAPTERS)}"
        )
    return kind
