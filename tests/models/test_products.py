"""Products with large weights: by oneDNN the same as by torch, wherever a recipe takes them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viceversa.config import LoraConfig, SamplingConfig
from viceversa.inference.logprobs import completion_logprobs, evaluating
from viceversa.models import products
from viceversa.models.base import Adapter
from viceversa.models.lora import add_lora
from viceversa.models.products import large_products
from viceversa.rl.rollout import rollout
from viceversa.types import Example


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every weight counts as large; the shapes of what oneDNN multiplied."""
    monkeypatch.setattr(products, "MANY_NUMBERS", 0)
    honest, shapes = products.onednn_product, []

    def noted(x: Tensor, *args: Any) -> Tensor:
        shapes.append(tuple(x.shape))
        return honest(x, *args)

    monkeypatch.setattr(products, "onednn_product", noted)
    return shapes


@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (64, 40), (70, 40), (2, 3, 40)])
@pytest.mark.parametrize("words", [100, 1100])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_product_is_the_layers_own(
    shape: tuple[int, ...], words: int, bias: bool, taken: list[tuple[int, ...]]
) -> None:
    """As it lies and as the left factor, whose rows are copied in runs."""
    torch.manual_seed(0)
    layer, x = nn.Linear(40, words, bias=bias), torch.randn(shape)
    wanted = layer(x)
    with large_products(layer):
        found = layer(x)
    torch.testing.assert_close(found, wanted)
    assert found.is_contiguous()
    assert taken == [shape]


@torch.no_grad()
def test_a_call_by_keyword_keeps_its_bias(taken: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(40, 100), torch.randn(7, 40)
    wanted = layer(x)
    with large_products(layer):
        torch.testing.assert_close(F.linear(x, layer.weight, bias=layer.bias), wanted)
    assert taken == []


def test_what_wants_a_gradient_or_other_precision_is_left_to_torch(
    taken: list[tuple[int, ...]],
) -> None:
    layer, x = nn.Linear(40, 100), torch.randn(7, 40)
    with large_products(layer):
        assert layer(x).requires_grad
    with torch.no_grad():
        with large_products(layer), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        half = nn.Linear(40, 100, dtype=torch.bfloat16)
        with large_products(half):
            half(x.bfloat16())
        with torch.backends.mkldnn.flags(enabled=False), large_products(layer):
            layer(x)
        with mock.patch.object(products, "MANY_NUMBERS", 4001), large_products(layer):
            layer(x)
    assert taken == []


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_sampling_and_scoring_are_the_same(
    adapter: Adapter,
    direction: str,
    lora: bool,
    prompts_in: list[Example],
    pictures_in: list[Example],
    taken: list[tuple[int, ...]],
) -> None:
    if lora:
        adapter.model.requires_grad_(False)
        add_lora(adapter, LoraConfig(rank=4), "base")
    examples = prompts_in if direction == "t2i" else pictures_in
    greedy = SamplingConfig(group_size=2, temperature=0.0, guidance=1.0, max_caption_tokens=8)
    found = []
    there = products.has_onednn
    for enabled in (False, True):
        with mock.patch.object(products, "has_onednn", lambda x, on=enabled: on and there(x)):
            drawn = rollout(adapter, examples, greedy, seed=0, step=0)
            with evaluating(adapter.model):
                found.append(completion_logprobs(adapter, drawn.prompts, drawn.completions))
            assert bool(taken) == enabled
    assert found[0].shape == found[1].shape
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
