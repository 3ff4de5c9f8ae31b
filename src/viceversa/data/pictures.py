"""Pictures from a folder tree, webdataset shards or a dataset: found, checked, and decoded late.

A picture is held as a reference (`Ref`) until it is needed. Whatever cannot be used is named with
the kind of trouble, and so is whatever is changed beyond its size.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
import random
import re
import stat
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageFile
from rich.console import Console
from rich.progress import track

from viceversa.config import ConfigError, DataConfig
from viceversa.data.cache import DiskCache
from viceversa.data.hub import PREFIX, columns_of, load_hub
from viceversa.types import Note, Unusable

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
#: What stands beside pictures, and is left alone unmentioned.
SIDECARS = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".xml", ".yaml", ".cls"}
#: A member of such an archive cannot be read where it lies.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z")
#: Not every format of Pillow: some run programs (EPS), some take any bytes for a picture (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
SMALLEST = 8  # pixels of the shorter side
THINNEST = 8  # longer side over shorter: the crop would leave an eighth
LARGEST_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
LARGEST_BYTES = 1 << 29
#: Part of the key of a verdict: a new rule or decoder checks again.
RULES = f"1/{PIL.__version__}/{SMALLEST}/{THINNEST}/{LARGEST_PIXELS}"
#: May be over by the next run, though the file is the same.
PASSING = {"no permission", "unreadable file", "broken link"}
_BATCH = 512  # pictures between writes of verdicts
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# One picture: bytes to pixels.


def open_picture(content: bytes) -> tuple[Image.Image, list[str]]:
    """The picture upright in RGB, and the kinds of change made. Raises Unusable."""
    if not content:
        raise Unusable("empty file")
    Image.init()
    try:
        image = Image.open(io.BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise Unusable("decompression bomb", str(error)) from error
    except Exception as error:  # hostile headers raise nearly anything
        raise Unusable("not a picture", f"{type(error).__name__}: {error}") from error
    _check_size(image)
    changes: list[str] = []
    try:
        deep = _deep(image)
        turned = image.getexif().get(0x0112) in _TURNS
        image.load()
        upright = _upright(image)
        if turned:
            changes.append("rotated by EXIF")
        changes += ["16-bit scaled"] if deep else []
        rgb, more = _to_rgb(upright)
        if _animated(image):
            more.append("first frame")
        return rgb, changes + more
    except Unusable:
        raise
    except Exception as error:  # as hostile as headers
        short = isinstance(error, EOFError) or "truncated" in str(error).lower()
        kind = "truncated" if short else "damaged"
        raise Unusable(kind, f"{type(error).__name__}: {error}") from error


def _check_size(image: Image.Image) -> None:
    """Before decoding: the header says how large a picture is, and a bomb is not set off."""
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise Unusable("decompression bomb", f"{width} x {height} pixels")
    if min(width, height) < SMALLEST:
        thin = max(width, height) >= SMALLEST
        raise Unusable("too thin" if thin else "too small", f"{width} x {height} pixels")
    if max(width, height) > THINNEST * min(width, height):
        raise Unusable("too thin", f"{width} x {height} pixels")


def _deep(image: Image.Image) -> bool:
    """16 bits a channel. Pillow itself scales such colour, but clips such grey."""
    return (
        image.mode.startswith("I;16")
        or ";16" in str(getattr(image, "tile", ""))
        or _deep_pgm(image)
    )


def _deep_pgm(image: Image.Image) -> bool:
    return image.mode == "I" and image.format == "PPM"  # scaled to 16 bits by the reader


def _upright(image: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose, which writes the EXIF again and fails where that is broken;
    # TIFF has been turned by its reader, and says so
    turn = _TURNS.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001
        return True  # later frames are broken, the first is not


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """8-bit RGB, transparent parts white, and the kinds of change made. Raises Unusable."""
    if image.mode.startswith("I;16") or _deep_pgm(image):
        grey = (np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8)
        inverted = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF's WhiteIsZero
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB"), []
    if image.mode in ("I", "F"):
        raise Unusable("32-bit pixels", "their range is unknown: convert to 8 or 16 bits")
    kinds = {"CMYK": ["CMYK converted"], "P": ["palette converted"], "PA": ["palette converted"]}
    changes = kinds.get(image.mode, [])
    if not image.has_transparency_data:
        return image.convert("RGB"), list(changes)
    rgba = image.convert("RGBA")
    low, high = rgba.getchannel("A").getextrema()
    if high == 0:
        raise Unusable("fully transparent")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB"), [*changes, *(["alpha on white"] if low != 255 else [])]


def to_pixels(image: Image.Image, size: int, crop: str) -> torch.Tensor:
    """An RGB picture made square by `crop` (see config) and resized: uint8 [3, size, size]."""
    if crop == "center":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
    else:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


# References: where a picture is.


@dataclass(frozen=True, slots=True)
class FileRef:
    path: str

    @property
    def name(self) -> str:
        return printable(self.path)

    def identity(self) -> str | None:
        """What a verdict holds for; None where there is nothing to be sure of."""
        try:
            found = Path(self.path).stat()
        except OSError:
            return None
        return f"{self.name}/{found.st_size}/{found.st_mtime_ns}"

    def read(self) -> bytes:
        try:
            found = Path(self.path).stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise Unusable("not a file")
            if found.st_size > LARGEST_BYTES:
                raise Unusable("file too large", f"{found.st_size} bytes")
            return Path(self.path).read_bytes()
        except PermissionError as error:
            raise Unusable("no permission") from error
        except OSError as error:
            kind = "broken link" if Path(self.path).is_symlink() else "unreadable file"
            raise Unusable(kind, error.strerror or "") from error


@dataclass(frozen=True, slots=True)
class ShardRef:
    """A member of a .tar, read where it lies."""

    shard: FileRef
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{printable(self.member)}"

    def identity(self) -> str | None:
        shard = self.shard.identity()
        return shard and f"{shard}/{self.offset}/{self.size}"

    def read(self) -> bytes:
        if self.size > LARGEST_BYTES:
            raise Unusable("file too large", f"{self.size} bytes")
        try:
            with Path(self.shard.path).open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise Unusable("unreadable file", error.strerror or "") from error


@dataclass(frozen=True, slots=True)
class RowRef:
    """A cell of a dataset, by its place (`dataset`) or, where streaming, by its content."""

    label: str
    row: int
    column: str
    dataset: Any = None
    content: Any = None

    @property
    def name(self) -> str:
        return f"{self.label} row {self.row + 1}"

    def identity(self) -> str | None:
        fingerprint = getattr(self.dataset, "_fingerprint", None)
        return fingerprint and f"{fingerprint}/{self.column}/{self.row}"

    def read(self) -> bytes:
        cell = self.content if self.dataset is None else self.dataset[self.row][self.column]
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        if isinstance(cell, str):
            return _fetch(cell) if "://" in cell else FileRef(cell).read()
        if not isinstance(cell, bytes):
            raise Unusable("empty file" if cell is None else "not a picture")
        return cell


@dataclass(frozen=True, slots=True)
class MemoryRef:
    """A picture in memory, as the bytes of a PNG: read as a file is."""

    name: str
    content: bytes

    def identity(self) -> str | None:
        """Return nothing: what is in memory is checked again each time."""
        return None

    def read(self) -> bytes:
        return self.content


Ref = FileRef | ShardRef | RowRef | MemoryRef


def _fetch(url: str) -> bytes:
    """A file of a dataset that is streamed from the hub or out of an archive."""
    import fsspec  # comes with datasets

    try:
        with fsspec.open(url, "rb") as file:
            return file.read(LARGEST_BYTES)  # type: ignore[attr-defined]
    except Exception as error:  # every file system has its own
        raise Unusable("unreadable file", f"{type(error).__name__}: {error}") from error


def printable(path: str) -> str:
    """A file name as text: bytes that are not UTF-8, and control characters, are spelled out."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_pictures(data: DataConfig, shuffle: random.Random | None = None) -> Iterator[Ref | Note]:
    """Every picture of `data.images`, in an order that depends on the names alone.

    With `shuffle`, files and shards come shuffled (a shard's members and a dataset's rows do not:
    they are read in order). Raises ConfigError where there is nothing to look through.
    """
    name = data.images
    if name.startswith(PREFIX):
        dataset = load_hub(name, data.streaming, "data.images")
        yield from dataset_rows(dataset, name, data)
        return
    if name.lower().endswith(COMPRESSED):
        raise ConfigError(f"data.images is {name!r}; shards are plain .tar: decompress it")
    if name.endswith(".tar"):
        found: list[FileRef | Note] = [FileRef(path) for path in expand_shards(name)]
    elif Path(name).is_dir():
        found = sorted(_walk(name), key=_place)
    else:
        raise ConfigError(f"data.images is {name!r}; no such folder (or write 'scenes')")
    if shuffle is not None:
        shuffle.shuffle(found)
    for entry in found:
        if isinstance(entry, FileRef) and entry.path.endswith(".tar"):
            yield from _members(entry)
        else:
            yield entry


def _place(entry: FileRef | Note) -> tuple[str, ...]:
    return Path(entry.path if isinstance(entry, FileRef) else entry.name).parts


def expand_shards(pattern: str) -> list[str]:
    """Files that a name with `{000..012}`, `{a,b}` or `*` stands for. Raises ConfigError."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces:
        inner = braces[1]
        span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
        if span:
            low, high = span.groups()
            choices = [f"{n:0{len(low)}d}" for n in range(int(low), int(high) + 1)]
        else:
            choices = inner.split(",")
        head, tail = pattern[: braces.start()], pattern[braces.end() :]
        return [path for choice in choices for path in expand_shards(head + choice + tail)]
    found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))  # noqa: PTH207
    if not found:
        raise ConfigError(f"data.images: there is no shard {pattern!r}")
    return found


def _walk(root: str) -> Iterator[FileRef | Note]:
    """Files of a tree that may be pictures or shards. Links are followed, each folder read once."""
    read: set[tuple[int, int]] = set()
    errors: list[OSError] = []
    for folder, below, files in os.walk(root, onerror=errors.append, followlinks=True):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in read:
            below.clear()
            yield Note(printable(folder), "link to a folder already read", True)
            continue
        read.add((here.st_dev, here.st_ino))
        below.sort()
        for name in below:
            if Path(name).suffix.lower() in SUFFIXES:
                full = str(Path(folder) / name)
                yield Note(printable(full), "not a file", True, "a folder; its files are read")
        for name in files:
            full = str(Path(folder) / name)
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES or suffix in ("", ".tar"):
                yield FileRef(full)
            elif name.lower().endswith(COMPRESSED):
                yield Note(printable(full), "compressed archive", True, "shards are plain .tar")
            elif suffix not in SIDECARS:
                yield Note(printable(full), "unsupported extension", True)
    for error in errors:
        yield Note(printable(str(error.filename)), "no permission", True, error.strerror or "")


def _members(shard: FileRef) -> Iterator[ShardRef | Note]:
    """The pictures of a shard, by reading its headers alone; a cut shard gives what it has."""
    try:
        with tarfile.open(shard.path, "r:") as tar:
            while (member := tar.next()) is not None:
                suffix = Path(member.name).suffix.lower()
                if not member.isreg() or suffix in SIDECARS:
                    continue
                if suffix in SUFFIXES or suffix == "":
                    yield ShardRef(shard, member.name, member.offset_data, member.size)
                else:
                    name = f"{shard.name}/{printable(member.name)}"
                    yield Note(name, "unsupported extension", True)
                tar.members = []  # type: ignore[attr-defined]  # or it keeps them all
            with Path(shard.path).open("rb") as file:
                file.seek(tar.offset)
                if file.read(512) != bytes(512):  # tarfile does not mind a missing end
                    yield Note(shard.name, "truncated shard", True)
    except (tarfile.TarError, OSError, ValueError) as error:
        yield Note(shard.name, "truncated shard", True, str(error))


def dataset_rows(dataset: Any, label: str, data: DataConfig) -> Iterator[RowRef]:
    """Yield a reference to each row's picture. Raises ConfigError where no column holds any."""
    import datasets

    features = columns_of(dataset)
    pictures = [c for c, feature in features.items() if isinstance(feature, datasets.Image)]
    column = data.image_column or next(iter(pictures), "")
    if column not in features:
        raise ConfigError(
            f"data.images is {label!r}; it has columns {list(features)}, "
            f"{f'no {column!r}' if column else 'none of pictures: name one with data.image_column'}"
        )
    dataset = dataset.select_columns([column])
    if column in pictures:
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    if not hasattr(dataset, "__len__"):  # a stream
        for row, cells in enumerate(dataset):
            yield RowRef(label, row, column, content=cells[column])
    else:
        for row in range(len(dataset)):
            yield RowRef(label, row, column, dataset)


# Reading references.


def read_picture(ref: Ref | Note, size: int, crop: str) -> tuple[torch.Tensor | None, list[Note]]:
    """Pixels [3, size, size] uint8, or None where the picture cannot be used, and what was done."""
    if isinstance(ref, Note):
        return None, [ref]
    with _quiet_pillow():
        image, notes = _attempt(ref)
    return None if image is None else to_pixels(image, size, crop), notes


def _attempt(ref: Ref) -> tuple[Image.Image | None, list[Note]]:
    try:
        image, changes = open_picture(ref.read())
    except Unusable as reason:
        return None, [Note(ref.name, reason.kind, True, reason.detail)]
    return image, [Note(ref.name, kind, False) for kind in changes]


def check_pictures(
    refs: Sequence[Ref | Note], cache: DiskCache, console: Console | None = None
) -> Iterator[tuple[Ref | Note, list[Note]]]:
    """Decode every picture once, or take the verdict of an earlier run; a Note is its own verdict.

    `usable` says whether a picture with these notes can be used.
    """
    starts = range(0, len(refs), _BATCH)
    terminal = console is not None and console.is_terminal
    shown = track(
        starts, "checking pictures", console=console, transient=True, disable=not terminal
    )
    # threads: Pillow decodes without the interpreter's lock
    with ThreadPoolExecutor() as pool:
        for start in shown:
            some = refs[start : start + _BATCH]
            with _quiet_pillow():
                found = _verdicts(some, cache, pool)
            yield from zip(some, found, strict=True)


def _verdicts(
    refs: Sequence[Ref | Note], cache: DiskCache, pool: ThreadPoolExecutor
) -> list[list[Note]]:
    keys = [None if isinstance(r, Note) else _verdict_key(r) for r in refs]
    known = cache.get([k for k in keys if k is not None])
    fresh: dict[bytes, bytes] = {}

    def judge(ref: Ref | Note, key: bytes | None) -> list[Note]:
        if isinstance(ref, Note):
            return [ref]
        if key in known:
            return [Note(ref.name, *fields) for fields in json.loads(known[key])]
        notes = _attempt(ref)[1]
        if key is not None and not any(n.kind in PASSING for n in notes):
            fields = [(n.kind, n.skipped, n.detail) for n in notes]
            fresh[key] = json.dumps(fields).encode()
        return notes

    found = list(pool.map(judge, refs, keys))
    cache.put(fresh)
    return found


def _verdict_key(ref: Ref) -> bytes | None:
    identity = ref.identity()
    return hashlib.sha256(f"{RULES}/{identity}".encode()).digest() if identity else None


def usable(notes: Iterable[Note]) -> bool:
    return not any(n.skipped for n in notes)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """No warnings for what is named and counted here; no half-decoded pictures passed for whole."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_numpy(pixels: torch.Tensor) -> np.ndarray:
    """Turn uint8 [B, 3, H, W] into [B, H, W, 3] on the CPU."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
