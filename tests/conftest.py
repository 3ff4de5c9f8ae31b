from __future__ import annotations

import gc
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: The environment of a process that may use a GPU. The tests, and what they start, use the CPU.
WITH_GPUS = dict(os.environ)
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch asks

import pytest
import torch

from builders import ADAPTERS, random_janus, save
from viceversa.config import ModelConfig
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.report import charts
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.types import Example

# two, or what the caller says, or one of each of several workers: on a busy machine threads that
# wait for each other are slow
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start, too
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@cache
def has_gpu() -> bool:
    """Whether a process that may use a GPU would."""
    if torch.version.cuda is None and torch.version.hip is None:
        return False
    ask = "import torch; raise SystemExit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", ask], env=WITH_GPUS).returncode == 0


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: each training run asks for one."""
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("needs a GPU, which PyTorch does not find here")


@pytest.fixture(autouse=True)
def quick_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw charts in the report's own tests alone: they are a fifth of a small run's time."""
    if request.path.parent.name != "report" and not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(charts, "_svg", lambda *_: {"svg": "<svg></svg>", "rules": {}})


@pytest.fixture
def with_gpus() -> dict[str, str]:
    """The environment of a process that may use a GPU."""
    return dict(WITH_GPUS)


@pytest.fixture(params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    """A fresh tiny random model of each supported class."""
    return ADAPTERS[request.param]()


@pytest.fixture(scope="session")
def builtin() -> Adapter:
    """The bundled model; not to be changed."""
    return load_adapter(ModelConfig())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Janus in a folder."""
    folder = tmp_path_factory.mktemp("model")
    save(random_janus(), folder)
    return folder


@pytest.fixture
def prompts_in() -> list[Example]:
    """Prompts of different lengths."""
    return examples_of("t2i", draw_specs(0, 1, "train"))


@pytest.fixture
def pictures_in() -> list[Example]:
    return examples_of("i2t", draw_specs(0, 1, "train"))
