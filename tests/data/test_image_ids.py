"""image_ids and cache: the same ids with and without, kept by content and model."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from builders import random_janus
from viceversa.config import Config, SamplingConfig
from viceversa.data.cache import DiskCache
from viceversa.data.image_ids import ImageIds, fingerprint
from viceversa.models.base import Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.rl.rewards import rate
from viceversa.rl.step import Step
from viceversa.types import Example


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache" / "ids.sqlite")


def pixels_of(examples: list[Example]) -> torch.Tensor:
    return torch.stack([e.pixels for e in examples if e.pixels is not None])


def test_ids_are_those_of_the_model(
    adapter: Adapter, pictures_in: list[Example], cache: DiskCache
) -> None:
    """Computed, and from the disk in a later run, and in any company."""
    pixels = pixels_of(pictures_in)
    expected = adapter.encode_images(pixels)
    first, second = ImageIds(adapter, cache), ImageIds(adapter, cache)
    assert torch.equal(first(pixels), expected)
    assert torch.equal(second(pixels.flip(0)), expected.flip(0))
    assert (first.hits, first.misses) == (0, len(pixels))
    assert (second.hits, second.misses) == (len(pixels), 0)


def test_one_picture_twice_is_encoded_once(
    adapter: Adapter,
    pictures_in: list[Example],
    cache: DiskCache,
) -> None:
    ids = ImageIds(adapter, cache)
    found = ids(pixels_of(pictures_in)[:1].repeat(3, 1, 1, 1))
    assert (ids.hits, ids.misses) == (2, 1)
    assert (found == found[0]).all()


def test_another_tokenizer_has_other_ids(pictures_in: list[Example], cache: DiskCache) -> None:
    """One weight of the image tokenizer changes the key; the language model's do not."""
    one, other = random_janus(), random_janus()
    pixels = pixels_of(pictures_in)
    ImageIds(one, cache)(pixels)
    with torch.no_grad():
        other.model.lm_head.weight.add_(1)
    assert fingerprint(one) == fingerprint(other)
    with torch.no_grad():
        other.model.model.vqmodel.quantize.embedding.weight[0, 0] += 1
    again = ImageIds(other, cache)
    assert torch.equal(again(pixels), other.encode_images(pixels))
    assert again.hits == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_does_not_change_ids(
    adapter: Adapter, pictures_in: list[Example], dtype: torch.dtype
) -> None:
    """And of bfloat16 weights, the latents are compared with the codes in float32."""
    pixels = pixels_of(pictures_in)
    whole = fingerprint(adapter)
    adapter.model.to(dtype)
    expected = adapter.image_ids(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapter.image_ids(pixels), expected)
    assert (fingerprint(adapter) == whole) == (dtype == torch.float32)


def test_training_neither_changes_ids_nor_the_codec(
    adapter: Adapter, pictures_in: list[Example]
) -> None:
    """Emu3's tokenizer has batch norm: in training mode it would see the batch, and learn of it."""
    pixels = pixels_of(pictures_in)
    expected = adapter.image_ids(pixels)
    drawn = adapter.decode_images(expected) if adapter.draws_pixels else None
    before = fingerprint(adapter)
    adapter.model.train()
    assert torch.equal(adapter.image_ids(pixels), expected)
    if drawn is not None:
        assert torch.equal(adapter.decode_images(expected), drawn)
    assert fingerprint(adapter) == before
    assert adapter.image_tokenizer.training


def test_codes_are_looked_up_in_float32(adapter: Adapter, pictures_in: list[Example]) -> None:
    """Two codes that bfloat16 sums cannot tell apart: the nearer one is found all the same."""
    pixels = pixels_of(pictures_in)
    adapter.model.to(torch.bfloat16)
    codec: Any = adapter.image_tokenizer
    seen: list[torch.Tensor] = []
    codec.quant_conv.register_forward_hook(lambda *a: seen.append(a[2]))
    got = adapter.image_ids(pixels[:4])
    latents = torch.cat(seen).flatten(2).mT.double()
    codes = codec.quantize.embedding.weight.double()
    if isinstance(adapter, JanusAdapter):
        latents, codes = (F.normalize(x, dim=-1) for x in (latents, codes))
    want = (latents.unsqueeze(2) - codes).square().sum(-1).argmin(-1)
    assert torch.equal(got, want)


def test_rewards_do_not_depend_on_the_cache(
    adapter: Adapter, pictures_in: list[Example], cache: DiskCache
) -> None:
    """Without, empty and full; a model that reads image ids takes its prompts from it, too."""
    settings = SamplingConfig(group_size=2, max_caption_tokens=8)
    found = []
    full = ImageIds(adapter, cache)
    for known in (None, ImageIds(adapter, cache), full):
        step = Step(adapter, Config(sampling=settings), image_ids=known)
        sampled = step.sample(pictures_in, 0)
        (rewards,) = rate(step.rewards, sampled)
        found.append((sampled.prompts.prompt_ids, rewards))
    for prompt_ids, rewards in found[1:]:
        assert torch.equal(prompt_ids, found[0][0])
        assert torch.equal(rewards, found[0][1])
    assert full.hits == len(pictures_in)
    assert full.misses == 0


def test_a_damaged_entry_is_computed_again(
    adapter: Adapter, pictures_in: list[Example], cache: DiskCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = pixels_of(pictures_in)
    ids = ImageIds(adapter, cache)
    monkeypatch.setattr(cache, "get", lambda keys: dict.fromkeys(keys, b"short"))
    assert torch.equal(ids(pixels), adapter.encode_images(pixels))
    assert ids.hits == 0


def test_the_cache_holds_many_and_replaces(cache: DiskCache) -> None:
    entries = {k.to_bytes(4): bytes([k % 256]) for k in range(2000)}
    assert cache.get(list(entries)) == {}
    cache.put(entries)
    assert cache.get([*entries, b"unknown"]) == entries
    cache.put({(5).to_bytes(4): b"new"})
    assert cache.get([(5).to_bytes(4)]) == {(5).to_bytes(4): b"new"}
    assert cache.get([]) == {}


def test_a_cache_out_of_reach_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "ids.sqlite")
    cache.put({b"a": b"b"})
    assert cache.get([b"a"]) == {}
    assert len(caplog.records) == 1


def write(path: Path, first: int) -> None:
    for k in range(first, first + 50):
        DiskCache(path).put({k.to_bytes(4): b"x" * 100})


def test_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ids.sqlite"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(path, 50 * k)) for k in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(DiskCache(path).get([k.to_bytes(4) for k in range(200)])) == 200
