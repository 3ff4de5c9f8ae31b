"""Inputs as Python has them: lists, files, folders, PIL pictures, arrays, a `datasets.Dataset`."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viceversa.config import ConfigError, DataConfig
from viceversa.data.hub import check_reference, columns_of
from viceversa.data.pictures import read_picture
from viceversa.data.places import FileRef, MemoryRef, Ref, dataset_rows, find_pictures
from viceversa.data.prompts import Row, dataset_cells, read_prompts
from viceversa.types import Note

#: How the name begins that inputs without one have in a run's config.
GIVEN = "given in Python"

#: Modes of Pillow that a PNG can hold.
_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}


def is_named(given: Any) -> bool:
    """Tell whether inputs are a name, as an option takes it: a file, a folder, a hub dataset."""
    return isinstance(given, str | Path)


def name_of(given: Any) -> str:
    """Return what a run's config calls these inputs: how many there are, and a digest of them.

    A run goes on with the same ones alone; a stream is known by its columns. Pictures in memory are
    `held` first.
    """
    digest = hashlib.blake2b(digest_size=6)
    if fingerprint := getattr(given, "_fingerprint", None):
        digest.update(fingerprint.encode())
    else:
        for item in given if isinstance(given, Sequence) else [given]:
            held = isinstance(item, MemoryRef)
            content = item.content if held else str(item).encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8, "little") + content)
    count = len(given) if hasattr(given, "__len__") else 1
    return f"{GIVEN}: {count}, digest {digest.hexdigest()}"


def prompt_rows(given: Any, data: DataConfig) -> Iterator[Row]:
    """Yield a row for each prompt: of a list, a dataset, or a file's `Path`.

    A lone string is one prompt; None those that `data` names. Raises ConfigError for anything else,
    and for an unknown column.
    """
    if given is None:
        yield from read_prompts(data)
    elif isinstance(given, Path):
        yield from read_prompts(replace(data, prompts=str(given)))
    elif _is_dataset(given):
        for number, cells in enumerate(dataset_cells(given, data), start=1):
            yield Row(f"row {number}", *cells)
    elif isinstance(given, str | Sequence):
        check_reference(data, "prompts")
        texts = [given] if isinstance(given, str) else given
        for number, text in enumerate(texts, start=1):
            yield Row(f"prompt {number}", text)
    else:
        raise ConfigError(
            f"prompts are a {type(given).__name__}; give a list of strings, the path of a file, or "
            "a datasets.Dataset"
        )


def picture_refs(
    given: Any, data: DataConfig, shuffle: random.Random | None = None
) -> Iterator[Ref | Note]:
    """Yield a reference to each picture: of a list, a dataset, a folder, or one picture by itself.

    A picture is a path, a PIL picture, or uint8 [3, H, W] (tensor) or [H, W, 3] (array); None those
    that `data` names, their files in the order of `shuffle`. Raises ConfigError for anything else.
    """
    if given is None:
        yield from find_pictures(data, shuffle)
    elif is_named(given):
        path = Path(given)
        if path.is_file() and path.suffix.lower() != ".tar":
            yield FileRef(str(path))
        else:
            yield from find_pictures(replace(data, images=str(given)))
    elif _is_dataset(given):
        yield from dataset_rows(given, "the dataset", data)
    elif isinstance(given, Sequence | Image.Image | torch.Tensor | np.ndarray):
        check_reference(data, "images")
        for picture in held(given):
            yield FileRef(str(picture)) if is_named(picture) else picture
    else:
        raise _no_picture(given)


def held(given: Any) -> Any:
    """Return pictures with those in memory encoded, so that it is done once: `MemoryRef`s.

    What has a name, and a dataset, is returned as it is. Raises ConfigError for anything else.
    """
    if is_named(given) or _is_dataset(given):
        return given
    several = given if isinstance(given, Sequence) else [given]
    return [
        p if is_named(p) or isinstance(p, Ref) else MemoryRef(f"picture {n}", _png(p))
        for n, p in enumerate(several, start=1)
    ]


def pictures(given: Any, size: int, data: DataConfig) -> torch.Tensor:
    """Read pictures as the model does: [N, 3, size, size] uint8.

    Raises ConfigError, naming it, for one that cannot be used, and where there is none.
    """
    found = []
    for ref in picture_refs(given, data):
        pixels, notes = read_picture(ref, size, data.crop)
        if pixels is None:
            raise ConfigError(f"{notes[0].name}: {notes[0].kind} {notes[0].detail}".rstrip())
        found.append(pixels)
    if not found:
        raise ConfigError("there are no pictures")
    return torch.stack(found)


def streams(given: Any, data: DataConfig) -> bool:
    """Tell inputs to read as they come: an iterable dataset, or those of a name if asked for."""
    if given is None:
        return data.streaming
    return _is_dataset(given) and not hasattr(given, "__len__")


def _is_dataset(given: Any) -> bool:
    """Tell a `datasets.Dataset`, without importing the library for those who have none."""
    return hasattr(given, "column_names") and hasattr(given, "features") and bool(columns_of(given))


def _png(picture: Any) -> bytes:
    if isinstance(picture, torch.Tensor):
        picture = picture.permute(1, 2, 0).cpu().numpy() if picture.ndim == 3 else picture.numpy()
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ConfigError(
                f"a picture is {picture.dtype} {list(picture.shape)}; it takes uint8 [H, W, 3] "
                "(a tensor: [3, H, W])"
            )
        picture = Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        raise _no_picture(picture)
    image = picture if picture.mode in _PNG else picture.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=picture.getexif(), compress_level=1)
    return buffer.getvalue()


def _no_picture(given: Any) -> ConfigError:
    return ConfigError(
        f"a picture is a {type(given).__name__}; give a path, a PIL picture or an array, a list of "
        "them, a folder, or a datasets.Dataset"
    )
