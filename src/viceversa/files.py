"""Files of a run: written whole or not at all; lines appended; why a folder cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any


class StorageError(RuntimeError):
    """The run folder can no longer be written. The message is one line that says why."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, on the disk when this returns; a reader finds the old content or the new.

    Raises OSError, and leaves the old content as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a file of JSON lines, and how many lines are no row: cut, or not JSON."""
    if not path.exists():
        return [], 0
    rows: list[dict[str, Any]] = []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.split("\n") if line.strip()]
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows, len(lines) - len(rows)


def storage_trouble(error: BaseException, folder: Path) -> str | None:
    """Say in a few words why `folder` cannot be written; None where `error` is of another kind.

    safetensors and torch hide what the system said: it is a number in the text, or nothing, and
    then the folder itself is tried.
    """
    gone = not folder.is_dir()
    if isinstance(error, OSError) and error.strerror and not (gone and error.errno == errno.ENOENT):
        return f"{error.strerror}: {error.filename or folder}"
    if gone:
        return f"{folder} is gone"
    if said := re.search(r"\(os error (\d+)\)", str(error)):
        return f"{os.strerror(int(said[1]))}: {folder}"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
    except OSError as found:
        return f"{found.strerror}: {folder}"
    return None
