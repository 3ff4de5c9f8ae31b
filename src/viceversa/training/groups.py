"""Writes groups of outputs into the run folder: a row of JSON each, pictures as files beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from viceversa.data.pictures import to_numpy
from viceversa.files import write_whole
from viceversa.types import Example, ScoredRollout


def png(pixels: Any) -> bytes:
    """Encode [H, W, 3] uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_picture(out: Path, name: str, pixels: Tensor) -> str:
    """Write [3, H, W] uint8 into the run folder `out`, and return its name there."""
    path = out / name
    path.parent.mkdir(exist_ok=True)  # not of a run that is gone
    write_whole(path, png(to_numpy(pixels.unsqueeze(0))[0]))
    return name


def save_input(out: Path, name: str, example: Example) -> dict[str, Any]:
    """Return what a row tells of an input: its text, or its picture, which is written."""
    row: dict[str, Any] = {"direction": example.direction}
    kind = getattr(example.reference, "kind", None)
    if isinstance(kind, str):  # of the built-in world
        row["kind"] = kind
    if example.direction == "t2i":
        row["input_text"] = example.text
    elif example.pixels is not None:
        row["input_image"] = save_picture(out, name, example.pixels)
    return row


def save_group(out: Path, name: str, step: int, scored: ScoredRollout, p: int) -> dict[str, Any]:
    """Write the pictures of input `p` and of all its outputs; return the row that tells of them.

    `name` is what the names of its pictures start with. Outputs are in the order of sampling.
    """
    sampled, group = scored.rollout, scored.rollout.group_size
    example = sampled.examples[p]
    row: dict[str, Any] = {
        "step": step,
        **save_input(out, f"{name}-input.png", example),
        "example_id": example.example_id,
        "group_size": group,
        "rewards": [round(float(r), 5) for r in scored.rewards[p]],
    }
    row["outputs"] = [_output(out, f"{name}-{k}.png", scored, p, k) for k in range(group)]
    return row


def _output(out: Path, name: str, scored: ScoredRollout, p: int, k: int) -> dict[str, Any]:
    sampled, row = scored.rollout, p * scored.rollout.group_size + k
    entry: dict[str, Any] = {"reward": float(scored.rewards[p, k])}
    entry["right"] = None if scored.right is None else bool(scored.right[p, k])
    if sampled.pixels is not None:
        entry["image"] = save_picture(out, name, sampled.pixels[row])
    elif sampled.direction == "t2i":
        ids = sampled.completions.completion_ids[row].tolist()
        entry["text"] = f"image ids {' '.join(map(str, ids))}"
    else:
        entry["text"] = sampled.texts[row]
    return entry
