"""Python objects of the user's: imported by their name, and named where they fail."""

from __future__ import annotations

import importlib
import operator
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from viceversa.config.checks import ConfigError

#: Where no code of the user's lies, unless it is installed.
LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)


def load_object(name: str, path: str, known: Iterable[str] = ()) -> Any:
    """Import what `package.module:object` names, also from the current folder.

    Raises ConfigError, naming the option, where there is no such thing.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(
            f"{name} is {path!r}; choose one of {', '.join(known)}, or package.module:object"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` has it
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} is {path!r}; it cannot be imported: {error}") from error


def blame(error: Exception, reward: str, direction: str) -> None:
    """Add a note that says which reward raised an error, and the file and line of the user's code.

    For the function that called it, whose frame is the first of the traceback.
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [f for f in frames if not f.filename.startswith(LIBRARIES)] or frames
    where = f", at {own[-1].filename}, line {own[-1].lineno}" if own else ""
    error.add_note(f"reward {reward} failed on {direction} outputs{where}")


def blamed(error: BaseException) -> str | None:
    """Return what `blame` noted; None for an error that no reward of the user's raised."""
    notes = getattr(error, "__notes__", ())
    return next((note for note in notes if note.startswith("reward ")), None)
