"""Likelihoods, proven: against the model's own loss, an independent cross-entropy, and cached
token-by-token decoding; then faults are planted, and each must be caught by one of these checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from builders import random_emu3
from oracles import SingleOracle, oracle_of
from viceversa.config import SamplingConfig
from viceversa.inference import logprobs as lp
from viceversa.models.base import Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.rl.rollout import decode_images, input_prompts, rollout
from viceversa.scenes.language import caption
from viceversa.scenes.spec import draw_specs
from viceversa.types import Completion, Example, PromptBatch

TEXTS = [caption(s) for s in draw_specs(1, 1, "train")]
#: Nats. Guidance makes up to 4e-5 of the rounding of float32; the faults are far larger.
TOLERANCE = 1e-3


def drawing(adapter: Adapter, examples: list[Example]) -> tuple[PromptBatch, Completion]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        adapter.image_vocab_size, (len(examples), adapter.image_tokens), generator=generator
    )
    return input_prompts(adapter, examples, ""), adapter.image_completion(ids)


def captioning(adapter: Adapter, examples: list[Example]) -> tuple[PromptBatch, Completion]:
    return input_prompts(adapter, examples, ""), adapter.text_completion(TEXTS[: len(examples)])


def rows(adapter: Adapter, examples: list[Example]) -> tuple[PromptBatch, Completion]:
    build = drawing if examples[0].direction == "t2i" else captioning
    return build(adapter, examples)


@pytest.fixture(params=["t2i", "i2t"])
def examples(
    request: pytest.FixtureRequest, prompts_in: list[Example], pictures_in: list[Example]
) -> list[Example]:
    return prompts_in if request.param == "t2i" else pictures_in


# --- the checks -------------------------------------------------------------------------------


def unpadded(prompts: PromptBatch, row: int) -> PromptBatch:
    one = prompts.select(slice(row, row + 1))
    kept = one.attention_mask[0]
    return replace(
        one, prompt_ids=one.prompt_ids[:, kept], attention_mask=one.attention_mask[:, kept]
    )


def check_text_against_labels_loss(adapter: Adapter, pictures: list[Example]) -> None:
    """Mean text log-prob = minus the class's own `labels` loss, row by row."""
    prompts, completions = captioning(adapter, pictures)
    got = lp.completion_logprobs(adapter, prompts, completions)
    means = lp.mean_logprobs(got, completions.completion_mask)
    for row in range(len(prompts)):
        text = adapter.answer_prefix + TEXTS[row]
        ids = [*adapter.text_ids(text), adapter.processor.tokenizer.eos_token_id]
        loss = oracle_of(adapter).labels_loss(unpadded(prompts, row), torch.tensor([ids]))
        torch.testing.assert_close(means[row], -loss, atol=TOLERANCE, rtol=0)


def check_image_against_cross_entropy(adapter: Adapter, prompts_in: list[Example]) -> None:
    """Image log-probs = a cross-entropy over the image tokens, built from the class's modules."""
    prompts, completions = drawing(adapter, prompts_in)
    got = lp.completion_logprobs(adapter, prompts, completions)
    for row in range(len(prompts)):
        ids = completions.completion_ids[row : row + 1]
        logits = oracle_of(adapter).image_logits(unpadded(prompts, row).prompt_ids, ids)
        want = -F.cross_entropy(logits, ids[0], reduction="none")
        torch.testing.assert_close(got[row], want, atol=TOLERANCE, rtol=0)


def cached_logprobs(
    adapter: Adapter, prompts: PromptBatch, completions: Completion, guidance: float = 1.0
) -> Tensor:
    """Token by token with transformers' own growing cache, one row at a time."""
    modality = "image" if prompts.direction == "t2i" else "text"
    oracle = oracle_of(adapter)
    out = torch.zeros(completions.completion_ids.shape)
    for row in range(len(prompts)):
        streams = []
        for blank in (False, True) if guidance != 1.0 else (False,):
            one = unpadded(prompts, row)
            if blank:
                ids = oracle.blank(one.prompt_ids)
                one = PromptBatch("t2i", ids, torch.ones_like(ids, dtype=torch.bool))
            cache = DynamicCache()
            embeds = adapter.embed_prompts(one)
            n = embeds.shape[1]
            hidden = adapter.backbone(embeds, None, torch.arange(n).unsqueeze(0), cache)
            streams.append([hidden[:, -1], cache, n])
        for t in range(int(completions.completion_mask[row].sum())):
            logits = [adapter.logits(s[0], modality) for s in streams]
            mixed = logits[0]
            if guidance != 1.0:
                mixed = logits[1] + guidance * (logits[0] - logits[1])
            token = completions.completion_ids[row, t]
            out[row, t] = mixed.log_softmax(-1)[0, token]
            steps = [adapter.embed_tokens(token.view(1, 1), modality)]
            for forced in oracle.forced(t) if modality == "image" else ():
                steps.append(adapter.model.get_input_embeddings()(torch.tensor([[forced]])))
            for s in streams:
                for step in steps:
                    s[0] = adapter.backbone(step, None, torch.tensor([[s[2]]]), s[1])[:, -1]
                    s[2] += 1
    return out


def check_against_cached_decoding(adapter: Adapter, examples: list[Example]) -> None:
    prompts, completions = rows(adapter, examples)
    got = lp.completion_logprobs(adapter, prompts, completions)
    want = cached_logprobs(adapter, prompts, completions)
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def check_guided_against_cached_decoding(adapter: Adapter, prompts_in: list[Example]) -> None:
    prompts, completions = drawing(adapter, prompts_in[:3])
    got = lp.completion_logprobs(adapter, prompts, completions, guidance=2.5)
    want = cached_logprobs(adapter, prompts, completions, guidance=2.5)
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def check_codes_are_the_nearest(adapter: Adapter, pictures: list[Example]) -> None:
    """Image ids = the nearest code as the original model means it, one latent at a time."""
    pixels = torch.stack([e.pixels for e in pictures if e.pixels is not None])
    got = adapter.encode_images(pixels)
    for row in range(2):
        assert got[row].tolist() == oracle_of(adapter).nearest_codes(pixels[row])


def check_a_picture_is_read_as_its_codes(adapter: Adapter, pictures: list[Example]) -> None:
    """A prompt to read holds the vocabulary ids of the nearest codes in order, forced ones among.

    The other checks take the adapter's prompt as it is.
    """
    oracle = oracle_of(adapter)
    assert isinstance(oracle, SingleOracle)
    prompts, _ = captioning(adapter, pictures[:2])
    for row, picture in enumerate(pictures[:2]):
        assert picture.pixels is not None
        want = []
        for t, code in enumerate(oracle.nearest_codes(picture.pixels)):
            want += [oracle.visual[code], *oracle.forced(t)]
        ids = unpadded(prompts, row).prompt_ids[0].tolist()
        assert any(ids[start : start + len(want)] == want for start in range(len(ids)))


# --- they hold --------------------------------------------------------------------------------


@torch.no_grad()
def test_text_logprobs_equal_the_models_own_loss(
    adapter: Adapter, pictures_in: list[Example]
) -> None:
    check_text_against_labels_loss(adapter, pictures_in)


@torch.no_grad()
def test_image_logprobs_equal_an_independent_cross_entropy(
    adapter: Adapter, prompts_in: list[Example]
) -> None:
    check_image_against_cross_entropy(adapter, prompts_in)


@torch.no_grad()
def test_logprobs_equal_cached_decoding(adapter: Adapter, examples: list[Example]) -> None:
    check_against_cached_decoding(adapter, examples)


@torch.no_grad()
def test_guided_logprobs_equal_cached_decoding(adapter: Adapter, prompts_in: list[Example]) -> None:
    check_guided_against_cached_decoding(adapter, prompts_in)


@torch.no_grad()
@pytest.mark.parametrize("size", [24, 32])
def test_emu3_at_more_than_one_size(size: int, prompts_in: list[Example]) -> None:
    """The same checks, rows of 6 and of 8 tokens; pictures to read are of the size, too."""
    adapter = random_emu3(image_size=size)
    assert (adapter.row_tokens, adapter.image_tokens) == (size // 4, (size // 4) ** 2)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
    pictures = [Example(i, "i2t", pixels=p) for i, p in enumerate(pixels)]
    check_image_against_cross_entropy(adapter, prompts_in[:3])
    check_text_against_labels_loss(adapter, pictures)
    for examples in (prompts_in[:3], pictures):
        check_against_cached_decoding(adapter, examples)
    check_guided_against_cached_decoding(adapter, prompts_in)
    check_codes_are_the_nearest(adapter, pictures)
    drawn = rollout(adapter, prompts_in[:2], SamplingConfig(group_size=2), seed=0, step=0)
    assert drawn.pixels is not None and drawn.pixels.shape == (4, 3, size, size)


@torch.no_grad()
def test_image_ids_are_the_nearest_codes(adapter: Adapter, pictures_in: list[Example]) -> None:
    check_codes_are_the_nearest(adapter, pictures_in)


@torch.no_grad()
def test_a_picture_is_read_as_its_codes(
    adapter: Adapter, pictures_in: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(adapter, JanusAdapter):
        return  # it reads pixels, and so does its class's own loss
    check_a_picture_is_read_as_its_codes(adapter, pictures_in)
    honest = adapter.image_ids
    monkeypatch.setattr(adapter, "image_ids", lambda pixels: honest(pixels).roll(1, dims=1))
    must_fail(lambda: check_a_picture_is_read_as_its_codes(adapter, pictures_in))


@torch.no_grad()
def test_batched_equals_single(adapter: Adapter, examples: list[Example]) -> None:
    prompts, completions = rows(adapter, examples)
    together = lp.completion_logprobs(adapter, prompts, completions)
    for row in range(len(prompts)):
        part = slice(row, row + 1)
        alone = lp.completion_logprobs(adapter, prompts.select(part), completions.select(part))
        torch.testing.assert_close(together[part], alone, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padded_equals_unpadded(adapter: Adapter, examples: list[Example]) -> None:
    """More padding, left of the prompt and right of the completion, changes nothing."""
    prompts, completions = rows(adapter, examples)
    padded_prompts = replace(
        prompts,
        prompt_ids=F.pad(prompts.prompt_ids, (5, 0), value=9),
        attention_mask=F.pad(prompts.attention_mask, (5, 0)),
    )
    want = lp.completion_logprobs(adapter, prompts, completions)
    pad = 0 if prompts.direction == "t2i" else 4
    padded = Completion(
        F.pad(completions.completion_ids, (0, pad), value=3),
        F.pad(completions.completion_mask, (0, pad)),
    )
    got = lp.completion_logprobs(adapter, padded_prompts, padded)
    torch.testing.assert_close(got, F.pad(want, (0, pad)), atol=TOLERANCE, rtol=0)


def test_head_chunks_change_neither_values_nor_gradients(
    adapter: Adapter, examples: list[Example]
) -> None:
    prompts, completions = rows(adapter, examples)
    found = []
    for tokens in (8192, 17):
        adapter.model.zero_grad()
        chunk = tokens * adapter.vocabulary("image" if prompts.direction == "t2i" else "text")
        values = lp.completion_logprobs(adapter, prompts, completions, chunk_logits=chunk)
        values.sum().backward()
        first = adapter.trainable_parameters()[1].grad  # after the embeddings
        assert first is not None and first.abs().sum() > 0
        gradient = first.clone()
        found.append((values.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], atol=TOLERANCE, rtol=0)
    assert (found[0][1] - found[1][1]).norm() <= 1e-3 * found[1][1].norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_shared_prompts_equal_repeated_ones(
    adapter: Adapter, examples: list[Example], guidance: float, checkpointing: bool
) -> None:
    """Reading a prompt once for its group changes neither values nor gradients."""
    prompts, one = rows(adapter, examples[:3])
    if prompts.direction == "i2t":
        guidance = 1.0
    ids = one.completion_ids
    completions = Completion(
        torch.stack([ids, ids.flip(1)], 1).flatten(0, 1),
        one.completion_mask.repeat_interleave(2, 0),
    )
    found = []
    if checkpointing:
        adapter.model.gradient_checkpointing_enable({"use_reentrant": False})
    adapter.model.train(checkpointing)
    for read in (prompts, prompts.repeat_interleave(2)):
        adapter.model.zero_grad()
        values = lp.completion_logprobs(adapter, read, completions, guidance=guidance)
        values.square().sum().backward()
        gradients = [p.grad.clone() for p in adapter.trainable_parameters() if p.grad is not None]
        found.append((values.detach(), gradients))
    adapter.model.zero_grad()
    adapter.model.gradient_checkpointing_disable()
    adapter.model.eval()
    torch.testing.assert_close(found[0][0], found[1][0], atol=TOLERANCE, rtol=0)
    assert len(found[0][1]) == len(found[1][1]) > 5
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm()


@torch.no_grad()
def test_completions_must_share_prompts_evenly(adapter: Adapter, examples: list[Example]) -> None:
    prompts, completions = rows(adapter, examples[:3])
    with pytest.raises(ValueError, match="3 completions do not share 2 prompts"):
        lp.completion_logprobs(adapter, prompts.select(slice(2)), completions)


@torch.no_grad()
def test_temperature_and_guidance_follow_their_definitions(adapter: Adapter) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    got = lp.token_logprobs(logits, torch.tensor([2]), temperature=2.0)
    torch.testing.assert_close(got, (logits / 2).log_softmax(-1)[:, 2])
    assert lp.guided_logits(torch.tensor(3.0), torch.tensor(1.0), 2.0) == 5.0
    assert lp.guided_logits(torch.tensor(3.0), torch.tensor(1.0), 1.0) == 3.0


@torch.no_grad()
def test_guidance_on_captions_is_refused(adapter: Adapter, pictures_in: list[Example]) -> None:
    prompts, completions = captioning(adapter, pictures_in)
    with pytest.raises(ValueError, match="guidance"):
        lp.completion_logprobs(adapter, prompts, completions, guidance=2.0)


# --- planted faults ---------------------------------------------------------------------------


def must_fail(check: Callable[[], None]) -> None:
    with pytest.raises(AssertionError):
        check()


@torch.no_grad()
def test_fault_shift_by_one_is_caught(
    adapter: Adapter, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scoring position i against token i, as one published trainer does."""
    honest = lp.completion_hidden

    def shifted(*args: Any) -> Tensor:
        hidden = honest(*args)
        return torch.cat([hidden[:, 1:], hidden[:, -1:]], dim=1)

    monkeypatch.setattr(lp, "completion_hidden", shifted)
    must_fail(lambda: check_against_cached_decoding(adapter, examples))
    if examples[0].direction == "i2t":
        must_fail(lambda: check_text_against_labels_loss(adapter, examples))
    else:
        must_fail(lambda: check_image_against_cross_entropy(adapter, examples))


@torch.no_grad()
def test_fault_dropped_stop_token_is_caught(
    adapter: Adapter, pictures_in: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = adapter.text_completion

    def dropped(texts: Any) -> Completion:
        whole = honest(texts)
        stop = whole.completion_ids == adapter.stop_id
        return Completion(whole.completion_ids, whole.completion_mask & ~stop)

    monkeypatch.setattr(adapter, "text_completion", dropped)
    must_fail(lambda: check_text_against_labels_loss(adapter, pictures_in))


@torch.no_grad()
def test_fault_unnormalised_codes_are_caught(
    adapter: Adapter, pictures_in: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Janus: transformers' own look-up. Elsewhere: Janus' look-up, which is wrong there."""
    codec = adapter.model.model.vqmodel
    if isinstance(adapter, JanusAdapter):

        def wrong(pixels: Tensor) -> Tensor:
            return codec.encode(pixels.float() / 127.5 - 1).image_tokens.view(len(pixels), -1)
    else:
        honest = adapter.encode_images

        def wrong(pixels: Tensor) -> Tensor:
            weight = codec.quantize.embedding.weight
            plain = weight.clone()
            weight.copy_(F.normalize(plain, dim=-1))
            found = honest(pixels)
            weight.copy_(plain)
            return found

    monkeypatch.setattr(adapter, "encode_images", wrong)
    must_fail(lambda: check_codes_are_the_nearest(adapter, pictures_in))


@torch.no_grad()
def test_fault_swapped_guidance_rows_are_caught(
    adapter: Adapter, prompts_in: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = lp.guided_logits
    monkeypatch.setattr(lp, "guided_logits", lambda c, u, w: honest(u, c, w))
    must_fail(lambda: check_guided_against_cached_decoding(adapter, prompts_in))


@torch.no_grad()
def test_round_trip_uses_one_codebook(adapter: Adapter) -> None:
    """decode -> encode speaks of the same codes: pictures decode to uint8 of the right shape."""
    if not adapter.draws_pixels:
        with pytest.raises(NotImplementedError, match="pixels"):
            adapter.decode_images(torch.zeros(1, adapter.image_tokens, dtype=torch.long))
        return
    ids = torch.randint(adapter.image_vocab_size, (2, adapter.image_tokens))
    pixels = decode_images(adapter, ids)
    assert pixels is not None
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, adapter.image_size, adapter.image_size)
