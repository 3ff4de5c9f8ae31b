"""Memory that suffices for few rows at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def few_rows_fit(monkeypatch: pytest.MonkeyPatch, module: Any, fits: int = 1) -> list[int]:
    """Have a module's `rollout` run out of memory above `fits` rows; return what it refused."""
    honest, refused = module.rollout, []

    def tight(adapter: Any, examples: Any, config: Any, *args: Any) -> Any:
        if config.batch_rows > fits:
            refused.append(config.batch_rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return honest(adapter, examples, config, *args)

    monkeypatch.setattr(module, "rollout", tight)
    return refused
