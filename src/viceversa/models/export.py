"""Write a tuned model in the layout of the original Janus, so that the official code loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from viceversa.config import ConfigError
from viceversa.files import StorageError, storage_trouble, to_disk
from viceversa.models.base import Adapter
from viceversa.models.loading import model_type, not_finite
from viceversa.models.original import TYPE, fetched, layout_trouble, read_weights, sources

#: Bytes of weights in one file, as transformers cuts them for the original.
SHARD = 5 * 10**9


def check_base(base: str) -> None:
    """Raise ConfigError where `base` is no model in the original's layout."""
    with _of_base():
        kind = model_type(base, base)
    if kind != TYPE:
        raise ConfigError(
            f"--base is {base!r}, a {kind!r} model: name one in the original's layout"
        )


@contextmanager
def _of_base() -> Iterator[None]:
    """Say of an error that it is the base's."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"--base: {error}") from error


def export(adapter: Adapter, base: str, output: Path, card: str | None = None) -> None:
    """Write a model to the new folder `output` in the layout of `base`: all of it, or nothing.

    Names, number formats and all other files are the base's; LoRA is merged, in place. `card` is
    written as README.md. Raises ConfigError for a base of another geometry, StorageError where the
    folder cannot be written.
    """
    model = adapter.model if adapter.lora is None else adapter.lora.merge_and_unload()
    with _of_base():
        folder = fetched(base, base, weights=True)
        held, state = read_weights(folder, base), model.state_dict()
    if trouble := layout_trouble(held, state, "the tuned model"):
        raise ConfigError(f"--base is {base!r}; {trouble}: name the base that it was made from")
    with whole_folder(output) as partial:
        _copy_settings(folder, partial)
        _write_weights(held, state, partial)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Give a folder to write into, which becomes `output` on exit; after an error neither is left.

    Raises StorageError where it cannot be written.
    """
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in (*partial.iterdir(), partial):
            to_disk(path)
        partial.rename(output)
    except (OSError, SafetensorError, RuntimeError) as error:
        if why := storage_trouble(error, partial):
            raise StorageError(f"{output} could not be written: {why}") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_settings(folder: Path, to: Path) -> None:
    """Copy configuration, tokenizer and processor files as they are."""
    for file in sorted(folder.iterdir()):
        kept = file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file()
        if kept and not file.name.endswith(".index.json"):
            shutil.copyfile(file, to / file.name)


def _write_weights(held: Mapping[str, Tensor], state: Mapping[str, Tensor], to: Path) -> None:
    """Write the tuned weights by the base's names, in the base's number formats, shard by shard.

    Raises ConfigError for a weight that its number format cannot hold.
    """
    parts_of = sources(state)

    def tuned(name: str) -> Tensor:
        before = held[name]
        parts = [state[source].detach().cpu() for source in parts_of.get(name, [])]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else before
        found = whole.reshape(before.shape).to(before.dtype).contiguous()
        if parts and not_finite([(name, found)]):
            raise ConfigError(f"{name} has numbers that the base's {before.dtype} cannot hold")
        return found

    split = split_state_dict_into_shards_factory(
        dict(held),
        get_storage_size=lambda weight: weight.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD,
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: tuned(name) for name in names}, to / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2)
        (to / "model.safetensors.index.json").write_text(text, encoding="utf-8")
