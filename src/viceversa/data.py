"""Prompts and pictures: the built-in world, or the user's files. What is unreadable is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from viceversa.config import Config, ConfigError
from viceversa.scenes import KINDS, SIZE, Spec, caption, draw_specs, render
from viceversa.types import Direction, Example

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
PROMPT_COLUMNS = ("prompt", "text", "caption")


def examples_of(direction: Direction, specs: Sequence[Spec]) -> list[Example]:
    """Specs as prompts, or as pictures; the spec rides along as the label."""
    if direction == "t2i":
        return [Example(i, "t2i", text=caption(s), reference=s) for i, s in enumerate(specs)]
    return [Example(i, "i2t", pixels=picture(s), reference=s) for i, s in enumerate(specs)]


def picture(spec: Spec) -> torch.Tensor:
    """uint8 [3, H, W]."""
    return torch.from_numpy(render(spec)).permute(2, 0, 1).contiguous()


@dataclass
class Source:
    """Inputs of one direction, with what had to be left out and why."""

    examples: list[Example]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason)."""


def load_sources(config: Config, image_size: int) -> dict[Direction, Source]:
    """The inputs of each direction that the schedule needs.

    Raises ConfigError for a missing or empty file or folder.
    """
    sources: dict[Direction, Source] = {}
    used = (config.data.prompts, config.data.images)
    if "scenes" in used and image_size != SIZE:
        raise ConfigError(
            f"data is 'scenes', whose pictures have {SIZE} pixels a side, and the model's have "
            f"{image_size}; give data.prompts and data.images of your own"
        )
    if config.schedule != "i2t":
        sources["t2i"] = load_prompts(config)
    if config.schedule != "t2i":
        sources["i2t"] = load_images(config, image_size)
    return sources


def load_prompts(config: Config) -> Source:
    name = config.data.prompts
    if name == "scenes":
        # a seed of their own: no prompt is the caption of a training picture, or if so by chance
        specs = _scene_specs(config, "prompts")
        return Source(examples_of("t2i", specs))
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"data.prompts is {name!r}; no such file (or write 'scenes')")
    texts = _read_prompts(path)
    source = Source([])
    for number, text in enumerate(texts, start=1):
        if text.strip():
            source.examples.append(Example(len(source.examples), "t2i", text=text.strip()))
        else:
            source.skipped.append((f"{name} row {number}", "empty"))
    if not source.examples:
        raise ConfigError(f"data.prompts is {name!r}; it holds no prompt: write one a line")
    return source


def _read_prompts(path: Path) -> list[str]:
    """The rows of the file, empty ones too. Raises ConfigError where it cannot be read."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".csv":
            return _column(pd.read_csv(path, dtype=str, keep_default_na=False), path)
        if suffix == ".parquet":
            return _column(pd.read_parquet(path), path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        if lines and not lines[-1]:
            lines.pop()  # the file ends in a newline
        if suffix != ".jsonl":
            return lines
        rows = [json.loads(line) if line.strip() else {} for line in lines]
        return _column(pd.DataFrame(rows, dtype=object), path)
    except ConfigError:
        raise
    except (ValueError, OSError, AttributeError, TypeError) as error:
        # pandas, pyarrow and json each have their own; all derive from these
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"data.prompts is {str(path)!r}; it cannot be read: {reason}") from error


def _column(table: pd.DataFrame, path: Path) -> list[str]:
    for name in PROMPT_COLUMNS:
        if name in table.columns:
            column = table[name]
            return [
                "" if missing else str(t) for t, missing in zip(column, column.isna(), strict=True)
            ]
    raise ConfigError(
        f"data.prompts is {str(path)!r}; it has columns {[str(c) for c in table.columns]}, "
        f"none of {', '.join(PROMPT_COLUMNS)}"
    )


def load_images(config: Config, image_size: int) -> Source:
    name = config.data.images
    if name == "scenes":
        return Source(examples_of("i2t", _scene_specs(config, "images")))
    folder = Path(name)
    if not folder.is_dir():
        raise ConfigError(f"data.images is {name!r}; no such folder (or write 'scenes')")
    source = Source([])
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        try:
            pixels = read_image(path, image_size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            source.skipped.append((str(path), f"{type(error).__name__}: {error}"))
            continue
        source.examples.append(Example(len(source.examples), "i2t", pixels=pixels))
    if not source.examples:
        raise ConfigError(
            f"data.images is {name!r}; none of its files could be read "
            f"({len(source.skipped)} skipped; picture files end in {sorted(IMAGE_SUFFIXES)})"
        )
    return source


def read_image(path: Path, size: int) -> torch.Tensor:
    """One picture, centre-cropped to a square and resized: uint8 [3, size, size].

    Cropped, not padded: padding would spend image tokens, and so the reward, on nothing.
    """
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    square = square.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1).contiguous()


def _scene_specs(config: Config, what: str) -> list[Spec]:
    per_kind = -(-config.data.scenes_size // len(KINDS))
    return draw_specs(f"{config.seed}/{what}", per_kind, "train")[: config.data.scenes_size]


class Stream(Dataset[list[Example]]):
    """The inputs in training order. Item i is the share of one process in one micro-step.

    A function of the seed alone: the same examples make up an optimizer step whatever the number of
    processes and micro-steps, and a resumed run goes on where it stopped. Each pass over a source
    has a shuffle of its own.
    """

    def __init__(self, config: Config, sources: dict[Direction, Source], shares: int):
        self.config, self.sources, self.shares = config, sources, shares
        self._orders: dict[Direction, tuple[int, list[int]]] = {}
        for direction in sources:
            if self.per_step(direction) % shares:
                raise ConfigError(
                    f"{self.per_step(direction)} {direction} inputs a step do not divide among "
                    f"{shares} micro-steps over all processes; change data.prompts_per_step, "
                    "data.images_per_step or train.gradient_accumulation_steps"
                )

    def per_step(self, direction: Direction) -> int:
        data = self.config.data
        return data.prompts_per_step if direction == "t2i" else data.images_per_step

    def __len__(self) -> int:
        return self.config.steps * self.shares

    def directions(self, rollout_step: int) -> tuple[Direction, ...]:
        """The directions that one rollout trains."""
        if self.config.schedule == "joint":
            return ("t2i", "i2t")
        if self.config.schedule == "alternate":
            return ("t2i",) if rollout_step % 2 == 0 else ("i2t",)
        return (self.config.schedule,)

    def __getitem__(self, index: int) -> list[Example]:
        step, part = divmod(index, self.shares)
        rollout_step = step // self.config.loss.updates_per_rollout
        found: list[Example] = []
        for direction in self.directions(rollout_step):
            n = self.per_step(direction) // self.shares
            turn = self._turn(direction, rollout_step)
            first = turn * self.per_step(direction) + part * n
            found += [self._nth(direction, first + k) for k in range(n)]
        return found

    def _turn(self, direction: Direction, rollout_step: int) -> int:
        """How many rollouts of this direction came before."""
        return rollout_step // 2 if self.config.schedule == "alternate" else rollout_step

    def _nth(self, direction: Direction, position: int) -> Example:
        examples = self.sources[direction].examples
        lap, place = divmod(position, len(examples))
        return examples[self._order(direction, lap)[place]]

    def _order(self, direction: Direction, lap: int) -> list[int]:
        if self._orders.get(direction, (None,))[0] != lap:
            order = list(range(len(self.sources[direction].examples)))
            random.Random(f"{self.config.seed}/{direction}/{lap}").shuffle(order)
            self._orders[direction] = (lap, order)
        return self._orders[direction][1]
