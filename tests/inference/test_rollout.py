"""Sampling: keyed draws, batching, guidance, filters, stop tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oracles import Repeated, oracle_of
from viceversa.config import LoraConfig, SamplingConfig
from viceversa.inference import fused
from viceversa.inference.engines import Plain, Prompts
from viceversa.inference.fused import Fused, fusable
from viceversa.inference.graphs import Graphed
from viceversa.inference.logprobs import completion_hidden, completion_logprobs, evaluating
from viceversa.inference.sampler import DrawKeys, draw_tokens, engine_of, filtered_logits, sample
from viceversa.inference.shared import MANY_KEYS, Groups, SharedCache, _products
from viceversa.models.base import Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.models.lora import add_lora
from viceversa.models.products import large_products
from viceversa.plan.ledger import Ledger
from viceversa.rl.rollout import input_prompts, rollout
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.types import Completion, Direction, Example, Modality, PromptBatch

CONFIG = SamplingConfig(group_size=3, max_caption_tokens=12)
#: Nats. Guidance and low temperatures make up to 3e-5 of the rounding of float32 logits.
ROUNDING = 1e-3

ENGINE = "viceversa.inference.sampler.engine_of"


class InPlace(Fused):
    """As for a model of many weights that writes little: they are read where they lie."""

    def _kind(self, prompts: Prompts) -> Any:
        return fused._InPlace

    def _forward(self, token: Tensor, hides: Tensor | None) -> Tensor:
        many = mock.patch("viceversa.models.products.MANY_NUMBERS", 0)
        with many, large_products(self.adapter.model):
            return super()._forward(token, hides)


class Packed(Fused):
    """As for a model of many weights that writes much: they are packed."""

    def _kind(self, prompts: Prompts) -> Any:
        return fused._Packed


@pytest.fixture(params=["t2i", "i2t"])
def examples(
    request: pytest.FixtureRequest, prompts_in: list[Example], pictures_in: list[Example]
) -> list[Example]:
    return prompts_in if request.param == "t2i" else pictures_in


def test_groups_differ_inside_and_repeat_with_the_same_key(
    adapter: Adapter, examples: list[Example]
) -> None:
    first = rollout(adapter, examples, CONFIG, seed=1, step=2).completions.completion_ids
    again = rollout(adapter, examples, CONFIG, seed=1, step=2).completions.completion_ids
    other = rollout(adapter, examples, CONFIG, seed=1, step=3).completions.completion_ids
    assert torch.equal(first, again)
    assert first.shape[0] == other.shape[0] == 3 * len(examples)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_batch_split_and_order_change_nothing(
    adapter: Adapter, examples: list[Example], guidance: float
) -> None:
    """The draws depend on (seed, step, example, sample) alone."""
    config = replace(CONFIG, guidance=guidance)
    whole = rollout(adapter, examples, config, seed=0, step=0)
    small = rollout(adapter, examples, replace(config, batch_rows=3), seed=0, step=0)
    reverse = rollout(adapter, examples[::-1], config, seed=0, step=0)
    mask = whole.completions.completion_mask
    assert torch.equal(mask, small.completions.completion_mask)
    assert torch.equal(whole.completions.completion_ids, small.completions.completion_ids)
    groups = [w.view(len(examples), 3, -1) for w in (whole.completions.completion_ids,)]
    back = reverse.completions.completion_ids.view(len(examples), 3, -1).flip(0)
    assert torch.equal(groups[0], back)


def greedy_by_its_class(adapter: Adapter, prompts: PromptBatch, guidance: float) -> Tensor:
    """The likeliest picture, one row [1, T]: by `generate` where the class draws pictures of its
    own, by the class's logits elsewhere."""
    if isinstance(adapter, JanusAdapter):
        settings = adapter.model.generation_config
        boi = adapter.tokenizer.convert_tokens_to_ids(adapter.tokenizer.boi_token)
        settings.generation_kwargs = {"boi_token_id": boi}
        return adapter.model.generate(
            prompts.prompt_ids,
            attention_mask=prompts.attention_mask.long(),
            generation_mode="image",
            do_sample=False,
            guidance_scale=max(guidance, 1.0 + 1e-6),  # at 1 it doubles the rows all the same
            max_new_tokens=adapter.image_tokens,
        )
    oracle = oracle_of(adapter)
    ids = torch.zeros(1, 0, dtype=torch.long)
    for _ in range(adapter.image_tokens):
        longer = torch.cat([ids, ids.new_zeros(1, 1)], dim=1)
        conditional = oracle.image_logits(prompts.prompt_ids, longer)[-1]
        blank = oracle.image_logits(oracle.blank(prompts.prompt_ids), longer)[-1]
        longer[0, -1] = (blank + guidance * (conditional - blank)).argmax()
        ids = longer
    return ids


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_drawing_equals_the_classs_own(
    adapter: Adapter, prompts_in: list[Example], guidance: float
) -> None:
    """Token by token, up to the first place where two tokens tie to 1e-3 nats."""
    greedy = SamplingConfig(group_size=1, temperature=0.0, guidance=guidance)
    compared = 0
    for example in prompts_in[:3]:
        prompts = input_prompts(adapter, [example], "")
        want = greedy_by_its_class(adapter, prompts, guidance)
        got = rollout(adapter, [example], greedy, seed=0, step=0).completions.completion_ids
        differ = (got != want)[0].nonzero().flatten()
        if len(differ):
            at = int(differ[0])
            mine, theirs = (
                completion_logprobs(adapter, prompts, adapter.image_completion(x), 1.0, guidance)
                for x in (got, want)
            )
            torch.testing.assert_close(mine[0, at], theirs[0, at], atol=ROUNDING, rtol=0)
        compared += int(differ[0]) if len(differ) else adapter.image_tokens
    assert compared > 1.5 * adapter.image_tokens


def test_captions_count_their_stop_token_and_know_when_they_have_none(
    adapter: Adapter, pictures_in: list[Example]
) -> None:
    sampled = rollout(adapter, pictures_in, replace(CONFIG, group_size=8), seed=0, step=0)
    ids, mask = sampled.completions.completion_ids, sampled.completions.completion_mask
    stopped = ((ids == adapter.stop_id) & mask).any(-1)
    assert sampled.truncated is not None
    assert torch.equal(sampled.truncated, ~stopped)
    assert (mask.sum(-1)[~stopped] == 12).all()
    for row in stopped.nonzero().flatten().tolist():
        assert ids[row][mask[row]][-1] == adapter.stop_id
    assert all(adapter.tokenizer.eos_token not in text for text in sampled.texts)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_drawn_logprobs_equal_scoring(
    adapter: Adapter, examples: list[Example], guidance: float, temperature: float
) -> None:
    """What sampling says of its own draws is what one scoring pass says of them."""
    if examples[0].direction == "i2t":
        guidance = 1.0
    config = replace(CONFIG, guidance=guidance, temperature=temperature)
    sampled = rollout(adapter, examples, config, seed=0, step=0)
    want = completion_logprobs(
        adapter, sampled.prompts.repeat_interleave(3), sampled.completions, temperature, guidance
    )
    torch.testing.assert_close(sampled.drawn_logprobs, want, atol=ROUNDING, rtol=0)


def test_draws_follow_the_distribution() -> None:
    """20,000 keyed draws from a known distribution: every frequency within 4 standard errors."""
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0])
    n = 20_000
    keys = DrawKeys(0, 0, tuple((i, 0) for i in range(n)))
    tokens, logprobs = draw_tokens(
        probs.log().expand(n, -1), keys.uniforms("t2i", 1)[:, 0], SamplingConfig()
    )
    share = torch.bincount(tokens, minlength=5) / n
    error = (share - probs).abs() / (probs * (1 - probs) / n).sqrt().clamp_min(1e-12)
    assert share[4] == 0
    torch.testing.assert_close(logprobs, probs.log()[tokens])
    assert (error[:4] < 4).all()


def test_the_highest_uniform_number_draws_a_token_that_can_be_drawn() -> None:
    """In float32 it is 1."""
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    highest = torch.tensor([1.0], dtype=torch.float64).nextafter(torch.zeros(()).double())
    tokens, logprobs = draw_tokens(logits, highest, SamplingConfig(top_k=2))
    assert tokens.item() == 1
    assert logprobs.isfinite().all()


def test_draws_are_uncorrelated_between_samples_and_steps() -> None:
    a = DrawKeys(0, 0, tuple((i, 0) for i in range(2000))).uniforms("t2i", 1).numpy()
    b = DrawKeys(0, 0, tuple((i, 1) for i in range(2000))).uniforms("t2i", 1).numpy()
    c = DrawKeys(0, 1, tuple((i, 0) for i in range(2000))).uniforms("t2i", 1).numpy()
    d = DrawKeys(0, 0, tuple((i, 0) for i in range(2000))).uniforms("i2t", 1).numpy()
    for other in (b, c, d):
        assert abs(np.corrcoef(a[:, 0], other[:, 0])[0, 1]) < 0.1


def test_filters() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert filtered_logits(logits, 2, 1.0).isinf().tolist() == [[False, False, True, True]]
    assert filtered_logits(logits, 0, 0.65).isinf().tolist() == [[False, False, True, True]]
    assert filtered_logits(logits, 0, 0.75).isinf().tolist() == [[False, False, False, True]]
    assert filtered_logits(logits, 0, 1e-9).isinf().tolist() == [[False, True, True, True]]
    zero = SamplingConfig(temperature=0.0)
    assert draw_tokens(logits, torch.tensor([0.99]), zero)[0].item() == 0


def test_mixed_directions_are_refused(
    adapter: Adapter, prompts_in: list[Example], pictures_in: list[Example]
) -> None:
    with pytest.raises(ValueError, match="one direction"):
        rollout(adapter, [*prompts_in, *pictures_in], CONFIG, seed=0, step=0)


@torch.no_grad()
def test_engines_agree(adapter: Adapter, examples: list[Example]) -> None:
    """The states of the class's own forward after every token, whatever the engine.

    Groups of unlike sizes, in any order; rows leave twice, of one group all.
    """
    image = examples[0].direction == "t2i"
    prompts = input_prompts(adapter, examples, "")
    embeds, mask = adapter.embed_prompts(prompts), prompts.attention_mask
    of, steps = [2, 2, 0, 1, 2, 1, 2, 2, 2, 0, 2], 6
    start = Prompts(embeds, mask, of, steps)
    engines: list[Any] = [Plain(adapter, start), Graphed(adapter, start, stride=4)]
    if fusable(adapter):
        engines += [Fused(adapter, start), InPlace(adapter, start), Packed(adapter, start)]
    wanted = Repeated(adapter, start)
    written = torch.randint(adapter.image_vocab_size if image else 400, (len(of), steps))
    rows = torch.arange(len(of))
    for t in range(0, steps, 2):
        if t:
            left = torch.tensor([10, 2, 0, 3, 4] if t == 2 else [4, 1, 0])
            rows = rows[left]
            for engine in (wanted, *engines):
                engine.keep(left)
        tokens = adapter.embed_tokens(written[rows, t : t + 2], "image" if image else "text")
        wanted.read(tokens)
        for engine in engines:
            engine.read(tokens)
            torch.testing.assert_close(engine.hidden, wanted.hidden, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Plain, Graphed, Fused, InPlace, Packed])
def test_a_prompt_is_held_once(adapter: Adapter, pictures_in: list[Example], kind: Any) -> None:
    """However many rows go on from it, also once some have left; nothing as large as a copy for
    each row is made on the way."""
    if issubclass(kind, Fused) and not fusable(adapter):
        pytest.skip("its layers are not fused")
    prompts = input_prompts(adapter, pictures_in[:3], "")
    embeds, mask = adapter.embed_prompts(prompts), prompts.attention_mask
    engine = kind(adapter, Prompts(embeds, mask, [0] * 30 + [1] * 50 + [2] * 60, 3))
    made: list[int] = []
    with Ledger(lambda x: made.append(x.untyped_storage().nbytes()) or "", device="cpu"):
        engine.read(embeds[:1, :1].expand(140, 1, -1))
    layer = engine.cache.layers[0]
    assert len(layer.prompt_keys) == len(layer.prompt_values) == 3
    assert 0 < max(made) < 140 * layer.prompt_keys[0].nbytes / 2
    engine.keep(torch.tensor([139, 40, 41, 100]))
    engine.read(embeds[:1, :1].expand(4, 1, -1))
    for kept in (layer.prompt_keys, layer.prompt_values):
        assert kept.untyped_storage().nbytes() == 2 * kept[0].nbytes
        assert kept.shape[2] == embeds.shape[1]


@torch.no_grad()
def test_the_models_attention_is_its_own_again(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a token, and after an error in it; and that of the configs inside."""
    config: Any = adapter.text_model.config
    inside = [getattr(config, name) for name in config.sub_configs]
    before = [c._attn_implementation for c in (config, *inside)]
    prompts = adapter.prompts("t2i", ["a red ring"])
    embeds, mask = adapter.embed_prompts(prompts), prompts.attention_mask
    engine = Plain(adapter, Prompts(embeds, mask, [0, 0], 4))
    engine.read(embeds[:, :1].expand(2, 1, -1))
    assert [c._attn_implementation for c in (config, *inside)] == before
    seen = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        seen.append(config._attn_implementation)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(SharedCache, "attended", fails)
    with pytest.raises(torch.OutOfMemoryError):
        engine.read(embeds[:, :1].expand(2, 1, -1))
    assert len(seen) == 1
    assert seen != before[:1]
    assert [c._attn_implementation for c in (config, *inside)] == before


@torch.no_grad()
def test_weights_are_packed_where_rows_write_as_much(
    builtin: Adapter, prompts_in: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So packing may double what decoding holds, and no more."""
    prompts = input_prompts(builtin, prompts_in, "")
    embeds, mask = builtin.embed_prompts(prompts), prompts.attention_mask
    layers: Any = builtin.text_model.layers
    weights = sum(w.nbytes for w in layers.parameters())

    def kind(capacity: int) -> Any:
        return type(Fused(builtin, Prompts(embeds, mask, [0, 0], capacity)).layers[0])

    cache = Plain(builtin, Prompts(embeds, mask, [0, 0], 1)).cache
    enough = -(-weights // cache.written_bytes)
    assert kind(1) is kind(enough) is fused._Copied
    monkeypatch.setattr(fused, "COPIED_BYTES", 0)
    assert [kind(enough - 1), kind(enough)] == [fused._InPlace, fused._Packed]
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert kind(enough) is fused._InPlace


@pytest.mark.parametrize("keys", [MANY_KEYS - 1, MANY_KEYS, 200])
@pytest.mark.parametrize("queries", [1, 4])
def test_products_with_few_and_many_keys_are_the_same(keys: int, queries: int) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, queries, 2, 8).transpose(1, 2)
    reached = torch.randn(2, 2, keys + 5, 8)[:, :, :keys]
    wanted = torch.einsum("bkrd,bkcd->bkrc", query, reached)
    torch.testing.assert_close(_products(query, reached), wanted)


def test_groups_of_unlike_sizes_waste_less_than_they_hold() -> None:
    """The unconditional rows of many prompts are one group beside the small ones."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        of = torch.randint(6, (40,), generator=generator).square().tolist()
        groups = Groups(of, torch.device("cpu"))
        assert sum(n * m for n, m in (block.shape for block in groups.blocks)) <= 2 * len(of)
        own, shared = torch.rand(40, 2, 3, 4), torch.rand(26, 2, 4, 5)
        found = torch.ones(40, 2, 3, 5)
        groups.add(found, own, shared[groups.prompts])
        torch.testing.assert_close(found, 1 + torch.matmul(own, shared[of]))
        assert torch.equal(torch.arange(26)[groups.prompts][groups.of], torch.tensor(of))
    guided = Groups([0, 0, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3], torch.device("cpu"))
    assert [block.shape for block in guided.blocks] == [(3, 2), (1, 6)]
    views = (guided.prompts, *(block.rows for block in guided.blocks))
    assert all(isinstance(view, slice) for view in views)


def read_on(adapter: Adapter, examples: list[Example], engine: Any, autocast: bool) -> Any:
    """An engine that has read five given tokens a row, and all hidden states on the way, [N, D].

    `autocast` is bfloat16's. Rows are dropped in the middle.
    """
    image = examples[0].direction == "t2i"
    written = torch.arange(60).view(12, 5) * 7 % (adapter.image_vocab_size if image else 400)
    rows, found = torch.arange(12), []
    with evaluating(adapter.model), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        prompts = input_prompts(adapter, examples, "")
        embeds, of = adapter.embed_prompts(prompts), [2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 1, 1]
        one = engine(adapter, Prompts(embeds, prompts.attention_mask, of, 5))
        for t in range(5):
            if t == 3:
                rows = torch.tensor([7, 2, 11])
                one.keep(rows)
            modality: Modality = "image" if image else "text"
            one.read(adapter.embed_tokens(written[rows, t : t + 1], modality))
            found.append(one.hidden.float().clone())
    return one, torch.cat(found)


def test_engines_agree_under_autocast(adapter: Adapter, examples: list[Example]) -> None:
    """Each is as far from float32 as the class's own: what bfloat16 rounds off, and no more."""
    _, exact = read_on(adapter, examples, Repeated, False)
    _, by_the_book = read_on(adapter, examples, Repeated, True)
    rounding = (by_the_book - exact).square().mean().sqrt()
    assert 1e-3 < rounding < 0.3  # of numbers of size 1
    with torch.autocast("cpu", torch.bfloat16):
        serves = engine_of(adapter)
    for engine in (Plain, partial(Graphed, stride=4), serves):
        _, found = read_on(adapter, examples, engine, True)
        assert (found - exact).square().mean().sqrt() < 2 * rounding


def test_engines_sample_alike_under_autocast(
    adapter: Adapter, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens in most rows; not in all, where one lies at a rounding edge."""
    prompts, found = input_prompts(adapter, examples, ""), []
    keys = DrawKeys(0, 0, tuple((e.example_id, g) for e in examples for g in range(3)))
    monkeypatch.setattr(adapter, "image_tokens", 8)
    with evaluating(adapter.model), torch.autocast("cpu", torch.bfloat16):
        for engine in (Plain, partial(Graphed, stride=4), engine_of(adapter)):
            monkeypatch.setattr(ENGINE, lambda adapter, kind=engine: kind)
            config = SamplingConfig(guidance=1.5, max_caption_tokens=8)
            ids = sample(adapter, prompts, keys, config).completions.completion_ids
            found.append(F.pad(ids, (0, 8 - ids.shape[1])))
    for ids in found[1:]:
        assert (ids == found[0]).all(-1).float().mean() > 0.7


def test_the_cache_keeps_what_attention_reads(adapter: Adapter, examples: list[Example]) -> None:
    """Under autocast keys in bfloat16, as attention would round them: half the memory."""
    one, found = read_on(adapter, examples, Plain, True)
    assert held_in(one) == {torch.bfloat16}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("viceversa.inference.shared._kept", lambda states: states.contiguous())
        whole, same = read_on(adapter, examples, Plain, True)
    assert torch.float32 in held_in(whole)
    assert torch.equal(found, same)


def held_in(engine: Any) -> set[torch.dtype]:
    names = ("prompt_keys", "prompt_values", "keys", "values")
    return {getattr(layer, name).dtype for layer in engine.cache.layers for name in names}


@torch.no_grad()
@pytest.mark.parametrize("engine", [Plain, Graphed])
def test_a_cache_may_be_read_on_in_another_precision(adapter: Adapter, engine: Any) -> None:
    prompts = adapter.prompts("t2i", ["a red ring"])
    embeds, mask = adapter.embed_prompts(prompts), prompts.attention_mask
    one = engine(adapter, Prompts(embeds, mask, [0, 0], 4))
    with torch.autocast("cpu", torch.bfloat16):
        one.read(embeds[:, :1].expand(2, 1, -1))
    assert one.hidden.isfinite().all()


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_engines_draw_alike(
    builtin: Adapter, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws of the bundled model, but for the odd one at a rounding edge; so, too, the
    same frequencies."""
    examples = examples_of(direction, draw_specs("engines", 2, "tune"))
    config = SamplingConfig(group_size=16, guidance=1.5)
    found = []
    for engine in (Fused, InPlace, Packed, Plain):
        monkeypatch.setattr(ENGINE, lambda adapter, kind=engine: kind)
        sampled = rollout(builtin, examples, config, seed=0, step=0)
        ids, mask = sampled.completions.completion_ids, sampled.completions.completion_mask
        found.append((ids, torch.bincount(ids[mask], minlength=500) / mask.sum()))
    ids, often = found.pop()
    for ids_, often_ in found:
        width = min(ids.shape[1], ids_.shape[1])
        same = (ids[:, :width] == ids_[:, :width]).all(-1).float().mean()
        assert same > 0.98
        assert (often - often_).abs().max() < 0.01


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@torch.no_grad()
def test_the_fast_path_draws_from_the_models_distribution(
    builtin: Adapter, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,000 second tokens, against their exact distribution: the model's own forward after every
    first token there is. Hot, so that many tokens have mass."""
    n, hot = 4000, 3.0
    examples = examples_of(direction, draw_specs("frequencies", 1, "tune"))[:1]
    prompts = input_prompts(builtin, examples, "")
    assert fusable(builtin)
    monkeypatch.setattr(builtin, "image_tokens", 2)
    config = SamplingConfig(group_size=n, temperature=hot, max_caption_tokens=2)
    keys = DrawKeys(0, 0, tuple((0, g) for g in range(n)))
    drawn = sample(builtin, prompts, keys, config).completions.completion_ids[:, 1]
    modality: Modality = "image" if direction == "t2i" else "text"
    first = torch.arange(builtin.vocabulary(modality))
    ids = torch.stack([first, first], dim=1)
    pairs = Completion(ids, torch.ones_like(ids, dtype=torch.bool))
    logits = builtin.logits(completion_hidden(builtin, prompts, pairs), modality) / hot
    before, after = logits[0, 0].softmax(-1), logits[:, 1].softmax(-1)
    if direction == "i2t":  # nothing is drawn after a stop: the place holds a 0
        after[builtin.stop_id] = torch.eye(len(first))[0]
    exact = before @ after
    often = torch.bincount(drawn, minlength=len(first)) / n
    assert (exact > 0.01).sum() > 5
    error = (often - exact).abs() / (exact * (1 - exact) / n + 1e-9).sqrt()
    assert error[exact > 1e-3].max() < 4.5


def test_what_is_no_sum_with_lora_is_not_fused(adapter: Adapter, prompts_in: list[Example]) -> None:
    """DoRA scales the sum of weights and LoRA, and a merged LoRA is in the weights already."""
    if not fusable(adapter):
        pytest.skip("its layers are not fused")
    settings = {"r": 4, "target_modules": adapter.lora_modules, "init_lora_weights": False}
    model = peft.get_peft_model(adapter.model, peft.LoraConfig(use_dora=True, **settings))
    assert not fusable(adapter)
    sampled = rollout(adapter, prompts_in, CONFIG, seed=0, step=0)
    want = completion_logprobs(adapter, sampled.prompts, sampled.completions)
    torch.testing.assert_close(sampled.drawn_logprobs, want.detach(), atol=ROUNDING, rtol=0)
    plain = peft.get_peft_model(model.unload(), peft.LoraConfig(**settings))
    assert fusable(adapter)
    plain.merge_adapter()
    assert not fusable(adapter)


@pytest.mark.parametrize("kind", [Fused, InPlace, Packed])
def test_fused_reads_lora(
    adapter: Adapter,
    prompts_in: list[Example],
    kind: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LoRA weights that are not zero are in the fused weights, too."""
    if not fusable(adapter):
        pytest.skip("its layers are not fused")
    monkeypatch.setattr(ENGINE, lambda adapter: kind)
    before = rollout(adapter, prompts_in, CONFIG, seed=0, step=0).completions.completion_ids
    add_lora(adapter, LoraConfig(rank=4), "")
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    sampled = rollout(adapter, prompts_in, CONFIG, seed=0, step=0)
    assert not torch.equal(sampled.completions.completion_ids, before)
    want = completion_logprobs(adapter, sampled.prompts, sampled.completions)
    torch.testing.assert_close(sampled.drawn_logprobs, want.detach(), atol=ROUNDING, rtol=0)
