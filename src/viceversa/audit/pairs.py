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
from viceversa.audit.measures import ACCURACY, LENGTH, MORE, RANKING, Estimate, Figures
from viceversa.measure.pairs import both_directions
from viceversa.models.base import Adapter
from viceversa.types import Direction, opposite

#: Captions of others beside each picture: as many wrong ones as a group of 8 would hold at most.
SWAPS = 7


@dataclass(frozen=True)
class Row:
    """A caption beside a picture: a pair as it was given, or with one thing changed."""

    pair: int
    kind: str
    """`right`, or the kind of corruption."""
    text: str
    pixels: Tensor
    """[3, H, W] uint8."""


def corrupt(texts: Sequence[str], pictures: Tensor, seed: int) -> list[Row]:
    """Corrupt each pair in every way that changes it: the caption, or the picture, never both.

    `pictures` [N, 3, H, W] uint8. Each pair is followed by its corruptions.
    """
    rows: list[Row] = []
    for i, (text, pixels) in enumerate(zip(texts, pictures, strict=True)):
        rows.append(Row(i, "right", text, pixels))
        rows += [Row(i, kind, changed, pixels) for kind, changed in _texts(i, texts, seed)]
        for kind, changed in _pictures(i, texts, pictures, seed):
            if not torch.equal(changed, pixels):
                rows.append(Row(i, kind, text, changed))
    return rows


def _texts(i: int, texts: Sequence[str], seed: int) -> Iterator[tuple[str, str]]:
    """Yield each kind of corruption of a caption that can be made, and its text."""
    rng = rng_of(seed, "swapped", i)
    swaps = [corruptions.other(texts, i, rng) for _ in range(SWAPS)]
    for swap in dict.fromkeys(s for s in swaps if s is not None):
        yield "swapped", texts[swap]
    for kind in WORDS:
        changed = corruptions.changed_words(texts[i], kind, rng_of(seed, kind, i))
        if changed is not None:
            yield kind, changed


def _pictures(
    i: int, texts: Sequence[str], pictures: Tensor, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield each kind of corruption of a picture, and its pixels; they may be the same."""
    swap = corruptions.other(texts, i, rng_of(seed, "exchanged", i))
    if swap is not None:
        yield "exchanged", pictures[swap]
    pixels = pictures[i].numpy()
    yield "blurred", torch.from_numpy(corruptions.blurred(pixels))
    yield "shuffled", torch.from_numpy(corruptions.shuffled(pixels, rng_of(seed, "shuffled", i)))


@dataclass(frozen=True)
class Scored:
    """Likelihoods of R rows, nats a token, [R] each like everything here."""

    pairs: np.ndarray
    kinds: np.ndarray
    reading: np.ndarray
    """Of the text given the picture."""
    drawing: np.ndarray
    """Of the picture given the text."""
    tokens: np.ndarray
    """Of the text, the stop token included."""

    def rewards(self, direction: Direction, own: float, image_tokens: int) -> np.ndarray:
        """Compute the self-reward of each row in a direction, [R]; `own` weighs the second term."""
        if direction == "t2i":
            return self.reading + own * self.drawing * image_tokens / self.tokens
        return self.drawing + own * self.reading * self.tokens / image_tokens


def score(adapter: Adapter, rows: Sequence[Row]) -> Scored:
    """Score every row in both directions."""
    texts = [row.text for row in rows]
    reading, drawing = both_directions(adapter, texts, torch.stack([row.pixels for row in rows]))
    return Scored(
        np.array([row.pair for row in rows]),
        np.array([row.kind for row in rows]),
        reading.double().numpy(),
        drawing.double().numpy(),
        adapter.text_completion(texts).completion_mask.sum(-1).cpu().numpy(),
    )


def of_pairs(scored: Scored, direction: Direction, own: float, image_tokens: int) -> Figures:
    """Measure how often a right pair beats its corruptions, and who knows its caption better.

    A direction is judged on its outputs, so on what changes them. It knows a caption as far as it
    finds the right one likelier than the changed one: drawing by the picture given the caption,
    reading by the caption given the picture.
    """
    rewards = scored.rewards(direction, own, image_tokens)
    likelihoods = {"t2i": scored.drawing, "i2t": scored.reading}
    mine, judge = likelihoods[direction], likelihoods[opposite(direction)]
    kinds = PICTURE_KINDS if direction == "t2i" else TEXT_KINDS
    return measures.told(
        {RANKING: rate(scored, rewards, kinds)}
        | {f"{RANKING}/{kind}": rate(scored, rewards, [kind]) for kind in kinds}
        | {f"{ACCURACY}/{kind}": rate(scored, mine, [kind]) for kind in TEXT_KINDS}
        | {f"{MORE}/{kind}": lead(scored, judge, mine, kind) for kind in TEXT_KINDS}
        | {LENGTH: length_bias(scored, rewards) if direction == "i2t" else None}
    )


def wins(scored: Scored, values: np.ndarray, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sum over `kinds` the share of a pair's corruptions that it beats, and count kinds; [N] each.

    A tie counts half. A kind that a pair has no corruption of counts for neither.
    """
    right = values[scored.kinds == "right"][scored.pairs]
    beaten = (right > values) + 0.5 * (right == values)
    shares, held = np.zeros(scored.pairs[-1] + 1), np.zeros(scored.pairs[-1] + 1)
    for kind in kinds:
        rows = scored.kinds == kind
        count = np.bincount(scored.pairs[rows], minlength=len(held))
        shares += np.bincount(scored.pairs[rows], beaten[rows], len(held)) / np.maximum(count, 1)
        held += count > 0
    return shares, held


def rate(scored: Scored, values: np.ndarray, kinds: Sequence[str]) -> Estimate | None:
    """Estimate how often the right pair beats a corruption, each kind of a pair weighed alike."""
    return measures.ratio(*wins(scored, values, kinds), share=True)


def lead(scored: Scored, judge: np.ndarray, mine: np.ndarray, kind: str) -> Estimate | None:
    """Estimate how much oftener the judge's likelihoods find the right caption than one's own."""
    (more, held), (less, _) = (wins(scored, values, [kind]) for values in (judge, mine))
    return measures.ratio(more - less, held)


def length_bias(scored: Scored, rewards: np.ndarray) -> Estimate | None:
    """Estimate the rank correlation of reward with length among wrong captions of one picture.

    All are captions of other pictures: none is right, so length alone should not raise one.
    """
    swapped = scored.kinds == "swapped"
    groups = [np.flatnonzero(swapped & (scored.pairs == p)) for p in set(scored.pairs.tolist())]
    return measures.length_within(
        [rewards[rows] for rows in groups], [scored.tokens[rows] for rows in groups]
    )
