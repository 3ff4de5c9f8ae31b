"""Reads the files of a run folder: what is missing or cut becomes a note on the page.

Whole lines and objects are as a run writes them.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from viceversa.files import read_rows

DIRECTIONS = {"t2i": "prompt to picture", "i2t": "picture to caption"}


def read_object(run_dir: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a YAML or JSON file, and notes on what is wrong with it."""
    try:
        text = (run_dir / name).read_text(encoding="utf-8", errors="replace")
        value = yaml.safe_load(text) if name.endswith(".yaml") else json.loads(text)
    except FileNotFoundError:
        return {}, [f"{name} is missing."]
    except (ValueError, yaml.YAMLError):
        return {}, [f"{name} cannot be read: it is cut off or damaged."]
    return (value, []) if isinstance(value, dict) else ({}, [f"{name} holds no fields."])


def read_lines(run_dir: Path, name: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a file of JSON lines, and notes on what is wrong with it."""
    rows, bad = read_rows(run_dir / name)
    if bad:
        lines = "1 line was" if bad == 1 else f"{bad} lines were"
        return rows, [f"{name}: {lines} cut off or damaged, and left out."]
    if not rows:
        return [], [f"{name} is {'empty' if (run_dir / name).exists() else 'missing'}."]
    return rows, []


def section(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the mapping under `keys`, an empty one where there is none."""
    for key in keys:
        tree = tree.get(key) or {}
    return tree


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def decimals(value: Any, spec: str = ".3f") -> str:
    """Format a number; a dash where it is none."""
    known = number(value)
    return "–" if known is None else format(known, spec)


def plain(value: Any) -> str:
    """Return a value as text; a list as a command line."""
    return shlex.join(map(str, value)) if isinstance(value, list) else str(value)
