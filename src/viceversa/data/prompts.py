"""Prompts from a file or a hub dataset: one text a row, cleaned; every change and loss is named."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from viceversa.config import ConfigError, DataConfig
from viceversa.data.hub import PREFIX, columns_of, load_hub
from viceversa.models.text import TextLimits, plain_text
from viceversa.types import Note, Unusable

COLUMNS = ("prompt", "text", "caption")
#: Duplicates are found among the first so many different prompts, to bound memory.
REMEMBERED = 1_000_000
_BREAKS = re.compile(r"[ ]*[\t\n\x0b\x0c\r\x85]+[ ]*")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def clean_prompts(
    rows: Iterable[tuple[str, Any]], limits: TextLimits
) -> Iterator[tuple[str | None, list[Note]]]:
    """Of each (name, cell): the prompt, or None where it has to be left out, and what was done."""
    seen: set[bytes] = set()
    for name, cell in rows:
        try:
            text, changes = _clean(cell, limits)
            key = hashlib.blake2b(text.encode(), digest_size=8).digest()
            if key in seen:
                raise Unusable("duplicate")
            if len(seen) < REMEMBERED:
                seen.add(key)
        except Unusable as reason:
            yield None, [Note(name, reason.kind, True, reason.detail)]
        else:
            yield text, [Note(name, kind, False) for kind in changes]


def _clean(cell: Any, limits: TextLimits) -> tuple[str, list[str]]:
    """The prompt and the kinds of change. Raises Unusable."""
    if isinstance(cell, Unusable):
        raise cell
    if cell is None:
        raise Unusable("empty")
    if not isinstance(cell, str):
        raise Unusable("not text", f"it is of type {type(cell).__name__}")
    if _SURROGATE.search(cell):
        raise Unusable("broken characters", "not UTF-8")
    changes = []
    text = _CONTROL.sub("", cell)
    if text != cell:
        changes.append("control characters removed")
    one_line = _BREAKS.sub(" ", text.strip())
    if one_line != text.strip():
        changes.append("tabs and line breaks to spaces")
    text = one_line.strip()
    if all(unicodedata.category(c)[0] in "ZC" for c in text):
        raise Unusable("empty")
    plain = plain_text(text, limits.special_tokens)
    if plain != text:
        changes.append("special token broken up")
    tokens = limits.token_count(plain)
    if tokens > limits.tokens:
        raise Unusable("longer than the context", f"{tokens} tokens, room for {limits.tokens}")
    return plain, changes


def read_prompts(data: DataConfig) -> Iterator[tuple[str, Any]]:
    """(name, cell) of every row, in order; an unreadable row's cell is an Unusable.

    Raises ConfigError where the whole cannot be read or lacks the column.
    """
    name = data.prompts
    if name.startswith(PREFIX):
        cells = _hub_rows(data)
    else:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"data.prompts is {name!r}; no such file (or write 'scenes')")
        cells = _reader(path)(path, data)
    try:
        for number, cell in enumerate(cells, start=1):
            yield f"{name} row {number}", cell
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's derive from these
        if isinstance(error, ConfigError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"data.prompts is {name!r}; it cannot be read: {reason}") from error


def _reader(path: Path) -> Callable[[Path, DataConfig], Iterator[Any]]:
    """By the extension; a file without one is text."""
    readers = {
        ".txt": _text_rows,
        ".csv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".parquet": _parquet_rows,
    }
    kind = path.suffix.lower() or ".txt"
    if kind not in readers:
        raise ConfigError(
            f"data.prompts is {str(path)!r}, a {kind} file; supported: {', '.join(readers)}"
        )
    return readers[kind]


def _text_rows(path: Path, data: DataConfig) -> Iterator[str]:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16; save it as UTF-8")
    # what is not UTF-8 becomes lone surrogates, which the cleaning finds row by row
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _jsonl_rows(path: Path, data: DataConfig) -> Iterator[Any]:
    column = None
    keys: set[str] = set()
    for line in _text_rows(path, data):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield Unusable("not a JSON object")
            continue
        keys.update(row)
        column = column or _find_column(list(row), data.prompt_column)
        yield row.get(column) if column else None
    if column is None:
        raise _no_column(sorted(keys), data)


def _csv_rows(path: Path, data: DataConfig) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)  # an open quote is an error, not one endless cell
        header = next(rows, [])
        column = _find_column(header, data.prompt_column)
        if column is None:
            raise _no_column(header, data)
        place = header.index(column)
        for row in rows:
            ragged = row and len(row) != len(header)
            cells = f"{len(row)} cells, {len(header)} columns"
            yield Unusable("ragged row", cells) if ragged else (row[place] if row else "")


def _parquet_rows(path: Path, data: DataConfig) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        column = _find_column(file.schema_arrow.names, data.prompt_column)
        if column is None:
            raise _no_column(file.schema_arrow.names, data)
        for batch in file.iter_batches(columns=[column], batch_size=1024):
            yield from batch.column(0).to_pylist()


def _hub_rows(data: DataConfig) -> Iterator[Any]:
    yield from dataset_prompts(load_hub(data.prompts, data.streaming, "data.prompts"), data)


def dataset_prompts(dataset: Any, data: DataConfig) -> Iterator[Any]:
    """Yield the cells of the column of prompts. Raises ConfigError where there is none."""
    names = list(columns_of(dataset))
    column = _find_column(names, data.prompt_column)
    if column is None:
        raise _no_column(names, data)
    for row in dataset.select_columns([column]):
        yield row[column]


def _find_column(names: Sequence[str], wanted: str) -> str | None:
    return next((c for c in ([wanted] if wanted else COLUMNS) if c in names), None)


def _no_column(names: Sequence[str], data: DataConfig) -> ConfigError:
    wanted = data.prompt_column or ", ".join(COLUMNS)
    fix = "" if data.prompt_column else "; name one with data.prompt_column"
    return ConfigError(
        f"data.prompts is {data.prompts!r}; it has columns {list(names)}, none of {wanted}{fix}"
    )
