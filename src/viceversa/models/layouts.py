"""Which code reads a model: transformers' layout, or the one that the original Janus published."""

from __future__ import annotations

from typing import Any

from viceversa.models import loading, original
from viceversa.models.loading import model_type


def layout_of(path: str, shown: str) -> Any:
    """Return the module with `read_config`, `load_processor` and `load_model` for this model."""
    return original if model_type(path, shown) == original.TYPE else loading
