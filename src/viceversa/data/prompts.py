"""Prompts from a file or a hub dataset: one text a row, cleaned; every change and loss is named."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from viceversa.config import ConfigError, DataConfig
from viceversa.data.hub import PREFIX, check_reference, columns_of, load_hub
from viceversa.models.text import TextLimits, plain_text
from viceversa.types import Note, Unusable

COLUMNS = ("prompt", "text", "caption")
#: Duplicates are found among the first so many different prompts, to bound memory.
REMEMBERED = 1_000_000
#: Lines of JSON after which a reference column that none has had is taken for unknown.
LOOKED_AT = 1000
_BREAKS = re.compile(r"[ ]*[\t\n\x0b\x0c\r\x85]+[ ]*")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """One row of a file or dataset."""

    name: str
    """File or dataset, and number of the row."""
    text: Any
    """The prompt as it was read; an Unusable where it could not be."""
    reference: Any = None
    """The cell in `data.reference_column`."""


def clean_prompts(
    rows: Iterable[Row], limits: TextLimits
) -> Iterator[tuple[Row | None, list[Note]]]:
    """Yield each row with its text cleaned, None where it has to be left out; and what was done."""
    seen: set[bytes] = set()
    for row in rows:
        try:
            text, changes = _clean(row.text, limits)
            key = hashlib.blake2b(text.encode(), digest_size=8).digest()
            if key in seen:
                raise Unusable("duplicate")
            if len(seen) < REMEMBERED:
                seen.add(key)
        except Unusable as reason:
            yield None, [Note(row.name, reason.kind, True, reason.detail)]
        else:
            yield row._replace(text=text), [Note(row.name, kind, False) for kind in changes]


def _clean(cell: Any, limits: TextLimits) -> tuple[str, list[str]]:
    """Return the prompt and the kinds of change. Raises Unusable."""
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


def read_prompts(data: DataConfig) -> Iterator[Row]:
    """Yield every row, in order.

    Raises ConfigError where the whole cannot be read or lacks a column.
    """
    name = data.prompts
    if name.startswith(PREFIX):
        rows = _hub_rows(data)
    else:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"data.prompts is {name!r}; no such file (or write 'scenes')")
        rows = _reader(path)(path, data)
    try:
        for number, cells in enumerate(rows, start=1):
            yield Row(f"{name} row {number}", *cells)
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's derive from these
        if isinstance(error, ConfigError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"data.prompts is {name!r}; it cannot be read: {reason}") from error


# Each reader yields the cells of a row: the prompt and, where it is asked for, the reference.
Cells = Sequence[Any]


def _reader(path: Path) -> Callable[[Path, DataConfig], Iterator[Cells]]:
    """Choose a reader by the extension; a file without one is text."""
    kind = path.suffix.lower() or ".txt"
    if kind not in READERS:
        raise ConfigError(
            f"data.prompts is {str(path)!r}, a {kind} file; supported: {', '.join(READERS)}"
        )
    return READERS[kind]


def _text_rows(path: Path, data: DataConfig) -> Iterator[Cells]:
    check_reference(data, "prompts")
    for line in _lines(path):
        yield [line]


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError("it is UTF-16; save it as UTF-8")
    # what is not UTF-8 becomes lone surrogates, which the cleaning finds row by row
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _jsonl_rows(path: Path, data: DataConfig) -> Iterator[Cells]:
    """Read JSON lines. No row needs to have all columns, so the whole tells which there are."""
    column, reference = None, data.reference_column
    keys: set[str] = set()
    for number, line in enumerate(_lines(path)):
        if number == LOOKED_AT:
            check_reference(data, "prompts", sorted(keys))
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            yield [Unusable("not a JSON object")]
            continue
        keys.update(row)
        column = column or _prompt_column(row, data)
        yield [row.get(column) if column else None, row.get(reference) if reference else None]
    _columns(sorted(keys), data)


def _csv_rows(path: Path, data: DataConfig) -> Iterator[Cells]:
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file, strict=True)  # an open quote is an error, not one endless cell
        header = next(rows, [])
        places = [header.index(column) for column in _columns(header, data)]
        for row in rows:
            if row and len(row) != len(header):
                yield [Unusable("ragged row", f"{len(row)} cells, {len(header)} columns")]
            else:
                yield [row[place] for place in places] if row else [""]


def _parquet_rows(path: Path, data: DataConfig) -> Iterator[Cells]:
    with pq.ParquetFile(path) as file:
        columns = _columns(file.schema_arrow.names, data)
        for batch in file.iter_batches(columns=columns, batch_size=1024):
            yield from zip(*(batch[column].to_pylist() for column in columns), strict=True)


#: Files of prompts, by their endings, and who reads them.
READERS = {
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}


def _hub_rows(data: DataConfig) -> Iterator[Cells]:
    yield from dataset_cells(load_hub(data.prompts, data.streaming, "data.prompts"), data)


def cleaned(row: Row, limits: TextLimits) -> str:
    """Return one prompt as training cleans it. Raises ConfigError, naming it, for a bad one."""
    ((good, notes),) = clean_prompts([row], limits)
    if good is None:
        why = f"{notes[0].kind} {notes[0].detail}".strip()
        raise ConfigError(f"{row.name} is {str(row.text)[:80]!r}: {why}")
    return good.text


def dataset_cells(dataset: Any, data: DataConfig) -> Iterator[Cells]:
    """Yield each row's prompt and, where it is asked for, its reference.

    Raises ConfigError for a column that is not there.
    """
    columns = _columns(list(columns_of(dataset)), data)
    for row in dataset.select_columns(list(set(columns))):
        yield [row[column] for column in columns]


def _columns(names: Sequence[str], data: DataConfig) -> list[str]:
    """Return the column of prompts and, where one is asked for, that of references.

    Raises ConfigError where one is none of `names`.
    """
    column = _prompt_column(names, data)
    if column is None:
        wanted = data.prompt_column or ", ".join(COLUMNS)
        fix = ": rename one, or, to train, name it with data.prompt_column"
        fix = "" if data.prompt_column else fix
        raise ConfigError(
            f"data.prompts is {data.prompts!r}; it has columns {list(names)}, none of {wanted}{fix}"
        )
    check_reference(data, "prompts", names)
    return [column, data.reference_column] if data.reference_column else [column]


def _prompt_column(names: Container[str], data: DataConfig) -> str | None:
    wanted = [data.prompt_column] if data.prompt_column else COLUMNS
    return next((column for column in wanted if column in names), None)
