"""LoRA through peft: put it on an adapter's model, load a checkpoint of it, merge it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from viceversa.config import ConfigError, LoraConfig
from viceversa.models.base import Adapter
from viceversa.models.tiny import builtin_path

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before the names of the model that it changes


def add_lora(adapter: Adapter, config: LoraConfig, base: str, seed: int = 0) -> None:
    """Freeze everything but new LoRA weights, in place; `adapter.lora` is the PeftModel.

    The new weights depend on `seed` alone, so that a run can be repeated and all processes start
    from the same ones; the state of torch's generator is left as it was.

    `base` is what a checkpoint will say it belongs to; a folder is named by its absolute path.
    Raises ConfigError where `config.modules` names none of the model's modules.
    """
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.modules or adapter.lora_modules,
    )
    adapter.model.name_or_path = str(Path(base).resolve()) if _is_folder(base) else base
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapter.lora = peft.get_peft_model(adapter.model, settings)
    except ValueError as error:
        raise ConfigError(f"lora.modules is {settings.target_modules!r}: {error}") from error


def _is_folder(base: str) -> bool:
    return base != "builtin" and Path(base).is_dir()


def base_of(folder: Path) -> str | None:
    """The model that a LoRA checkpoint belongs to; None where `folder` holds none."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return None
    base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{file} names no base_model_name_or_path")
    return str(base)


def load_lora(adapter: Adapter, folder: Path) -> None:
    """Put a checkpoint's LoRA on the bare base model, ready to train further."""
    adapter.lora = peft.PeftModel.from_pretrained(adapter.model, folder, is_trainable=True)


def restore_lora(adapter: Adapter, folder: Path) -> None:
    """A checkpoint's weights into the LoRA that is there already."""
    peft.set_peft_model_state_dict(adapter.lora, load_file(folder / WEIGHTS_FILE))


def save_lora(adapter: Adapter, folder: Path, gathered: dict[str, Tensor] | None = None) -> None:
    """A checkpoint of the LoRA alone, in peft's layout.

    `gathered` holds whole weights by the names of `adapter.model`, where that one's are sharded.
    Raises RuntimeError, and writes nothing, where there is no LoRA among them.
    """
    if gathered is not None:
        gathered = {PREFIX + name: value for name, value in gathered.items()}
    if not peft.get_peft_model_state_dict(adapter.lora, gathered):
        raise RuntimeError(f"no LoRA weights to save in {folder}")
    adapter.lora.save_pretrained(folder, state_dict=gathered)


def lora_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights, by the names of the model that carries them."""
    saved = load_file(folder / WEIGHTS_FILE)
    return {
        re.sub(r"(\.lora_\w+)", r"\1.default", name.removeprefix(PREFIX)): value
        for name, value in saved.items()
    }


def merged(adapter: Adapter) -> Any:
    """The model with its LoRA added to its weights: a plain transformers model. In place.

    Added as it is loaded, then rounded to the dtype in which the base is stored.
    """
    base = adapter.lora.peft_config["default"].base_model_name_or_path
    path = str(builtin_path()) if base == "builtin" else base
    dtype = AutoConfig.from_pretrained(path).dtype or adapter.model.dtype
    return adapter.lora.merge_and_unload().to(dtype)
