"""A folder a model: its name, the recipe that all in it follows, files that are whole or absent."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viceversa.config import ConfigError

if TYPE_CHECKING:
    from PIL import Image

RECIPE = "recipe.json"

#: Names of folders that say nothing of the run that they are in.
_PLAIN = re.compile(r"checkpoint-\d+|checkpoint|merged|model|final")


def folder_names(models: Sequence[str]) -> dict[str, str]:
    """Name a folder for each model, after its path: its last part, or two where one says little.

    Models that would have the same name are called by their whole paths. Raises ConfigError for a
    model that is given twice.
    """
    places = [place_of(model) for model in models]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"--model is {models[number]!r} twice; name each model once")
    split = [[part for part in re.split(r"[/\\]", place) if part] or ["model"] for place in places]
    short = [_joined(parts[-2 if _PLAIN.fullmatch(parts[-1]) else -1 :]) for parts in split]
    names = [
        _joined(parts) if short.count(name) > 1 else name
        for parts, name in zip(split, short, strict=True)
    ]
    for model, name in zip(models, names, strict=True):
        if names.count(name) > 1:
            raise ConfigError(f"--model is {model!r}; another's folder would have the same name")
    return dict(zip(models, names, strict=True))


def place_of(model: str) -> str:
    """Return where a model is: a folder's own path, links followed; another name as it is."""
    path = Path(model)
    return str(path.resolve()) if model != "builtin" and path.exists() else model


def _joined(parts: Sequence[str]) -> str:
    return re.sub(r"[^\w.-]", "-", "-".join(parts)).lstrip(".-") or "model"


def claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Note in a model's folder how all in it is made.

    Raises ConfigError, naming what differs, for a folder of another recipe, or with other files.
    """
    there = [p.name for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []
    path = folder / RECIPE
    if not path.is_file():
        if there:
            raise ConfigError(
                f"{folder} holds {min(there)!r}, but no recipe: choose another --output"
            )
        put(folder, RECIPE, (json.dumps(recipe, indent=1, ensure_ascii=False) + "\n").encode())
        return
    try:
        differ = differing(json.loads(path.read_text(encoding="utf-8")), recipe)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: choose another --output") from error
    if differ:
        raise ConfigError(f"{folder} follows another recipe ({differ}): choose another --output")


def differing(found: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Say what is different in another recipe; empty where nothing is."""
    keys = [key for key in {**found, **recipe} if found.get(key) != recipe.get(key)]
    return ", ".join(f"{key} {found.get(key)!r}, now {recipe.get(key)!r}" for key in keys)


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file below `folder`, whole or not at all.

    Its draft is hidden and lies in `folder` itself: scorers take every file beside a picture, also
    a hidden one, for a picture.
    """
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{os.environ.get('RANK', '0')}-{os.getpid()}"
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def put_picture(folder: Path, name: str, picture: Image.Image) -> None:
    """Write a PNG as `put` writes a file."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    put(folder, name, content.getvalue())


def text_of(path: Path, name: str = "--prompts") -> str:
    """Return a text file's content, line ends as they are.

    Raises ConfigError, naming the option, for none that can be read.
    """
    if not path.is_file():
        raise ConfigError(f"{name} is {str(path)!r}; there is no such file")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is {str(path)!r}; it is not UTF-8: save it as UTF-8") from error


def json_lines(path: Path, name: str = "--prompts") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each line's place, the line as it stands, and the object that it holds.

    Empty lines may stand at the end alone. Raises ConfigError, naming the option or the line, for a
    file that cannot be read and for a line that holds anything else.
    """
    for number, line in enumerate(without_tail(text_of(path, name).split("\n")), start=1):
        place, line = f"{path}, line {number}", line.rstrip("\r")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{place} is {line[:80]!r}, not JSON; it takes one object") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{place} is {line[:80]!r}; it takes an object")
        yield place, line, row


def without_tail(lines: Sequence[str]) -> Sequence[str]:
    """Return lines without the empty ones at the end."""
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines
