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
from viceversa.audit.pairs import Row, corrupt
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
    assert np.array_equal(moved, again)
    assert Counter(moved.ravel().tolist()) == Counter(pixels.ravel().tolist())
    for r in range(0, 24, 6):
        for c in range(0, 24, 6):
            assert not np.array_equal(
                moved[:, r : r + 6, c : c + 6], pixels[:, r : r + 6, c : c + 6]
            )


def test_shuffling_leaves_what_four_does_not_divide() -> None:
    pixels = np.arange(3 * 9 * 10, dtype=np.int64).astype(np.uint8).reshape(3, 9, 10)
    moved = shuffled(pixels, random.Random(1))
    assert Counter(moved.ravel().tolist()) == Counter(pixels.ravel().tolist())
    assert np.array_equal(moved[:, 8:], pixels[:, 8:])
    assert np.array_equal(moved[:, :, 8:], pixels[:, :, 8:])
    assert (moved != pixels)[:, :8, :8].all()


def test_blurring_keeps_the_shape_and_little_else() -> None:
    pixels = PICTURES[0].numpy()
    soft = blurred(pixels)
    assert soft.shape == pixels.shape and soft.dtype == np.uint8
    assert float(soft.std()) < float(pixels.std())


def test_a_change_that_leaves_a_picture_as_it_is_is_none() -> None:
    """One colour, or another caption's picture that is the same."""
    plain = torch.full((3, 3, 24, 24), 7, dtype=torch.uint8)
    plain[2] = PICTURES[0]
    rows = corrupt(["a red ring", "a blue ring", "a ring"], plain, seed=0)
    kinds = Counter(r.kind for r in rows if r.pair < 2)
    assert kinds["blurred"] == kinds["shuffled"] == 0
    assert all(not torch.equal(r.pixels, plain[r.pair]) for r in rows if r.kind == "exchanged")


def test_a_row_differs_from_its_pair_in_the_text_or_in_the_picture() -> None:
    found, again, other_seed = (corrupt(TEXTS, PICTURES, seed) for seed in (3, 3, 4))
    assert [_words(r) for r in found] == [_words(r) for r in again]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(found, again, strict=True))
    assert [_words(r) for r in found] != [_words(r) for r in other_seed]
    for row in found:
        text = row.text != TEXTS[row.pair]
        picture = not torch.equal(row.pixels, PICTURES[row.pair])
        assert (text + picture) == (row.kind != "right"), row
    right = [r.pixels for r in found if r.kind == "right"]
    assert torch.equal(torch.stack(right), PICTURES)
    assert {"right", "swapped", "colour", "exchanged", "blurred"} <= {r.kind for r in found}


def _words(row: Row) -> tuple[int, str, str]:
    return row.pair, row.kind, row.text
