"""Specs of the built-in world as inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import Spec
from viceversa.types import Direction, Example


def examples_of(direction: Direction, specs: Sequence[Spec]) -> list[Example]:
    """Turn specs into prompts, or into pictures; the spec rides along as the label."""
    if direction == "t2i":
        return [Example(i, "t2i", text=caption(s), reference=s) for i, s in enumerate(specs)]
    return [Example(i, "i2t", pixels=picture(s), reference=s) for i, s in enumerate(specs)]


def picture(spec: Spec) -> torch.Tensor:
    """Render a spec, uint8 [3, H, W]."""
    return torch.from_numpy(render(spec)).permute(2, 0, 1).contiguous()
