"""One cached decode loop for both directions: guidance, shared prefill, keyed random draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viceversa.config import SamplingConfig
from viceversa.decoding import Prompts, engine_of
from viceversa.logprobs import evaluating, guided_logits, token_logprobs
from viceversa.models.base import Adapter
from viceversa.types import (
    DIRECTIONS,
    OUTPUT_MODALITY,
    Completion,
    Direction,
    Example,
    Modality,
    PromptBatch,
    Rollout,
)


@dataclass(frozen=True)
class Sampled:
    """What `sample` returns, row by row."""

    completions: Completion
    drawn_logprobs: Tensor
    """[B, T] nats under the distribution drawn from; 0 where masked out."""
    truncated: Tensor
    """[B] bool: hit the length limit."""


@dataclass(frozen=True)
class DrawKeys:
    """What a row's random numbers depend on, and nothing else: not batch, rank or order."""

    seed: int
    step: int
    rows: tuple[tuple[int, int], ...]
    """(example_id, sample) of each row."""

    def uniforms(self, direction: Direction, n: int) -> Tensor:
        """[B, n] float64 in [0, 1)."""
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
    """One token a row by inverting the cumulative distribution at `uniform` [B]; logits [B, V].

    Returns the tokens [B] and their log-probs [B] under the distribution drawn from, after
    temperature and filters. Temperature 0 is the most likely token, at log-prob 0.
    """
    if config.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, torch.zeros(tokens.shape, device=tokens.device)
    scaled = filtered_logits(logits.float() / config.temperature, config.top_k, config.top_p)
    cumulative = scaled.softmax(-1).cumsum(-1)
    # rounded to the type of the masses, a uniform number may be 1, which no token's mass exceeds
    below_one = 1 - torch.finfo(cumulative.dtype).eps
    target = uniform.to(cumulative).clamp_max(below_one).unsqueeze(-1) * cumulative[..., -1:]
    # the first token whose cumulative mass exceeds the target: its own mass is never zero
    tokens = (cumulative <= target).sum(-1).clamp_max(logits.shape[-1] - 1)
    return tokens, token_logprobs(scaled, tokens)


def sample(
    adapter: Adapter, prompts: PromptBatch, keys: DrawKeys, config: SamplingConfig
) -> Sampled:
    """Sample `len(keys.rows) / len(prompts)` completions a prompt, consecutive rows a group."""
    direction = prompts.direction
    image = direction == "t2i"
    limit = adapter.image_tokens if image else config.max_caption_tokens
    guidance = config.guidance if image else 1.0
    rows = len(keys.rows)
    uniforms = keys.uniforms(direction, limit).to(adapter.device)

    decoder = _Decoder(adapter, prompts, rows // len(prompts), guidance, limit)
    ids = torch.zeros(rows, limit, dtype=torch.long, device=adapter.device)
    mask = torch.zeros(rows, limit, dtype=torch.bool, device=adapter.device)
    logprobs = torch.zeros(rows, limit, device=adapter.device)
    row = torch.arange(rows, device=adapter.device)  # those still decoded
    going = torch.ones(rows, dtype=torch.bool, device=adapter.device)  # of them
    for t in range(limit):
        tokens, drawn = draw_tokens(decoder.logits(), uniforms[row, t], config)
        tokens = tokens.masked_fill(~going, 0)
        ids[row, t], mask[row, t], logprobs[row, t] = tokens, going, drawn * going
        if not image:
            going = going & (tokens != adapter.stop_id)
            if t % _look_every(adapter) == 0:
                left = going.nonzero().flatten()
                if not len(left):
                    break
                if 2 * len(left) <= len(row):
                    decoder.engine.keep(left)  # captions have no guidance
                    row, tokens, going = row[left], tokens[left], going[left]
        if t + 1 < limit:
            decoder.advance(tokens, t)
    truncated = torch.zeros(rows, dtype=torch.bool, device=adapter.device)
    if not image:
        truncated[row] = going
    longest = int(mask.sum(-1).max())
    completions = Completion(ids[:, :longest], mask[:, :longest])
    return Sampled(completions, logprobs[:, :longest], truncated)


def _look_every(adapter: Adapter) -> int:
    """Tokens between looks at which captions have stopped: a look waits for a GPU."""
    return 1 if adapter.device.type == "cpu" else 8


class _Decoder:
    """The model mid-sentence.

    With guidance the batch holds every conditional row, then every unconditional one.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompts: PromptBatch,
        group_size: int,
        guidance: float,
        limit: int,
    ):
        self.adapter, self.guidance = adapter, guidance
        self.modality: Modality = OUTPUT_MODALITY[prompts.direction]
        self.doubled = 2 if guidance != 1.0 else 1
        embeds, mask = adapter.embed_prompts(prompts), prompts.attention_mask
        rows = torch.arange(len(prompts), device=embeds.device)
        if guidance != 1.0:
            blank, of_prompt = distinct(adapter.blank_prompts(prompts))
            embeds = torch.cat([embeds, adapter.embed_prompts(blank)])
            mask = torch.cat([mask, blank.attention_mask])
            rows = torch.cat([rows, len(prompts) + of_prompt])
        row_ends = limit // adapter.row_tokens if adapter.row_tokens else 0
        start = Prompts(embeds, mask, rows, group_size, limit + row_ends)
        self.engine = engine_of(adapter)(adapter, start)
        self.table = None
        # a small vocabulary is embedded once, where more than a look-up is needed
        many = adapter.image_vocab_size <= len(start.rows) * limit
        if self.modality == "image" and many and not adapter.reads_image_ids:
            every = torch.arange(adapter.image_vocab_size, device=adapter.device)
            self.table = adapter.embed_tokens(every.unsqueeze(0), "image")[0]

    def logits(self) -> Tensor:
        logits = self.adapter.logits(self.engine.hidden, self.modality)
        if self.doubled == 1:
            return logits
        conditional, unconditional = logits.float().chunk(2)
        return guided_logits(conditional, unconditional, self.guidance)

    def advance(self, tokens: Tensor, t: int) -> None:
        """Read the t-th written token of each row, [B], and the row end that the model forces."""
        adapter = self.adapter
        embeds = self._embedded(tokens).unsqueeze(1)
        if self.modality == "image" and adapter.row_tokens and (t + 1) % adapter.row_tokens == 0:
            end = adapter.embed_row_end().to(embeds.dtype).expand(len(embeds), 1, -1)
            embeds = torch.cat([embeds, end], dim=1)
        self.engine.read(embeds.repeat(self.doubled, 1, 1))

    def _embedded(self, tokens: Tensor) -> Tensor:
        if self.table is None:
            return self.adapter.embed_tokens(tokens.unsqueeze(1), self.modality)[:, 0]
        return self.table[tokens]


def distinct(prompts: PromptBatch) -> tuple[PromptBatch, Tensor]:
    """The prompts that differ, and which of them each one is; prompts to draw."""
    rows = torch.cat([prompts.prompt_ids, prompts.attention_mask.long()], dim=1)
    different, which = rows.unique(dim=0, return_inverse=True)
    ids, mask = different.chunk(2, dim=1)
    return PromptBatch(prompts.direction, ids, mask.bool()), which


def rollout(
    adapter: Adapter,
    examples: Sequence[Example],
    config: SamplingConfig,
    seed: int,
    step: int,
) -> Rollout:
    """Sample `config.group_size` outputs for each example; all examples share one direction.

    `config.batch_rows` bounds the rows decoded at once and never changes the result.
    """
    direction = examples[0].direction
    if any(e.direction != direction for e in examples):
        raise ValueError("one rollout holds one direction")
    prompts = input_prompts(adapter, examples, config.instruction)
    group = config.group_size
    per_batch = max(1, config.batch_rows // group)
    drawn = _sample_numbers(examples, group)
    parts: list[Sampled] = []
    with evaluating(adapter.model):
        for start in range(0, len(examples), per_batch):
            rows = drawn[start * group : (start + per_batch) * group]
            keys = DrawKeys(seed, step, rows)
            chosen = prompts.select(slice(start, start + per_batch))
            parts.append(sample(adapter, chosen, keys, config))
        completions = Completion(
            _concatenate([p.completions.completion_ids for p in parts]),
            _concatenate([p.completions.completion_mask for p in parts]),
        )
        image = direction == "t2i"
        return Rollout(
            direction,
            tuple(examples),
            group,
            prompts,
            completions,
            _concatenate([p.drawn_logprobs for p in parts]),
            texts=() if image else tuple(adapter.decode_texts(completions)),
            pixels=_pixels(adapter, completions.completion_ids) if image else None,
            truncated=None if image else torch.cat([p.truncated for p in parts]),
        )


def _sample_numbers(examples: Sequence[Example], group: int) -> tuple[tuple[int, int], ...]:
    """(example_id, sample) of each row: where an input comes again, the samples count on.

    Among the inputs of one process: it cannot see that another one has the same input, whose
    outputs then come out the same.
    """
    times: Counter[int] = Counter()
    found: list[tuple[int, int]] = []
    for example in examples:
        first = group * times[example.example_id]
        found += [(example.example_id, first + g) for g in range(group)]
        times[example.example_id] += 1
    return tuple(found)


def input_prompts(adapter: Adapter, examples: Sequence[Example], instruction: str) -> PromptBatch:
    """The examples as the model reads them: prompts, or pictures with the caption instruction."""
    if examples[0].direction == "t2i":
        return adapter.prompts("t2i", [e.text or "" for e in examples])
    pixels = torch.stack([e.pixels for e in examples if e.pixels is not None])
    return adapter.prompts(
        "i2t", [instruction or adapter.default_instruction] * len(pixels), pixels
    )


def _pixels(adapter: Adapter, image_ids: Tensor) -> Tensor | None:
    return decode_images(adapter, image_ids) if adapter.draws_pixels else None


def decode_images(adapter: Adapter, image_ids: Tensor) -> Tensor:
    """Image ids [B, N] -> uint8 [B, 3, H, W], in batches, a picture that comes twice once."""
    different, which = image_ids.unique(dim=0, return_inverse=True)
    parts = different.split(adapter.pictures_at_once)
    return torch.cat([adapter.decode_images(ids) for ids in parts])[which]


def _concatenate(parts: Sequence[Tensor]) -> Tensor:
    """[B_i, T_i] each, padded at the right with 0 (False) -> [sum B_i, max T_i]."""
    length = max(p.shape[1] for p in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, length - p.shape[1])) for p in parts])
