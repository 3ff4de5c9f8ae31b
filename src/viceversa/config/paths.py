"""Names of folders and files that options hold."""

from __future__ import annotations

import os
from pathlib import Path

from viceversa.config.checks import ConfigError

#: Bytes of a file's name: less than the 255 of most file systems, for what is added to it.
LONGEST_NAME = 200


def check_folder(text: str, name: str) -> Path:
    """Return the folder called `text`.

    Raises ConfigError, naming the option, where none can be made or written.
    """
    path = _usable_path(text, name)
    there = next(p for p in (path, *path.absolute().parents) if os.path.lexists(p))
    if not there.is_dir():
        raise ConfigError(f"{name} is {text!r}; {str(there)!r} is a file: choose a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} is {text!r}; {str(there)!r} cannot be written")
    return path


def check_file(path: Path, name: str) -> None:
    """Raise ConfigError, naming the option, where no file of that name can be written."""
    if path.is_dir():
        raise ConfigError(f"{name} is {str(path)!r}, a folder; name a file")
    check_folder(str(path.parent), name)
    _usable_path(str(path), name)


def _usable_path(text: str, name: str) -> Path:
    """Return `text` as a path. Raises ConfigError where no file system or text file takes it."""
    path = Path(text)
    if not text.strip():
        raise ConfigError(f"{name} is {text!r}; it takes a name")
    if "\0" in text or text.encode(errors="replace").decode() != text:
        raise ConfigError(f"{name} is {text!r}; it holds characters that no name can have")
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ConfigError(f"{name} is {text!r}; choose a name of at most {LONGEST_NAME} bytes")
    return path
