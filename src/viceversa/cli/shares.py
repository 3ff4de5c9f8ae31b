"""What commands that make many outputs have in common: shares of processes, records of lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from viceversa.benchmarks.folders import differing
from viceversa.cli.console import console
from viceversa.config import ConfigError
from viceversa.files import read_rows

if TYPE_CHECKING:
    from viceversa.api.model import Model

#: Inputs that are worked on together, and then written.
AT_ONCE = 8


def say(line: str) -> None:
    """Print a line, in one of several processes."""
    if os.environ.get("RANK", "0") == "0":
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def share(
    made: Container[int],
    count: int,
    title: str,
    model: str,
    make: Callable[[Model, list[int]], None],
    check: Callable[[Model], None] | None = None,
) -> None:
    """Make those of `count` inputs that are not among `made`, a few at once, under a bar.

    An input belongs to one process by its number, whatever each of them finds made. Where any is
    left, the model is loaded, in bfloat16 on a GPU and in float32 on a CPU, and `check` is called
    before any work.
    """
    rank, processes = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    todo = [i for i in range(rank, count, processes) if i not in made]
    if not todo:
        return
    from viceversa.api.model import load
    from viceversa.models import usual_dtype

    loaded = load(model, dtype=usual_dtype())
    if check is not None:
        check(loaded)
    blocks = [todo[start : start + AT_ONCE] for start in range(0, len(todo), AT_ONCE)]
    for some in track(blocks, title, console=console, disable=rank != 0, transient=True):
        make(loaded, some)


def fill(
    record: Path,
    items: Sequence[str],
    key: str,
    recipe: dict[str, Any],
    model: str,
    make: Callable[[Model, list[int]], list[dict[str, Any]]],
    check: Callable[[Model], None] | None = None,
) -> None:
    """Add to `record` the line of each input that it lacks; what is there is not made again.

    A line holds the input's number, the input under `key`, what `make` returns of it, and the
    recipe. Also made again are inputs of which a file is gone. `model`, `make` and `check` are as
    `share` takes them. Raises ConfigError where `record` holds outputs of other inputs, or by
    another recipe.
    """
    rows = rows_of(record, key)
    for number, row in rows.items():
        if number >= len(items) or items[number] != row[key]:
            raise ConfigError(
                f"{record} holds outputs of other inputs ({row[key]!r}): choose another --output"
            )
        if differ := differing(row.get("recipe", {}), recipe):
            raise ConfigError(
                f"{record} holds outputs by another recipe ({differ}): choose another --output"
            )
    whole = {
        number
        for number, row in rows.items()
        if all((record.parent / name).is_file() for name in row.get("files", ()))
    }
    more = {"recipe": recipe} if recipe else {}

    def write(loaded: Model, some: list[int]) -> None:
        made = zip(some, make(loaded, some), strict=True)
        lines = [
            json.dumps({"number": i, key: items[i], **row, **more}, ensure_ascii=False) + "\n"
            for i, row in made
            if i not in rows
        ]
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("ab") as file:  # in one write: processes may add side by side
            file.write("".join(lines).encode())

    if record.is_file() and not record.read_bytes().endswith(b"\n"):
        with record.open("ab") as file:
            file.write(b"\n")  # a kill has cut the last line
    share(whole, len(items), record.stem, model, write, check)


def rows_of(record: Path, key: str) -> dict[int, dict[str, Any]]:
    """Return the rows of a record that have `key`, by number; a line that was cut is none."""
    rows, _ = read_rows(record)
    return {row["number"]: row for row in rows if {"number", key} <= row.keys()}
