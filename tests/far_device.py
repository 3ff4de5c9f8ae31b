"""A device that is not the CPU, made of the CPU: `python far_device.py` samples, scores and trains.

Its tensors cannot meet the CPU's, as a GPU's cannot, so a tensor that was made on the wrong device
is an AssertionError; numbers come out as on the CPU. It has no speed, no graphs and no autocast.
It is told from a GPU by its name alone: PyTorch lets a backend be written in Python since 2.10.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.state import PartialState
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from builders import ADAPTERS, random_janus
from small_runs import config, trained
from viceversa.config import Config, SamplingConfig
from viceversa.inference.engines import Plain
from viceversa.inference.graphs import Graphed
from viceversa.models import make_adapter
from viceversa.models.base import Adapter
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.training.arguments import training_arguments
from viceversa.types import DIRECTIONS


class Backend(backend_registration._DummyBackendModule):
    """What PyTorch asks of a device; autocast can only be off."""

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


backend_registration._setup_privateuseone_for_python_backend("far", Backend())
FAR = torch.device("far", 0)
aten: Any = torch.ops.aten
#: Operations that take a tensor from one device to another.
CARRIERS = (aten.copy_.default, aten._to_copy.default)
#: A far tensor takes indices from the CPU along; a near one takes none from afar.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class FarTensor(Tensor):
    near: Tensor
    """What it holds, on the CPU."""

    @staticmethod
    def __new__(cls, near: Tensor) -> FarTensor:
        layout = {"strides": near.stride(), "storage_offset": near.storage_offset()}
        make: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        return make(cls, near.size(), dtype=near.dtype, device=FAR, **layout)

    def __init__(self, near: Tensor):
        self.near = near

    def tolist(self) -> Any:
        return self.near.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a far tensor is no array")

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


class FarDevice(TorchDispatchMode):
    """Where tensors may be made and moved there."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(op, args, kwargs or {})


def run(op: Any, args: Any, kwargs: Any) -> Any:
    """The operation, on the CPU; raises AssertionError where devices meet."""
    if op is aten._fused_sdp_choice.default:
        return 0  # attention by plain products: the others are chosen by the device
    leaves, structure = tree_flatten((args, kwargs))
    far = [x for x in leaves if isinstance(x, FarTensor)]
    near = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, FarTensor) and x.ndim]
    meet = bool(far and near) and op not in CARRIERS
    assert not meet or (op in INDEXING and isinstance(args[0], FarTensor)), f"{op} of two devices"
    args, kwargs = tree_unflatten([_near(x) for x in leaves], structure)
    asked = kwargs.get("device")
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    is_far = torch.device(asked).type == FAR.type if asked is not None else bool(far)
    known = {id(x.near): x for x in far}

    def placed(found: Tensor) -> Tensor:
        if id(found) in known:  # written to in place
            return known[id(found)]
        return FarTensor(found) if is_far else found

    return tree_map_only(Tensor, placed, op(*args, **kwargs))


def _near(x: Any) -> Any:
    return x.near if isinstance(x, FarTensor) else x


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _near(target).copy_(_near(source))
    return target


# for `torch.tensor`, which no mode sees
library = torch.library.Library("aten", "IMPL")
for name, kernel in {
    "empty_strided": lambda size, stride, dtype=None, **_: FarTensor(
        torch.empty_strided(size, stride, dtype=dtype)
    ),
    "_copy_from": _copied,
}.items():
    library.impl(name, kernel, "PrivateUse1")


def moved(adapter: Adapter) -> Adapter:
    with FarDevice():
        model = adapter.model.to(FAR)
        return make_adapter(model, adapter.processor, adapter.image_size)


def sample_and_score(name: str) -> None:
    """Draws and rewards are the CPU's."""
    config = SamplingConfig(group_size=3, max_caption_tokens=8, guidance=1.5, top_k=60, top_p=0.97)
    near, far = ADAPTERS[name](), moved(ADAPTERS[name]())
    for direction in DIRECTIONS:
        examples = examples_of(direction, draw_specs(0, 1, "train"))[:2]
        wanted = rollout(near, examples, config, seed=0, step=0)
        with FarDevice():
            found = rollout(far, examples, config, seed=0, step=0)
            rewards = dual_reward(far, found, "")
        ids = found.completions.completion_ids
        assert ids.device == rewards.device == FAR
        assert torch.equal(_near(ids), wanted.completions.completion_ids)
        torch.testing.assert_close(_near(rewards), dual_reward(near, wanted, ""), atol=1e-4, rtol=0)


def far_arguments(config: Config) -> Any:
    args = training_arguments(config)
    args.__dict__["_setup_devices"] = PartialState._shared_state["device"] = FAR
    return args


def train(folder: Path, *options: str) -> None:
    """Two steps end in the CPU's weights. No checkpoint: it asks for addresses of memory."""
    settings = config(folder, "train.save_strategy=no", "steps=2", *options)
    near, far = random_janus(), moved(random_janus())
    wanted, _ = trained(settings, adapter=near)
    with FarDevice(), mock.patch("small_runs.training_arguments", far_arguments):
        found, _ = trained(settings, adapter=far)
    for name, value in wanted.items():
        assert found[name].device == FAR
        torch.testing.assert_close(_near(found[name]), value, atol=1e-5, rtol=1e-4, msg=name)


def devices_cannot_meet() -> None:
    with FarDevice(), pytest.raises(AssertionError, match="of two devices"):
        torch.ones(2, device=FAR).add(torch.ones(2))
    with FarDevice(), pytest.raises(AssertionError, match="of two devices"):
        torch.arange(2).index_select(0, torch.ones(2, dtype=torch.long, device=FAR))


def engine_of(adapter: Adapter) -> Any:
    return Plain if adapter.device.type == "cpu" else Graphed


TRAINED = [
    ["loss.name=simpo", "sampling.guidance=2", "loss.logprob_policy=guided"],
    ["loss.name=grpo", "loss.updates_per_rollout=2", "loss.t2i_kl=0.1", "reward.scale=batch"],
    ["loss.name=dpo", "reward.scorer=average", "loss.batch_rows=3", "loss.group_share=0.5"],
    ["loss.name=raft", "reward.scorer=frozen", "train.gradient_accumulation_steps=2"],
]

if __name__ == "__main__":
    devices_cannot_meet()
    with mock.patch("viceversa.inference.sampler.engine_of", engine_of):
        for kind in ADAPTERS:
            sample_and_score(kind)
        for given in TRAINED:
            train(Path(sys.argv[1]), *given)
