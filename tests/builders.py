"""Tiny random models of each supported class, small enough for a test."""

from __future__ import annotations

from collections.abc import Callable

import torch

from viceversa.config import SamplingConfig
from viceversa.data import examples_of
from viceversa.logprobs import completion_hidden
from viceversa.models import tiny
from viceversa.models.base import Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.rollout import rollout
from viceversa.scenes import draw_specs


def random_janus(seed: int = 0) -> JanusAdapter:
    """Random weights with sharp heads and codebook rows of unequal norms."""
    torch.manual_seed(seed)
    processor = tiny.build_processor()
    model = tiny.build_model(tiny.build_config(processor, width=32, layers=2)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "vqmodel" not in name:
                parameter.mul_(4.0)  # at the default scale every distribution is almost flat
        codes = model.model.vqmodel.quantize.embedding.weight
        codes.normal_().mul_(torch.rand(len(codes), 1) * 3 + 0.1)
    adapter = JanusAdapter(model, processor)
    _let_it_stop(adapter)
    return adapter


@torch.no_grad()
def _let_it_stop(adapter: JanusAdapter) -> None:
    """Aim the stop token's row at the usual hidden state, so that captions end now and then."""
    examples = examples_of("i2t", draw_specs(0, 1, "train"))
    config = SamplingConfig(group_size=4, max_caption_tokens=8)
    sampled = rollout(adapter, examples, config, seed=0, step=0)
    prompts = sampled.prompts.repeat_interleave(4)
    mean = completion_hidden(adapter, prompts, sampled.completions).mean((0, 1))
    adapter.model.lm_head.weight[adapter.stop_id] = 5.0 * mean / mean.square().sum()


ADAPTERS: dict[str, Callable[[], Adapter]] = {"janus": random_janus}
