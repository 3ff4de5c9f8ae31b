"""Make wrong pairs of right ones: each change alters one thing, and the same seed alters the same.

English captions alone. A caption without a word of a list, or a picture that a change would leave
as it is, has no corruption of that kind: None.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

COLOURS = (
    *("red", "green", "blue", "yellow", "purple", "pink"),
    *("brown", "black", "white", "grey", "gray"),
)
#: `one` is left out: it is also a pronoun, and what follows it would have to lose its plural.
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = ("2", "3", "4", "5", "6", "7", "8", "9", "10")
#: Each word becomes another one of its row. Words that are nouns or verbs as well (an orange, a
#: square, to open) are left out.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "colour": (COLOURS,),
    "attribute": (
        ("big", "small"),
        ("large", "little"),
        ("huge", "tiny"),
        ("tall", "short"),
        ("old", "young"),
        ("wooden", "metal", "plastic", "leather"),
    ),
    "count": (NUMBERS, DIGITS),
    "relation": (
        ("left of", "right of"),
        ("on the left", "on the right"),
        ("above", "below"),
        ("over", "under"),
        ("in front of", "behind"),
        ("inside", "outside"),
        ("on top of", "underneath"),
    ),
}
#: One colour under two names.
_SAME = ({"grey", "gray"},)

TEXT_KINDS = ("swapped", *WORDS)
PICTURE_KINDS = ("blurred", "shuffled", "exchanged")
#: Radius of the blur, as a share of the picture's side.
BLUR = 1 / 12


def rng_of(seed: int, kind: str, number: int) -> random.Random:
    """Return the random numbers of one corruption of one pair."""
    return random.Random(f"{seed}/{kind}/{number}")


def changed_words(text: str, kind: str, rng: random.Random) -> str | None:
    """Change one word (or relation) of a list in `text`; None where it holds none."""
    rows = WORDS[kind]
    row_of = {word: row for row in rows for word in row}
    longest_first = sorted(row_of, key=lambda w: (-len(w), w))
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    places = list(pattern.finditer(text))
    if not places:
        return None
    place = rng.choice(places)
    old = place[0].lower()
    others = [w for w in row_of[old] if w != old and not any({w, old} <= s for s in _SAME)]
    new = rng.choice(others)
    new = new.capitalize() if place[0][0].isupper() else new
    return text[: place.start()] + new + text[place.end() :]


def other(texts: Sequence[str], number: int, rng: random.Random) -> int | None:
    """Choose a pair with another caption; None where all are alike."""
    mine = _plain(texts[number])
    choices = [i for i, t in enumerate(texts) if _plain(t) != mine]
    return rng.choice(choices) if choices else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def blurred(pixels: np.ndarray) -> np.ndarray | None:
    """Blur a picture, uint8 [3, H, W]."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    radius = BLUR * max(image.size)
    return _unless_same(
        np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1), pixels
    )


def shuffled(pixels: np.ndarray, rng: random.Random) -> np.ndarray | None:
    """Move every patch of a picture to another place, uint8 [3, H, W]: its pixels stay.

    4 x 4 patches, or 3 x 3 or 2 x 2 where that divides the side.
    """
    _, height, width = pixels.shape
    grid = next((g for g in (4, 3, 2) if height % g == width % g == 0), 0)
    if not grid:
        return None
    order = list(range(grid * grid))
    rng.shuffle(order)
    to = dict(zip(order, order[1:] + order[:1], strict=True))  # one cycle: no patch stays
    tall, wide = height // grid, width // grid
    found = pixels.copy()
    for here, there in to.items():
        (r, c), (s, d) = divmod(here, grid), divmod(there, grid)
        patch = pixels[:, r * tall : (r + 1) * tall, c * wide : (c + 1) * wide]
        found[:, s * tall : (s + 1) * tall, d * wide : (d + 1) * wide] = patch
    return _unless_same(found, pixels)


def _unless_same(changed: np.ndarray, pixels: np.ndarray) -> np.ndarray | None:
    return None if np.array_equal(changed, pixels) else np.ascontiguousarray(changed)
