"""The exact verifier of the built-in world, as a reward and as a monitor."""

from __future__ import annotations

import torch
from torch import Tensor

from viceversa.data.pictures import to_numpy
from viceversa.scenes.spec import Spec
from viceversa.scenes.verify import caption_matches, read_pictures, verify_pictures
from viceversa.types import Rollout


def verified(rollout: Rollout) -> Tensor | None:
    """Tell which outputs are right, [P, G] bool; None where the examples carry no specs."""
    specs = [e.reference for e in rollout.examples for _ in range(rollout.group_size)]
    if not all(isinstance(s, Spec) for s in specs):
        return None
    if rollout.direction == "t2i":
        assert rollout.pixels is not None
        right = verify_pictures(to_numpy(rollout.pixels), specs)
    else:
        pixels = torch.stack([e.pixels for e in rollout.examples if e.pixels is not None])
        scenes = [s for s in read_pictures(to_numpy(pixels)) for _ in range(rollout.group_size)]
        right = [caption_matches(t, s) for t, s in zip(rollout.texts, scenes, strict=True)]
    return torch.tensor(right).view(-1, rollout.group_size)


def verifier(rollout: Rollout) -> Tensor:
    """Rate right outputs 1 and wrong ones 0, by labels: a baseline for the dual reward.

    Raises ValueError where the examples carry no specs.
    """
    right = verified(rollout)
    if right is None:
        raise ValueError("reward.name is verifier; the examples carry no labels")
    return right.float()


verifier.needs_references = True  # type: ignore[attr-defined]
