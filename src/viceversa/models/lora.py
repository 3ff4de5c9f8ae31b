"""LoRA through peft: put it on an adapter's model, load a checkpoint of it, merge it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file
from torch import Tensor

from viceversa.config import ConfigError, LoraConfig
from viceversa.models.base import Adapter
from viceversa.models.layouts import layout_of
from viceversa.models.loading import (
    builtin_path,
    check_finite,
    check_names,
    check_safetensors,
    is_folder,
    read_object,
    reading,
)

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before the names of the model that it changes


def add_lora(adapter: Adapter, config: LoraConfig, base: str, seed: int = 0) -> None:
    """Freeze everything but new LoRA weights, in place; `adapter.lora` is the PeftModel.

    The new weights depend on `seed` alone, so that a run can be repeated and all processes start
    from the same ones; the state of torch's generator is left as it was.

    `base` is what a checkpoint will say it belongs to; a folder is named by its absolute path.
    Raises ConfigError where `config.modules` names none of the model's modules.
    """
    folder = base != "builtin" and is_folder(base)
    settings = peft.LoraConfig(
        base_model_name_or_path=str(Path(base).resolve()) if folder else base,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=config.modules or adapter.lora_modules,
    )
    try:
        _put(adapter, settings, seed)
    except ValueError as error:
        raise ConfigError(f"lora.modules is {settings.target_modules!r}: {error}") from error


def _put(adapter: Adapter, settings: Any, seed: int) -> None:
    adapter.model.name_or_path = settings.base_model_name_or_path
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter.lora = peft.get_peft_model(adapter.model, settings)


def base_of(path: str) -> str | None:
    """Return the model that a LoRA checkpoint belongs to; None where `path` is none.

    Raises ConfigError for one that names no base, or as its base another LoRA checkpoint.
    """
    file = Path(path) / CONFIG_FILE
    if not is_folder(path) or not file.exists():
        return None
    base = read_object(file, path).get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ConfigError(f"model.path is {path!r}; {file.name} names no base_model_name_or_path")
    if is_folder(base) and (Path(base) / CONFIG_FILE).exists():
        raise ConfigError(
            f"model.path is {path!r}; the base that {file.name} names, {base!r}, is a LoRA "
            "checkpoint: merge that one, and name the merged folder"
        )
    return base


@contextmanager
def of_checkpoint(path: str) -> Iterator[None]:
    """Say of an error in a base which LoRA checkpoint asked for it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{Path(path) / CONFIG_FILE} names the base: {error}") from error


def lora_settings(folder: Path) -> Any:
    """Read a checkpoint's LoRA settings. Raises ConfigError where they are damaged or missing."""
    read_object(folder / CONFIG_FILE, str(folder))
    with reading(str(folder), CONFIG_FILE):
        settings = peft.PeftConfig.from_pretrained(str(folder))
    if not isinstance(settings, peft.LoraConfig):
        raise ConfigError(
            f"model.path is {str(folder)!r}; {CONFIG_FILE} is of {settings.peft_type}: only LoRA "
            "can be loaded"
        )
    settings.inference_mode = False
    settings.megatron_config = None  # peft would import the module that it names
    return settings


def load_lora(adapter: Adapter, folder: Path) -> None:
    """Put a checkpoint's LoRA on the bare base model, ready to train further.

    Raises ConfigError where its weights are not those that its settings and the base ask for.
    """
    settings = lora_settings(folder)
    with reading(str(folder), CONFIG_FILE):
        _put(adapter, settings, seed=0)
    restore_lora(adapter, folder)


def restore_lora(adapter: Adapter, folder: Path) -> None:
    """Put a checkpoint's weights into the LoRA that is there: all of them, or a ConfigError."""
    shown = str(folder)
    check_safetensors(folder / WEIGHTS_FILE, shown)
    asked = peft.get_peft_model_state_dict(adapter.lora, save_embedding_layers=False)
    with reading(shown, WEIGHTS_FILE):
        held = load_file(folder / WEIGHTS_FILE)
        check_names(held, asked, shown, f"{CONFIG_FILE} and the base")
        check_finite(held.items(), shown)
        peft.set_peft_model_state_dict(adapter.lora, held)


def save_lora(adapter: Adapter, folder: Path, gathered: dict[str, Tensor] | None = None) -> None:
    """Save a checkpoint of the LoRA alone, in peft's layout.

    `gathered` holds whole weights by the names of `adapter.model`, where that one's are sharded.
    Raises RuntimeError, and writes nothing, where there is no LoRA among them.
    """
    if gathered is not None:
        gathered = {PREFIX + name: value for name, value in gathered.items()}
    # False: else peft asks the hub for the base, to see whether its vocabulary was changed
    if not peft.get_peft_model_state_dict(adapter.lora, gathered, save_embedding_layers=False):
        raise RuntimeError(f"no LoRA weights to save in {folder}")
    adapter.lora.save_pretrained(folder, state_dict=gathered, save_embedding_layers=False)


def lora_weights(folder: Path) -> dict[str, Tensor]:
    """Read a checkpoint's weights, by the names of the model that carries them."""
    saved = load_file(folder / WEIGHTS_FILE)
    return {
        re.sub(r"(\.lora_\w+)", r"\1.default", name.removeprefix(PREFIX)): value
        for name, value in saved.items()
    }


def merged(adapter: Adapter) -> Any:
    """Add the LoRA to the weights, in place: a plain transformers model.

    Added as it is loaded, then rounded to the dtype in which the base is stored.
    """
    base = adapter.lora.peft_config["default"].base_model_name_or_path
    path = str(builtin_path()) if base == "builtin" else base
    dtype = layout_of(path, base).read_config(path, base).dtype or adapter.model.dtype
    return adapter.lora.merge_and_unload().to(dtype)
