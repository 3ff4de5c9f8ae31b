"""Run each phase of a training step on the meta device and count the memory that it would take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from viceversa.config import LoraConfig, ModelConfig, SamplingConfig
from viceversa.inference import sampler
from viceversa.inference.logprobs import completion_logprobs, evaluating, policy_logprobs
from viceversa.inference.sampler import DrawKeys, _Decoder
from viceversa.models.base import Adapter
from viceversa.models.geometry import meta_adapter
from viceversa.plan.ledger import Ledger
from viceversa.types import Completion, Direction, PromptBatch

#: Text tokens of a prompt to draw and of a request to read, template and system prompt included,
#: where no tokenizer is at hand: assumed. Janus' system prompt alone has some forty words.
PROMPT_TOKENS, REQUEST_TOKENS = 48, 80
#: Of them, the words of a prompt: assumed.
PROMPT_WORDS = 32

Memory = Counter[str]
"""Bytes by part at the moment when they are most; weights are left out."""


@dataclass(frozen=True)
class Geometry:
    """A model as it computes."""

    path: str
    dtype: Any
    image_size: int = 0
    lora: tuple[Any, ...] = (0, 32, 0.0, "")
    checkpointing: bool = False
    autocast: bool = False
    """bfloat16: linear layers compute in it, and add to a float32 stream."""

    @cache  # noqa: B019
    def adapter(self) -> Adapter:
        model = ModelConfig(self.path, self.dtype, self.image_size)
        adapter = meta_adapter(model, LoraConfig(*self.lora))
        if self.checkpointing:
            adapter.model.activation_checkpointing_enable({"use_reentrant": False})
        return adapter


def ledger(adapter: Adapter, lengths: tuple[int, ...] = (), autocast: bool = False) -> Ledger:
    """Make a ledger that knows what is there already, and the parts by their shapes.

    `lengths`: tokens in a tensor of a cache.
    """
    model = adapter.model
    gradients = {tuple(p.shape) for p in model.parameters() if p.requires_grad and p.ndim > 1}
    gradients |= {shape[::-1] for shape in gradients}
    vocabularies = (adapter.image_vocab_size, model.config.get_text_config().vocab_size)

    def part_of(tensor: Tensor) -> str:
        shape = tuple(tensor.shape)
        if len(shape) == 4 and shape[2] in lengths:
            return "KV cache"
        if shape in gradients and torch.is_grad_enabled() is False and not lengths:
            return "gradients"
        return "logits" if shape and shape[-1] in vocabularies else "activations"

    book = Ledger(part_of, autocast=autocast)
    book.ignore([*model.parameters(), *model.buffers()])
    return book


def prompts_of(adapter: Adapter, direction: Direction, rows: int, words: int) -> PromptBatch:
    """Prompts to draw (of `words` text tokens), or pictures to read."""
    length = prompt_length(adapter, direction, words)
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    pixels = None
    if direction == "i2t" and not adapter.reads_image_ids:
        side = adapter.image_size
        pixels = torch.zeros(rows, 3, side, side, dtype=torch.uint8, device="meta")
    return PromptBatch(direction, ids, torch.ones_like(ids, dtype=torch.bool), pixels)


def prompt_length(adapter: Adapter, direction: Direction, words: int) -> int:
    """Tokens of a prompt with its template, and with its picture (`i2t`)."""
    if callable(adapter.tokenizer):
        text = adapter.default_instruction if direction == "i2t" else ""
        known = len(adapter.text_ids(adapter.prompt_text(direction, text)))
        return known + (words if direction == "t2i" else 0)
    if direction == "t2i":
        return PROMPT_TOKENS - PROMPT_WORDS + words
    return REQUEST_TOKENS + adapter.image_tokens + adapter.row_ends


def completions_of(adapter: Adapter, direction: Direction, rows: int, words: int) -> Completion:
    """Pictures (`t2i`), or texts of `words` tokens, every one of which counts."""
    length = adapter.image_tokens if direction == "t2i" else words
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    return Completion(ids, torch.ones_like(ids, dtype=torch.bool))


@cache
def sampling(
    geometry: Geometry, direction: Direction, inputs: int, group: int, words: int, guidance: float
) -> Memory:
    """Read the prompts, then draw the last token, by when the cache is full.

    `words` of a prompt, or of a caption at its longest.
    """
    return run_sampling(geometry, direction, inputs, group, words, guidance)[0].peak


def run_sampling(
    geometry: Geometry, direction: Direction, inputs: int, group: int, words: int, guidance: float
) -> tuple[Ledger, _Decoder]:
    """Sample as `sampling` says; return the ledger, and the decoder with its cache."""
    adapter, image = geometry.adapter(), direction == "t2i"
    limit = adapter.image_tokens if image else words
    length = prompt_length(adapter, direction, words)
    row_ends = adapter.row_ends if image else 0
    book = ledger(adapter, (length, limit + row_ends), geometry.autocast)
    with evaluating(adapter.model), book.open():
        prompts = prompts_of(adapter, direction, inputs, words)
        keys = DrawKeys(0, 0, ((0, 0),) * (inputs * group))
        settings = SamplingConfig(guidance=guidance, max_caption_tokens=words)
        # prompts of one length are equal once they are blanked
        with mock.patch.object(sampler, "distinct", _all_alike):
            decoder = _Decoder(adapter, prompts, keys, settings)
        decoder.engine.length = decoder.engine.capacity - (2 if row_ends else 1)
        decoder.step(limit - adapter.row_tokens if row_ends else limit - 1)
    return book, decoder


def _all_alike(prompts: PromptBatch) -> tuple[PromptBatch, Tensor]:
    """Stand in for `sampler.distinct`."""
    device = prompts.prompt_ids.device
    return prompts.select(slice(0, 1)), torch.zeros(len(prompts), dtype=torch.long, device=device)


@cache
def scoring(
    geometry: Geometry, direction: Direction, rows: int, words: int, guidance: float = 1.0
) -> Memory:
    """Score without gradient what `direction` writes: pictures, or texts of `words`."""
    adapter = geometry.adapter()
    book = ledger(adapter, autocast=geometry.autocast)
    with evaluating(adapter.model), book.open():
        prompts = prompts_of(adapter, direction, rows, words)
        completions = completions_of(adapter, direction, rows, words)
        completion_logprobs(adapter, prompts, completions, guidance=guidance)
    memory = book.peak
    memory["activations"] += memory.pop("gradients", 0)  # there are none: casts of weights
    return memory


@cache
def learning(
    geometry: Geometry,
    batches: tuple[tuple[Direction, int, int, int], ...],
    guidance: float,
    again: bool,
    norms: bool,
) -> Memory:
    """Run a backward pass over batches of rows: direction, how many, the words of a prompt (or
    of the text that is written), and how many rows share a prompt.

    `again`: gradients of an earlier pass are there. `norms`: each direction's gradient is first
    taken by itself and squared, which holds as much as an earlier pass's.
    """
    adapter = geometry.adapter()
    model, book = adapter.model.train(), ledger(adapter, autocast=geometry.autocast)
    trained = [p for p in adapter.model.parameters() if p.requires_grad]
    with book.open():
        if again or norms:
            with torch.no_grad():
                for parameter in trained:
                    parameter.grad = torch.empty_like(parameter)
        batch = [
            (
                prompts_of(adapter, d, n // (sharing if n % sharing == 0 else 1), words),
                completions_of(adapter, d, n, words),
            )
            for d, n, words, sharing in batches
        ]
        loss = torch.stack([x.sum() for x in policy_logprobs(adapter, batch, 1.0, guidance)]).sum()
        if norms:
            with torch.no_grad():
                max(trained, key=lambda p: p.numel()).detach().float().square()
        book.end_autocast()
        loss.backward()
    model.zero_grad()
    model.eval()
    return book.peak


@cache
def drawing(geometry: Geometry, rows: int) -> Memory:
    """Image ids to pixels."""
    adapter = geometry.adapter()
    if not adapter.draws_pixels:
        return Counter()
    book = ledger(adapter)
    with evaluating(adapter.model), book.open():
        adapter.decode_images(completions_of(adapter, "t2i", rows, 0).completion_ids)
    return Counter(activations=book.peak.total())


@cache
def reading(geometry: Geometry, rows: int) -> Memory:
    """Pixels to image ids."""
    adapter = geometry.adapter()
    book = ledger(adapter)
    with evaluating(adapter.model), book.open():
        side = adapter.image_size
        adapter.encode_images(torch.zeros(rows, 3, side, side, dtype=torch.uint8, device="meta"))
    return Counter(activations=book.peak.total())
