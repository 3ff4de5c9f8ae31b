"""The adapter against the original Janus: outputs of github.com/deepseek-ai/Janus on tiny random
weights, kept by janus_original/make.py, that transformers' model must give again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from original_folders import ABOUT, FOLDER
from viceversa.inference import logprobs as lp
from viceversa.models.janus import JanusAdapter
from viceversa.pretrain import tiny
from viceversa.types import Completion, PromptBatch

IDS = ABOUT["token_ids"]
TOLERANCE = 1e-4


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def kept() -> dict[str, Tensor]:
    return load_file(FOLDER / "fixture.safetensors")


@pytest.fixture(scope="module")
def adapter(kept: dict[str, Tensor]) -> JanusAdapter:
    """transformers' model with the original's weights, every one of them placed."""
    shapes = ABOUT["shapes"]
    width = shapes["width"]
    vision = JanusVisionConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=shapes["heads"],
        image_size=shapes["image_size"],
        patch_size=shapes["patch_size"],
        projection_dim=width,
    )
    codec = JanusVQVAEConfig(
        embed_dim=shapes["code_width"],
        num_embeddings=shapes["codes"],
        latent_channels=shapes["latent_channels"],
        base_channels=shapes["base_channels"],
        channel_multiplier=shapes["channel_multiplier"],
        num_res_blocks=shapes["num_res_blocks"],
        projection_dim=width,
        image_token_embed_dim=width,
    )
    text = LlamaConfig(
        vocab_size=shapes["vocabulary"],
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=shapes["layers"],
        num_attention_heads=shapes["heads"],
        max_position_embeddings=256,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=codec,
        image_token_id=IDS["image"],
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config).eval()
    weights = {k.removeprefix("weights."): v for k, v in kept.items() if k.startswith("weights.")}
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return JanusAdapter(model, processor_of_fixture())


def processor_of_fixture() -> Any:
    """What the adapter reads of a processor; the fixture's prompts are ids, never text."""
    tokenizer = SimpleNamespace(
        bos_token_id=IDS["bos"],
        eos_token_id=IDS["eos"],
        pad_token_id=IDS["pad"],
        convert_tokens_to_ids={"<begin_of_image>": IDS["boi"]}.__getitem__,
    )
    images = SimpleNamespace(image_mean=ABOUT["image_mean"], image_std=ABOUT["image_std"])
    return SimpleNamespace(
        tokenizer=tokenizer, image_processor=images, image_start_token="<begin_of_image>"
    )


def drawing(kept: dict[str, Tensor], n: int) -> tuple[PromptBatch, Completion, Tensor]:
    """Two rows of one prompt, the ids forced on them, the original's guided logits."""
    forced = kept[f"draw.{n}.forced_ids"]
    ids = kept[f"draw.{n}.prompt_ids"].repeat(len(forced), 1)
    prompts = PromptBatch("t2i", ids, torch.ones_like(ids, dtype=torch.bool))
    written = Completion(forced, torch.ones_like(forced, dtype=torch.bool))
    return prompts, written, kept[f"draw.{n}.guided_logits"]


def guided(
    adapter: JanusAdapter, prompts: PromptBatch, blank: PromptBatch, written: Completion
) -> Tensor:
    conditional, unconditional = (
        adapter.logits(lp.completion_hidden(adapter, p, written), "image") for p in (prompts, blank)
    )
    return lp.guided_logits(conditional, unconditional, ABOUT["guidance"])


# --- the adapter gives what the original gave ---------------------------------------------------


@torch.no_grad()
def test_image_ids_of_pictures_are_the_originals(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    assert torch.equal(adapter.encode_images(kept["pictures"]), kept["image_ids"])


@torch.no_grad()
def test_vision_features_of_pictures_are_the_originals(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    close(adapter.image_features(kept["pictures"]), kept["vision_features"])


@torch.no_grad()
@pytest.mark.parametrize("n", [0, 1])
def test_guided_logits_of_every_step_are_the_originals(
    adapter: JanusAdapter, kept: dict[str, Tensor], n: int
) -> None:
    prompts, written, want = drawing(kept, n)
    close(guided(adapter, prompts, adapter.blank_prompts(prompts), written), want)


@torch.no_grad()
def test_guided_logits_are_the_originals_for_prompts_of_two_lengths_in_one_batch(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    """The original draws one prompt at a time; we pad the shorter on the left."""
    (long, first, want_first), (short, second, want_second) = (drawing(kept, n) for n in (0, 1))
    missing = long.prompt_ids.shape[1] - short.prompt_ids.shape[1]
    pad = torch.nn.functional.pad
    prompts = PromptBatch(
        "t2i",
        torch.cat([long.prompt_ids, pad(short.prompt_ids, (missing, 0))]),
        torch.cat([long.attention_mask, pad(short.attention_mask, (missing, 0))]),
    )
    written = Completion(
        torch.cat([first.completion_ids, second.completion_ids]),
        torch.cat([first.completion_mask, second.completion_mask]),
    )
    got = guided(adapter, prompts, adapter.blank_prompts(prompts), written)
    close(got, torch.cat([want_first, want_second]))


@torch.no_grad()
def test_text_logits_after_a_picture_are_the_originals(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    prompts = PromptBatch(
        "i2t", kept["read.prompt_ids"], kept["read.attention_mask"].bool(), kept["pictures"]
    )
    assert not prompts.attention_mask.all(), "the fixture means to hold left padding"
    text = kept["read.text_ids"]
    written = Completion(text, torch.ones_like(text, dtype=torch.bool))
    hidden = lp.completion_hidden(adapter, prompts, written)
    close(adapter.logits(hidden, "text"), kept["read.logits"])


@torch.no_grad()
def test_decoded_pixels_are_the_originals(adapter: JanusAdapter, kept: dict[str, Tensor]) -> None:
    close(adapter.model.model.vqmodel.decode(kept["drawn_ids"]), kept["decoded"])


@torch.no_grad()
def test_decoded_pictures_are_rounded_where_the_original_cuts(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    ours = adapter.decode_images(kept["drawn_ids"]).int()
    more = ours - kept["decoded_uint8"].int()
    assert set(more.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("system", [False, True])
def test_prompt_text_is_the_originals(direction: Any, system: bool) -> None:
    """The system prompt only where the checkpoint asks for it, and never in a drawing's prompt."""
    processor = tiny.build_processor()
    processor.use_default_system_prompt = system
    adapter = JanusAdapter(tiny.build_model(tiny.build_config(processor, 32, 1)), processor)
    text = {"t2i": ABOUT["prompts"]["prompt"], "i2t": ABOUT["prompts"]["instruction"]}[direction]
    want = ABOUT["prompts"][direction]
    if not system:
        want = want[want.index("<|User|>") :]
    # the original does these two on ids: BOS by its tokenizer, the picture by add_image_token
    picture = tiny.BOI + tiny.IMAGE * adapter.image_tokens + tiny.EOI
    want = tiny.BOS + want.replace(tiny.IMAGE, picture)
    assert adapter.prompt_text(direction, text) == want


# --- the fixture can tell -----------------------------------------------------------------------


@torch.no_grad()
def test_transformers_own_encode_gives_other_ids(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    """It looks latents and codes up without normalising them."""
    scaled = kept["pictures"].float() / 127.5 - 1
    found = adapter.model.model.vqmodel.encode(scaled).image_tokens.view(2, -1)
    assert (found != kept["image_ids"]).float().mean() > 0.25


@torch.no_grad()
def test_unconditional_pads_must_be_attended_to(
    adapter: JanusAdapter, kept: dict[str, Tensor]
) -> None:
    prompts, written, want = drawing(kept, 0)
    blank = adapter.blank_prompts(prompts)
    unattended = replace(blank, attention_mask=blank.prompt_ids != adapter.pad_id)
    assert (guided(adapter, prompts, unattended, written) - want).abs().max() > 0.1


@torch.no_grad()
def test_image_ids_are_no_near_ties(adapter: JanusAdapter, kept: dict[str, Tensor]) -> None:
    """Equality of ids is only fair where float error cannot turn one over."""
    assert ABOUT["smallest_margin_of_an_image_id"] > TOLERANCE
    assert len(kept["image_ids"].unique()) > 10
