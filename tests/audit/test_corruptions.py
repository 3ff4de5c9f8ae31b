"""Corruptions change exactly one thing, and the same seed changes the same."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch

from viceversa.audit.corruptions import (
    WORDS,
    blurred,
    changed_words,
    other,
    rng_of,
    shuffled,
)
from viceversa.audit.pairs import corrupt
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

SPECS = draw_specs(0, 2, "test")
TEXTS = [caption(s) for s in SPECS]
PICTURES = torch.stack([torch.from_numpy(render(s)).permute(2, 0, 1) for s in SPECS])
SENTENCE = "Two big red dogs to the left of a wooden bench above 3 green stones"


@pytest.mark.parametrize("kind", list(WORDS))
def test_one_phrase_of_one_list_changes(kind: str) -> None:
    """What stands around the change is as it was, and the new word is of the old one's row."""
    for number in range(20):
        changed = changed_words(SENTENCE, kind, rng_of(0, kind, number))
        assert changed is not None
        assert changed == changed_words(SENTENCE, kind, rng_of(0, kind, number))
        found = [
            (old, new)
            for row in WORDS[kind]
            for old in row
            for new in row
            if old != new
            and any(
                SENTENCE[:i] + _cased(new, SENTENCE[i]) + SENTENCE[i + len(old) :] == changed
                for i in range(len(SENTENCE) - len(old) + 1)
                if SENTENCE[i : i + len(old)].lower() == old
            )
        ]
        assert len(found) == 1


def _cased(word: str, first: str) -> str:
    return word.capitalize() if first.isupper() else word


def test_words_of_another_sense_stay() -> None:
    rng = random.Random(0)
    assert changed_words("a bored redhead nowhere near", "colour", rng) is None
    assert changed_words("one of the someones", "count", rng) is None
    assert changed_words("he left the overpass", "relation", rng) is None
    assert changed_words("a red square and an orange", "attribute", rng) is None
    assert changed_words("an orange", "colour", rng) is None
    assert changed_words("Two circles", "count", rng) not in (None, "Two circles")
    assert all(changed_words("a grey cat", "colour", rng) != "a gray cat" for _ in range(50))


def test_swaps_are_of_other_words() -> None:
    texts = ["a red ring", "A red ring.", "a blue ring"]
    assert {other(texts, 0, rng_of(0, "swapped", k)) for k in range(9)} == {2}
    assert other(texts[:2], 0, random.Random(0)) is None


def test_shuffling_moves_every_patch_and_keeps_the_pixels() -> None:
    pixels = np.arange(3 * 24 * 24, dtype=np.int64).reshape(3, 24, 24) % 251
    pixels = pixels.astype(np.uint8)
    moved = shuffled(pixels, random.Random(1))
    again = shuffled(pixels, random.Random(1))
    assert moved is not None and again is not None and np.array_equal(moved, again)
    assert Counter(moved.ravel().tolist()) == Counter(pixels.ravel().tolist())
    for r in range(0, 24, 6):
        for c in range(0, 24, 6):
            assert not np.array_equal(
                moved[:, r : r + 6, c : c + 6], pixels[:, r : r + 6, c : c + 6]
            )
    assert shuffled(np.full((3, 24, 24), 7, np.uint8), random.Random(1)) is None


def test_blurring_keeps_the_shape_and_little_else() -> None:
    pixels = PICTURES[0].numpy()
    soft = blurred(pixels)
    assert soft is not None and soft.shape == pixels.shape and soft.dtype == np.uint8
    assert float(soft.std()) < float(pixels.std())
    assert blurred(np.full((3, 24, 24), 7, np.uint8)) is None


def test_a_row_differs_from_its_pair_in_the_text_or_in_the_picture() -> None:
    found = corrupt(TEXTS, PICTURES, seed=3)
    again = corrupt(TEXTS, PICTURES, seed=3)
    assert found.rows == again.rows and torch.equal(found.pictures, again.pictures)
    assert found.rows != corrupt(TEXTS, PICTURES, seed=4).rows
    for row in found.rows:
        text = row.text != TEXTS[row.pair]
        picture = not torch.equal(found.pictures[row.picture], PICTURES[row.pair])
        assert (text + picture) == (row.kind != "right"), row
    assert torch.equal(found.pictures[: len(TEXTS)], PICTURES)
    assert {"right", "swapped", "colour", "exchanged", "blurred"} <= {r.kind for r in found.rows}
