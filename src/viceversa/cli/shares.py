"""What commands that make many outputs have in common: shares of processes, records of lines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from viceversa.files import read_rows


def is_first() -> bool:
    """Tell whether this is the first process, the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def share(made: Sequence[bool], at_once: int) -> list[range]:
    """Return the stretches of missing inputs that this process has to make, `at_once` at most."""
    rank, count = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    found = []
    for start in range(0, len(made), at_once)[rank::count]:
        block = range(start, min(start + at_once, len(made)))
        for done, places in groupby(block, made.__getitem__):
            first, *rest = places
            found += [] if done else [range(first, first + 1 + len(rest))]
    return found


def made_rows(record: Path, key: str) -> dict[int, dict[str, Any]]:
    """Return the rows of a record that have `key`, by number; a line that was cut is none."""
    rows, _ = read_rows(record)
    return {row["number"]: row for row in rows if {"number", key} <= row.keys()}


def end_line(record: Path) -> None:
    """End a line that a kill has cut, so that the next one is whole."""
    if record.is_file() and not record.read_bytes().endswith(b"\n"):
        add(record, "\n")


def add(record: Path, lines: str) -> None:
    """Add whole lines in one write: processes may add to a record side by side."""
    with record.open("ab") as file:
        file.write(lines.encode())
