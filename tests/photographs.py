"""Pictures on the disk, and what was read of them."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import hostile
from viceversa.config import Config
from viceversa.data.sources import Source, load_images
from viceversa.types import Example

#: Side that pictures are read at, pixels.
SIZE = 16


def kinds(source: Source) -> Counter[str]:
    return Counter(note.kind for note in source.notes)


def load(config: Config) -> Source:
    return load_images(config, SIZE)


def save(path: Path, size: tuple[int, int] = (20, 20), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def save_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def solid(colour: str) -> bytes:
    return hostile.encoded(Image.new("RGB", (20, 20), colour), "png")


def colours(examples: Sequence[Example]) -> list[int]:
    """The brightest channel of each."""
    means = [e.pixels.float().mean((1, 2)) for e in examples if e.pixels is not None]
    return [int(m.argmax()) for m in means]
