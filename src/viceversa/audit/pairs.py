"""The user's pairs, whole and corrupted, as the model reads and draws them.

The captions serve the audit alone; training never reads a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viceversa.audit import corruptions, measures
from viceversa.audit.corruptions import PICTURE_KINDS, TEXT_KINDS, WORDS, rng_of
from viceversa.audit.measures import Estimate
from viceversa.inference.logprobs import evaluating
from viceversa.inference.memory import RowBudget
from viceversa.measure.pairs import pair_rewards
from viceversa.models.base import Adapter
from viceversa.types import DIRECTIONS, Direction

#: Captions of others beside each picture: as many wrong ones as a group of 8 would hold at most.
SWAPS = 7


@dataclass(frozen=True)
class Row:
    """A caption beside a picture: a pair as it was given, or with one thing changed."""

    pair: int
    kind: str
    """`right`, or the kind of corruption."""
    text: str
    picture: int
    """Its number among all pictures, corrupted ones included."""


@dataclass(frozen=True)
class Corrupted:
    """N pairs, each followed by its corruptions."""

    rows: list[Row]
    pictures: Tensor
    """[M, 3, H, W] uint8; the first N are the pairs' own."""


def corrupt(texts: Sequence[str], pictures: Tensor, seed: int) -> Corrupted:
    """Corrupt each pair in every way that changes it: the caption, or the picture, never both."""
    rows: list[Row] = []
    bank = list(pictures)
    for i, text in enumerate(texts):
        rows.append(Row(i, "right", text, i))
        rows += _text_rows(i, texts, seed)
        swap = corruptions.other(texts, i, rng_of(seed, "exchanged", i))
        if swap is not None:
            rows.append(Row(i, "exchanged", text, swap))
        pixels = pictures[i].numpy()
        shuffle = corruptions.shuffled(pixels, rng_of(seed, "shuffled", i))
        for kind, changed in (("blurred", corruptions.blurred(pixels)), ("shuffled", shuffle)):
            if changed is not None:
                rows.append(Row(i, kind, text, len(bank)))
                bank.append(torch.from_numpy(changed))
    return Corrupted(rows, torch.stack(bank))


def _text_rows(i: int, texts: Sequence[str], seed: int) -> Iterator[Row]:
    rng = rng_of(seed, "swapped", i)
    swaps = [corruptions.other(texts, i, rng) for _ in range(SWAPS)]
    for swap in dict.fromkeys(s for s in swaps if s is not None):
        yield Row(i, "swapped", texts[swap], i)
    for kind in WORDS:
        changed = corruptions.changed_words(texts[i], kind, rng_of(seed, kind, i))
        if changed is not None:
            yield Row(i, kind, changed, i)


@dataclass(frozen=True)
class Scored:
    """Likelihoods of each row of `Corrupted`, nats a token, and the tokens of its text."""

    rows: list[Row]
    reading: np.ndarray
    """[R] of the text given the picture."""
    drawing: np.ndarray
    """[R] of the picture given the text."""
    tokens: np.ndarray
    """[R], the stop token included."""

    def rewards(self, direction: Direction, own: float, image_tokens: int) -> np.ndarray:
        """Compute the self-reward of each row in a direction, [R]; `own` weighs the second term."""
        if direction == "t2i":
            return self.reading + own * self.drawing * image_tokens / self.tokens
        return self.drawing + own * self.reading * self.tokens / image_tokens


def score(adapter: Adapter, corrupted: Corrupted, budget: RowBudget) -> Scored:
    """Score every row in both directions; each picture is encoded once."""
    texts = [row.text for row in corrupted.rows]
    which = torch.tensor([row.picture for row in corrupted.rows])
    with evaluating(adapter.model):
        ids = adapter.image_ids(corrupted.pictures.to(adapter.device))[which.to(adapter.device)]
        tokens = adapter.text_completion(texts).completion_mask.sum(-1)
    pixels = corrupted.pictures[which]
    reading, drawing = (
        budget(
            lambda rows, d=direction: pair_rewards(adapter, d, texts, pixels, "", list(ids), rows),
            len(texts),
        )
        for direction in DIRECTIONS
    )
    return Scored(
        corrupted.rows, reading.double().numpy(), drawing.double().numpy(), tokens.cpu().numpy()
    )


def won(scored: Scored, rewards: np.ndarray, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Count, pair by pair, corruptions of `kinds` that the right pair beats, and all; [N] each."""
    right = {row.pair: float(r) for row, r in zip(scored.rows, rewards, strict=True)
             if row.kind == "right"}  # fmt: skip
    wins, count = np.zeros(len(right)), np.zeros(len(right))
    for row, reward in zip(scored.rows, rewards, strict=True):
        if row.kind in kinds:
            wins[row.pair] += (right[row.pair] > reward) + 0.5 * (right[row.pair] == reward)
            count[row.pair] += 1
    return wins, count


def rates(scored: Scored, rewards: np.ndarray, kinds: Sequence[str]) -> Estimate | None:
    """Estimate how often the right pair beats a corruption, each kind of a pair weighed alike."""
    found = [won(scored, rewards, [kind]) for kind in kinds]
    shares = [w / np.maximum(n, 1) for w, n in found]
    held = [(n > 0).astype(float) for _, n in found]
    return measures.ratio(np.sum(shares, axis=0), np.sum(held, axis=0), share=True)


def kinds_of(direction: Direction) -> tuple[str, ...]:
    """Return what is changed to judge a direction: its outputs."""
    return PICTURE_KINDS if direction == "t2i" else TEXT_KINDS


def length_bias(scored: Scored, rewards: np.ndarray) -> Estimate | None:
    """Estimate the rank correlation of reward with length among wrong captions of one picture.

    All are captions of other pictures: none is right, so length alone should not raise one.
    """
    found = []
    for pair in range(1 + max(row.pair for row in scored.rows)):
        mine = [k for k, r in enumerate(scored.rows) if r.pair == pair and r.kind == "swapped"]
        found.append(measures.spearman(rewards[mine], scored.tokens[mine]) if mine else np.nan)
    return measures.mean(np.array(found))
