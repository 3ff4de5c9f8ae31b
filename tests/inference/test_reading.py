"""A prompt read once for its group, by either way, is the prompt read for each row by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from builders import random_janus
from viceversa.config import LoraConfig
from viceversa.inference import reading
from viceversa.inference.logprobs import completion_hidden, completion_logprobs
from viceversa.models.base import Adapter
from viceversa.models.lora import add_lora
from viceversa.rl.rollout import input_prompts
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.types import Completion, Direction, PromptBatch

#: Words of the captions of each prompt: unlike numbers of unlike lengths, one is a stop token only.
CAPTIONS = [["a red ring", "two", "a star left of a blue ring"], ["", "a ring"], ["a blue star"]]


def ragged(
    adapter: Adapter, direction: Direction, padded: bool = True
) -> tuple[PromptBatch, Completion, Tensor]:
    """Three prompts, padded at the left or of one length, and three, two and one outputs of each.

    Those of one length are one prompt.
    """
    examples = examples_of(direction, draw_specs(0, 1, "train"))[: 3 if padded else 1]
    prompts = input_prompts(adapter, examples if padded else 3 * examples, "")
    if padded:
        ids, mask = (F.pad(x, (2, 0)) for x in (prompts.prompt_ids, prompts.attention_mask))
        prompts = replace(prompts, prompt_ids=ids, attention_mask=mask)
    of = torch.tensor([0, 0, 0, 1, 1, 2])
    if direction == "i2t":
        return prompts, adapter.text_completion([t for texts in CAPTIONS for t in texts]), of
    numbers = torch.Generator().manual_seed(0)
    drawn = torch.randint(adapter.image_vocab_size, (6, adapter.image_tokens), generator=numbers)
    return prompts, adapter.image_completion(drawn), of


def learned(adapter: Adapter, *rows: Any, of: Tensor | None = None) -> list[Tensor]:
    """Log-probs, and the gradient of every trained weight."""
    adapter.model.zero_grad()
    values = completion_logprobs(adapter, *rows, of=of)
    values.square().sum().backward()
    found = (p.grad for n, p in adapter.model.named_parameters() if "vision_model" not in n)
    return [values.detach(), *(g.clone() for g in found if g is not None)]


def exact(adapter: Adapter) -> None:
    """Put all of the model in float64, also its norms, which round to float32 of themselves."""
    adapter.model.double()
    for module in adapter.text_model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(F.rms_norm, **norm(module))  # type: ignore[method-assign]


def norm(module: Any) -> dict[str, Any]:
    size = module.weight.shape
    return {"normalized_shape": size, "weight": module.weight, "eps": module.variance_epsilon}


def by_itself(adapter: Adapter, prompts: PromptBatch, rows: Completion, of: Tensor) -> list[Tensor]:
    return learned(adapter, prompts.select(of), rows)


def flagged(adapter: Adapter) -> None:
    adapter.model.activation_checkpointing_enable({"use_reentrant": False})


def wrapped(adapter: Adapter) -> None:
    """As accelerate does for FSDP."""
    layers = {type(m) for m in adapter.text_model.modules() if type(m).__name__.endswith("Layer")}
    apply_activation_checkpointing(adapter.model, check_fn=lambda m: type(m) in layers)


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have prompts read this way, and note each time."""
    monkeypatch.setattr(reading, "packs", lambda *_: way == "packed")
    honest, taken = getattr(reading, way), []

    def noted(*args: Any) -> Tensor:
        taken.append(way)
        return honest(*args)

    monkeypatch.setattr(reading, way, noted)
    return taken


@pytest.mark.parametrize(
    ("dtype", "padded"), [(torch.float32, True), (torch.float64, True), (torch.float64, False)]
)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("way", ["packed", "branched"])
def test_ways_agree_in_values_and_gradients(
    adapter: Adapter,
    way: str,
    direction: Direction,
    dtype: torch.dtype,
    padded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter.model.train()
    if dtype == torch.float64:
        exact(adapter)
    rows = ragged(adapter, direction, padded)
    assert bool(rows[0].attention_mask.all()) == (not padded)
    wanted = by_itself(adapter, *rows)
    taken = take(way, monkeypatch)
    found = learned(adapter, *rows[:2], of=rows[2])
    assert taken == [way] and len(found) == len(wanted) > 10
    close = {torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= close * theirs.norm()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("recompute", [flagged, wrapped])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_checkpointed_layers_agree(
    adapter: Adapter, direction: Direction, recompute: Callable[[Adapter], None], lora: bool
) -> None:
    """By the way that is taken of itself: captions are packed, drawings branch off."""
    adapter.model.train()
    if lora:
        adapter.model.requires_grad_(False)
        add_lora(adapter, LoraConfig(rank=4), "base")
        with torch.no_grad():
            for name, parameter in adapter.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    exact(adapter)
    rows = ragged(adapter, direction)
    wanted = by_itself(adapter, *rows)
    recompute(adapter)
    with pytest.MonkeyPatch.context() as patch:
        taken = []
        for way in ("packed", "apart", "branched"):
            honest = getattr(reading, way)
            patch.setattr(reading, way, lambda *a, w=way, h=honest: (taken.append(w), h(*a))[1])
        found = learned(adapter, *rows[:2], of=rows[2])
    assert taken == ["packed" if direction == "i2t" else "branched"]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize(("way", "direction"), [("packed", "i2t"), ("branched", "t2i")])
def test_in_bfloat16_neither_way_errs_more_than_rows_apart(
    adapter: Adapter, way: str, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ragged(adapter, direction)
    exact = by_itself(adapter, *rows)
    with torch.autocast("cpu", torch.bfloat16):
        apart = by_itself(adapter, *rows)
        taken = take(way, monkeypatch)
        once = learned(adapter, *rows[:2], of=rows[2])
    assert taken == [way]
    for wanted, one, other in zip(exact, apart, once, strict=True):
        rounding = (one - wanted).norm()
        assert rounding > 0 and (other - wanted).norm() <= 2 * rounding


def test_shapes_decide_what_is_packed() -> None:
    assert reading.packs(20, 600, 160, 30)  # captions of pictures
    assert reading.packs(20, 600, 40, 30)  # pairs of them
    assert not reading.packs(24, 50, 192, 576)  # pictures after prompts
    assert not reading.packs(24, 50, 48, 576)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_attention_that_takes_no_such_mask_reads_rows_apart(direction: Direction) -> None:
    adapter = random_janus()
    rows = ragged(adapter, direction)
    wanted = by_itself(adapter, *rows)
    adapter.model.set_attn_implementation("eager")  # adds masks as numbers
    found = learned(adapter, *rows[:2], of=rows[2])
    assert adapter.text_model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


def test_layers_that_drop_what_attention_is_told_are_an_error() -> None:
    """They would attend across rows."""
    adapter = random_janus()
    for layer in adapter.text_model.layers:  # type: ignore[union-attr]
        honest = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, branches, of=honest, **more: of(*args, **more)
    prompts, completions, of = ragged(adapter, "t2i")
    with pytest.raises(TypeError, match="layers of LlamaModel do not pass `branches` on"):
        completion_logprobs(adapter, prompts, completions, of=of)


def test_a_model_that_branched_still_generates_and_takes_a_batch() -> None:
    """As it did before: the kind of attention stays, for layers that are computed again."""
    adapter = random_janus()
    prompts, completions, of = ragged(adapter, "t2i")
    asked = {"attention_mask": prompts.attention_mask, "max_new_tokens": 4, "do_sample": False}
    before = adapter.model.generate(prompts.prompt_ids, **asked)
    saved = adapter.model.config.to_json_string()
    plain = completion_logprobs(adapter, prompts.select(of), completions)
    completion_logprobs(adapter, prompts, completions, of=of)
    assert adapter.text_model.config._attn_implementation == reading.BRANCHES  # type: ignore[union-attr]
    assert torch.equal(completion_logprobs(adapter, prompts.select(of), completions), plain)
    assert torch.equal(adapter.model.generate(prompts.prompt_ids, **asked), before)
    assert adapter.model.config.to_json_string() == saved  # others load it as ever


@pytest.mark.parametrize("recompute", [None, flagged, wrapped])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_a_prompt_goes_through_the_layers_once(
    direction: Direction, recompute: Callable[[Adapter], None] | None
) -> None:
    """Also where layers are computed again: tokens are counted at the first layer."""
    adapter = random_janus()
    adapter.model.train()
    prompts, completions, of = ragged(adapter, direction)
    read: list[int] = []
    layer = adapter.text_model.layers[0]  # type: ignore[index]
    assert isinstance(layer, LlamaDecoderLayer)
    layer.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[:2].numel()))
    if recompute is not None:
        recompute(adapter)
    completion_hidden(adapter, prompts, completions, of)
    length = prompts.prompt_ids.shape[1]
    fullest = sum(len(adapter.text_ids(adapter.answer_prefix + t)) for t in CAPTIONS[0])
    written = 3 * fullest if direction == "i2t" else 6 * (adapter.image_tokens - 1)
    assert read == [3 * length + written]


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_layers_are_passed_once_whatever_the_rows(direction: Direction) -> None:
    """So processes that share layers make as many passes, also one whose rows are all alike."""
    adapter = random_janus()
    prompts, completions, of = ragged(adapter, direction)
    passes: list[None] = []
    adapter.text_model.register_forward_hook(lambda *_: passes.append(None))
    for rows in (torch.arange(6), of * 0):
        passes.clear()
        completion_logprobs(adapter, prompts.select(slice(1)), completions.select(rows))
        assert len(passes) == 1
