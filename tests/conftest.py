from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from builders import ADAPTERS
from viceversa.config import ModelConfig
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.scenes import draw_specs
from viceversa.scenes.examples import examples_of
from viceversa.types import Example

# two, or what the caller says: on a busy machine threads that wait for each other are slow
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """A fresh tiny random model of each supported class."""
    return ADAPTERS[request.param]()


@pytest.fixture(scope="session")
def builtin() -> Adapter:
    """The bundled model; not to be changed."""
    return load_adapter(ModelConfig())


@pytest.fixture
def prompts_in() -> list[Example]:
    """Prompts of different lengths."""
    return examples_of("t2i", draw_specs(0, 1, "train"))


@pytest.fixture
def pictures_in() -> list[Example]:
    return examples_of("i2t", draw_specs(0, 1, "train"))
