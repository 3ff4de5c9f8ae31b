"""One cached decode loop for both directions: guidance, shared prefill, keyed random draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.inference.engines import Plain, Prompts
from viceversa.inference.fused import Fused, fusable
from viceversa.inference.graphs import Graphed
from viceversa.inference.logprobs import guided_logits, mass_logprobs
from viceversa.models.base import Adapter
from viceversa.models.products import large_products
from viceversa.types import (
    DIRECTIONS,
    OUTPUT_MODALITY,
    Completion,
    Direction,
    Modality,
    PromptBatch,
)


@dataclass(frozen=True)
class Sampled:
    """Sampled outputs, row by row."""

    completions: Completion
    drawn_logprobs: Tensor
    """[B, T] nats under the distribution drawn from; 0 where masked out."""
    truncated: Tensor
    """[B] bool: hit the length limit."""


@dataclass(frozen=True)
class DrawKeys:
    """All that a row's random numbers depend on: not batch, rank or order."""

    seed: int
    step: int
    rows: tuple[tuple[int, int], ...]
    """(example_id, sample) of each row."""

    def uniforms(self, direction: Direction, n: int) -> Tensor:
        """Draw [B, n] float64 in [0, 1)."""
        salt = DIRECTIONS.index(direction)
        draws = [
            np.random.default_rng([self.seed, self.step, salt, example, sample]).random(n)
            for example, sample in self.rows
        ]
        return torch.from_numpy(np.stack(draws))


def filtered_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits outside the top k, or outside the smallest set of mass `top_p`, become -inf."""
    if top_k:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1).cumsum(-1)
        outside = mass - ordered.softmax(-1) >= top_p  # the first token is always inside
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits


def draw_tokens(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Draw a token a row: invert the cumulative distribution at `uniform` [B]; logits [B, V].

    Returns the tokens [B] and their log-probs [B] under the distribution drawn from, after
    temperature and filters. Temperature 0 is the most likely token, at log-prob 0.
    """
    if config.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.zeros(tokens.shape, device=tokens.device)
    scaled = logits.float()
    if config.temperature != 1:
        scaled = scaled / config.temperature
    scaled = filtered_logits(scaled, config.top_k, config.top_p)
    mass = scaled.softmax(-1)
    cumulative = mass.cumsum(-1)
    # rounded to the type of the masses, a uniform number may be 1, which no token's mass exceeds
    below_one = 1 - torch.finfo(cumulative.dtype).eps
    target = uniform.to(cumulative).clamp_max(below_one).unsqueeze(-1) * cumulative[..., -1:]
    # the first token whose cumulative mass exceeds the target: its own mass is never zero
    tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    tokens = tokens.clamp_max(logits.shape[-1] - 1)
    return tokens, mass_logprobs(mass, tokens)


def sample(
    adapter: Adapter, prompts: PromptBatch, keys: DrawKeys, config: SamplingConfig
) -> Sampled:
    """Sample `len(keys.rows) / len(prompts)` completions a prompt, consecutive rows a group."""
    decoder = _Decoder(adapter, prompts, keys, config)
    decoder.draw(0)
    for t in range(1, decoder.limit):
        look = prompts.direction == "i2t" and (t - 1) % _look_every(adapter) == 0
        if look and not decoder.any_going():
            break
        decoder.step(t)
    return decoder.sampled()


def _look_every(adapter: Adapter) -> int:
    """Tokens between looks at which captions have stopped: a look waits for a GPU."""
    return 1 if adapter.device.type == "cpu" else 8


def engine_of(adapter: Adapter) -> Any:
    """Return the engine to decode with: the fastest that serves."""
    if adapter.device.type == "cuda":
        return Graphed
    return Fused if fusable(adapter) else Plain


class _Decoder:
    """The model mid-sentence, and what it has written so far.

    With guidance the batch holds every conditional row, then every unconditional one. A step
    changes tensors in place and asks nothing of the host, so that a GPU can replay it.
    """

    def __init__(
        self, adapter: Adapter, prompts: PromptBatch, keys: DrawKeys, config: SamplingConfig
    ):
        self.adapter, self.config = adapter, config
        self.modality: Modality = OUTPUT_MODALITY[prompts.direction]
        image, rows = self.modality == "image", len(keys.rows)
        self.limit = adapter.image_tokens if image else config.max_caption_tokens
        self.guidance = config.guidance if image else 1.0
        self.doubled = 2 if self.guidance != 1.0 else 1
        self.row_tokens = adapter.row_tokens if image else 0
        self.row_end = adapter.embed_row_end() if self.row_tokens else None
        self.products = large_products(adapter.text_model)
        with self.products:
            self.engine = engine_of(adapter)(adapter, self._start(prompts, rows // len(prompts)))
        self.table = None
        # a small vocabulary is embedded once, where more than a look-up is needed
        many = adapter.image_vocab_size <= rows * self.limit * self.doubled
        if image and many and not adapter.reads_image_ids:
            every = torch.arange(adapter.image_vocab_size, device=adapter.device)
            self.table = adapter.embed_tokens(every.unsqueeze(0), "image")[0]
        self.uniforms = keys.uniforms(prompts.direction, self.limit).to(adapter.device)
        self.ids = torch.zeros(rows, self.limit, dtype=torch.long, device=adapter.device)
        self.mask = torch.zeros(rows, self.limit, dtype=torch.bool, device=adapter.device)
        self.logprobs = torch.zeros(rows, self.limit, device=adapter.device)
        self.row = torch.arange(rows, device=adapter.device)
        """[R]: those still decoded."""
        self.going = torch.ones(rows, dtype=torch.bool, device=adapter.device)
        """[R]: of them, those that have not stopped."""
        self.tokens = torch.zeros_like(self.row)
        """[R]: the last ones, yet to be read."""

    def _start(self, prompts: PromptBatch, group_size: int) -> Prompts:
        embeds, mask = self.adapter.embed_prompts(prompts), prompts.attention_mask
        of = list(range(len(prompts)))
        if self.doubled == 2:
            blank, of_prompt = distinct(self.adapter.blank_prompts(prompts))
            embeds = torch.cat([embeds, self.adapter.embed_prompts(blank)])
            mask = torch.cat([mask, blank.attention_mask])
            of += [len(prompts) + blank for blank in of_prompt.tolist()]
        row_ends = self.limit // self.row_tokens if self.row_tokens else 0
        rows = [prompt for prompt in of for _ in range(group_size)]
        return Prompts(embeds, mask, rows, self.limit + row_ends)

    def step(self, t: int) -> None:
        """Read the last token of each row, and the row end that the model forces, and draw."""
        ends = bool(self.row_tokens) and t % self.row_tokens == 0

        def work(t: int | Tensor) -> None:
            self.engine.read(self._embedded(ends).repeat(self.doubled, 1, 1))
            self.draw(t)

        self.engine.repeat(work, t, 2 if ends else 1)

    def draw(self, t: int | Tensor) -> None:
        """Draw the t-th token of each row that goes on."""
        tokens, drawn = draw_tokens(self.logits(), self.uniforms[self.row, t], self.config)
        self.tokens.copy_(tokens.masked_fill(~self.going, 0))
        self.ids[self.row, t], self.mask[self.row, t] = self.tokens, self.going
        self.logprobs[self.row, t] = drawn * self.going
        if self.modality == "text":
            self.going &= self.tokens != self.adapter.stop_id

    def logits(self) -> Tensor:
        """Predict the next tokens, [R, V].

        Guidance mixes what the head's last layer reads: that is linear, so it comes to the same as
        mixing logits, for half of the work and with less rounding.
        """
        features = self.adapter.features(self.engine.hidden, self.modality)
        if self.doubled == 2:
            conditional, unconditional = features.float().chunk(2)
            mixed = guided_logits(conditional, unconditional, self.guidance)
            features = mixed.to(features.dtype)
        with self.products:
            return self.adapter.last_layer(features, self.modality)

    def _embedded(self, ends: bool) -> Tensor:
        """Embed the last tokens, [R, 1 or 2, D]."""
        if self.table is None:
            embeds = self.adapter.embed_tokens(self.tokens.unsqueeze(1), self.modality)
        else:
            embeds = self.table[self.tokens].unsqueeze(1)
        if not ends:
            return embeds
        assert self.row_end is not None
        end = self.row_end.to(embeds.dtype).expand(len(embeds), 1, -1)
        return torch.cat([embeds, end], dim=1)

    def any_going(self) -> bool:
        """Tell whether a caption has not stopped; the others are dropped once they are half."""
        left = self.going.nonzero().flatten()
        if 0 < 2 * len(left) <= len(self.row):
            self.engine.keep(left)  # captions have no guidance
            self.row, self.tokens, self.going = (
                x[left] for x in (self.row, self.tokens, self.going)
            )
        return len(left) > 0

    def sampled(self) -> Sampled:
        truncated = torch.zeros(len(self.ids), dtype=torch.bool, device=self.ids.device)
        if self.modality == "text":
            truncated[self.row] = self.going
        longest = int(self.mask.sum(-1).max())
        completions = Completion(self.ids[:, :longest], self.mask[:, :longest])
        return Sampled(completions, self.logprobs[:, :longest], truncated)


def distinct(prompts: PromptBatch) -> tuple[PromptBatch, Tensor]:
    """Find the prompts that differ, and which of them each one is; prompts to draw."""
    rows = torch.cat([prompts.prompt_ids, prompts.attention_mask.long()], dim=1)
    different, which = rows.unique(dim=0, return_inverse=True)
    ids, mask = different.chunk(2, dim=1)
    return PromptBatch(prompts.direction, ids, mask.bool()), which
