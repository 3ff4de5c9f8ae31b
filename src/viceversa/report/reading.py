"""Reads the files of a run folder: whatever cannot be read becomes a note on the page."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import yaml

DIRECTIONS = {"t2i": "prompt to picture", "i2t": "picture to caption"}


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
