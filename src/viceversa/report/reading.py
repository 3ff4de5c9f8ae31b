"""Reads the files of a run folder: whatever cannot be read becomes a note on the page."""

from __future__ import annotations

import base64
import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

PICTURE_SIDE = 256  # pixels; larger pictures are shrunk, they are shown smaller still


def _read_text(run_dir: Path, name: str) -> tuple[str, list[str]]:
    try:
        return (run_dir / name).read_text(encoding="utf-8", errors="replace"), []
    except FileNotFoundError:
        return "", [f"{name} is missing."]
    except OSError as error:
        return "", [f"{name} cannot be read: {error.strerror}."]


def read_object(run_dir: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a YAML or JSON file, and notes on what is wrong with it."""
    text, notes = _read_text(run_dir, name)
    if notes:
        return {}, notes
    try:
        value = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    except (ValueError, yaml.YAMLError):
        return {}, [f"{name} cannot be read: it is cut off or damaged."]
    return (value, []) if isinstance(value, dict) else ({}, [f"{name} holds no fields."])


def read_lines(run_dir: Path, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a file of JSON lines, and notes on what is wrong with it."""
    text, notes = _read_text(run_dir, name)
    rows: list[dict[str, Any]] = []
    bad = 0
    for line in filter(str.strip, text.split("\n")):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad += 1
    if bad:
        lines = "1 line was" if bad == 1 else f"{bad} lines were"
        notes.append(f"{name}: {lines} cut off or damaged, and left out.")
    elif not rows and not notes:
        notes.append(f"{name} is empty.")
    return rows, notes


def section(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the mapping under `keys`, an empty one where there is none."""
    for key in keys:
        value = tree.get(key)
        tree = value if isinstance(value, dict) else {}
    return tree


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def decimals(value: Any, spec: str = ".3f") -> str:
    """Format a number; a dash where it is none."""
    known = number(value)
    return "–" if known is None else format(known, spec)


def plain(value: Any) -> str:
    """Return a value as text; a list as a command line."""
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)


def picture(run_dir: Path, name: Any) -> dict[str, Any]:
    """Return a picture of the run folder as a PNG data URI, or a note why there is none."""
    if not isinstance(name, str) or not name:
        return {"note": "no picture recorded"}
    try:
        path = (run_dir / name).resolve()
        if not path.is_relative_to(run_dir.resolve()):
            return {"note": f"{name} is outside the run folder: skipped"}
        if not path.is_file():
            return {"note": f"{name} is not there"}
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, RuntimeError, Image.DecompressionBombError):
        return {"note": f"{name} cannot be read as a picture"}
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    small = max(image.size) <= PICTURE_SIDE // 3
    if small:  # printers smooth what is enlarged, whatever the page's style says
        factor = PICTURE_SIDE // max(image.size)
        image = image.resize(
            (image.width * factor, image.height * factor), Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"uri": uri, "small": small, "size": image.size}


def shown(run_dir: Path, text: Any, image: Any) -> dict[str, Any]:
    """Return an input or output as text or picture; a caption of no words is still a text."""
    if isinstance(text, str):
        return {"text": text}
    return picture(run_dir, image)
