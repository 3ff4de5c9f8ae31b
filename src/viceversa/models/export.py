"""Write a tuned model in the layout of the original Janus, so that the official code loads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
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
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _copy_settings(folder, partial)
        _write_weights(_written(held, state), partial)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")
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


def _written(
    held: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Give the tuned weights one by one by the base's names, in the base's number formats.

    Raises ConfigError for a weight that its number format cannot hold.
    """
    parts_of = sources(state)
    for name, before in held.items():
        parts = [state[source].detach().cpu() for source in parts_of.get(name, [])]
        whole = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else before
        tuned = whole.reshape(before.shape).to(before.dtype).contiguous()
        if parts and not_finite([(name, tuned)]):
            raise ConfigError(f"{name} has numbers that the base's {before.dtype} cannot hold")
        yield name, tuned


def _write_weights(weights: Iterator[tuple[str, Tensor]], to: Path) -> None:
    """Write safetensors: one file, or shards with an index."""
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        save_file(held, to / f"{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, weight in weights:
        if held and size + weight.nbytes > SHARD:
            flush()
            size = 0
        held[name] = weight
        size, total = size + weight.nbytes, total + weight.nbytes
    flush()
    if len(shards) == 1:
        (to / "0.safetensors").rename(to / "model.safetensors")
        return
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(names):
        (to / f"{i}.safetensors").rename(to / name)
    places = {key: names[i] for i, keys in enumerate(shards) for key in keys}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (to / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
