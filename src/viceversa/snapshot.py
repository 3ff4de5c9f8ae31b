"""The trained weights at another time: a frozen or slowly averaged scorer, a reference.

Only what is trained is kept, so under LoRA a second model costs megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshot:
    """The parameters of `model` that are trained, as they are now."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The model with these weights, for a while."""
        live = self._exchange(self.weights)
        try:
            yield
        finally:
            self._exchange(live)

    @torch.no_grad()
    def _exchange(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies, not swapped pointers: a sharded parameter's storage belongs to its engine."""
        before = {}
        for name, parameter in self.model.named_parameters():
            if name in weights:
                before[name] = parameter.detach().clone()
                parameter.copy_(weights[name])
        return before

    @torch.no_grad()
    def move_towards_model(self, share: float) -> None:
        """One step of a slow average: `share` of the way to the model's weights."""
        for name, parameter in self.model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), share)

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in self.weights.items():
            tensor.copy_(weights[name])
