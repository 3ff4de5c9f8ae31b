"""Where pictures are: files of a folder tree, members of webdataset shards, rows of a dataset.

Pictures are found by name, and read when they are asked for.
"""

from __future__ import annotations

import glob
import itertools
import os
import random
import re
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viceversa.config import ConfigError, DataConfig
from viceversa.data.hub import PREFIX, check_reference, columns_of, load_hub
from viceversa.types import Note, Unusable

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2"),
}
#: Files beside pictures, which are left alone without a word.
SIDECARS = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md", ".xml", ".yaml", ".cls"}
#: A member of such an archive cannot be read where it lies.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z")
LARGEST_BYTES = 1 << 29


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file."""

    path: str

    @property
    def name(self) -> str:
        return printable(self.path)

    def identity(self) -> str | None:
        """Return the key that a verdict is kept by; None where there is nothing to be sure of."""
        try:
            status = Path(self.path).stat()
        except OSError:
            return None
        return f"{self.name}/{status.st_size}/{status.st_mtime_ns}"

    def read(self) -> bytes:
        """Return the file's bytes. Raises Unusable."""
        try:
            status = Path(self.path).stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
                raise Unusable("not a file")
            if status.st_size > LARGEST_BYTES:
                raise Unusable("file too large", f"{status.st_size} bytes")
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
    reference: Any = None
    """The row's cell in `data.reference_column`."""

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
    """Read a file of a dataset that is streamed from the hub or out of an archive."""
    import fsspec  # comes with datasets

    try:
        with fsspec.open(url, "rb") as file:
            return file.read(LARGEST_BYTES)  # type: ignore[attr-defined]
    except Exception as error:  # every file system has its own
        raise Unusable("unreadable file", f"{type(error).__name__}: {error}") from error


def printable(path: str) -> str:
    """Return a file name as text: bytes that are not UTF-8 and control characters spelled out."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def find_pictures(data: DataConfig, shuffle: random.Random | None = None) -> Iterator[Ref | Note]:
    """Yield every picture of `data.images`, in an order that depends on the names alone.

    With `shuffle`, files and shards come shuffled; a shard's members and a dataset's rows do not.
    Raises ConfigError where there is nothing to look through, and for an unknown column.
    """
    name = data.images
    if name.startswith(PREFIX):
        dataset = load_hub(name, data.streaming, "data.images")
        yield from dataset_rows(dataset, name, data)
        return
    check_reference(data, "images")
    if name.lower().endswith(COMPRESSED):
        raise ConfigError(f"data.images is {name!r}; shards are plain .tar: decompress it")
    if name.lower().endswith(".tar"):
        entries: list[FileRef | Note] = [FileRef(path) for path in expand_shards(name)]
    elif Path(name).is_dir():
        entries = sorted(_walk(name), key=_place)
    else:
        raise ConfigError(f"data.images is {name!r}; no such folder (or write 'scenes')")
    if shuffle is not None:
        shuffle.shuffle(entries)
    for entry in entries:
        if isinstance(entry, FileRef) and entry.path.lower().endswith(".tar"):
            yield from _members(entry)
        else:
            yield entry


def _place(entry: FileRef | Note) -> tuple[str, ...]:
    return Path(entry.path if isinstance(entry, FileRef) else entry.name).parts


def expand_shards(pattern: str) -> list[str]:
    """List the files that a name with `{000..012}`, `{a,b}` or `*` stands for.

    Raises ConfigError where there is none.
    """
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
    paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))  # noqa: PTH207
    if not paths:
        raise ConfigError(f"data.images: there is no shard {pattern!r}")
    return paths


def _walk(root: str) -> Iterator[FileRef | Note]:
    """Yield files of a tree that may be pictures or shards, and a Note for every other one.

    Links are followed, each folder is read once.
    """
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
    """Yield the pictures of a shard, by its headers alone; a cut shard gives what it has."""
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
    """Yield a reference to each row's picture, with its cell of `data.reference_column`.

    Raises ConfigError where no column holds pictures, and for an unknown column.
    """
    import datasets

    features = columns_of(dataset)
    pictures = [c for c, feature in features.items() if isinstance(feature, datasets.Image)]
    column, reference = data.image_column or next(iter(pictures), ""), data.reference_column
    if column not in features:
        raise ConfigError(
            f"data.images is {label!r}; it has columns {list(features)}, "
            f"{f'no {column!r}' if column else 'none of pictures: name one with data.image_column'}"
        )
    check_reference(data, "images", features)
    if column in pictures:
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    if not hasattr(dataset, "__len__"):  # a stream
        wanted = [name for name in features if name in (column, reference)]
        for row, cells in enumerate(dataset.select_columns(wanted)):
            yield RowRef(label, row, column, None, cells[column], cells.get(reference))
    else:
        references = dataset[reference] if reference else itertools.repeat(None)
        dataset = dataset.select_columns([column])
        for row, value in zip(range(len(dataset)), references, strict=False):
            yield RowRef(label, row, column, dataset, reference=value)
