"""Make wrong pairs of right ones: each change alters one thing, and the same seed alters the same.

English captions alone. A caption without a word of a list has no corruption of that kind: None.
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
#: Patches along a side.
GRID = 4


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


def blurred(pixels: np.ndarray) -> np.ndarray:
    """Blur a picture, uint8 [3, H, W]."""
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    soft = image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
    return np.array(soft).transpose(2, 0, 1)


def shuffled(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Move each of a picture's 4 x 4 patches to another place, uint8 [3, H, W]: its pixels stay.

    So do rows and columns that are left where 4 does not divide a side.
    """
    _, height, width = pixels.shape
    tall, wide = height // GRID, width // GRID
    whole = np.s_[:, : GRID * tall, : GRID * wide]
    patches = pixels[whole].reshape(3, GRID, tall, GRID, wide).transpose(1, 3, 0, 2, 4)
    patches = patches.reshape(-1, 3, tall, wide)
    order = list(range(len(patches)))
    rng.shuffle(order)
    moved = np.empty_like(patches)
    moved[order[1:] + order[:1]] = patches[order]  # one cycle: no patch stays
    found = pixels.copy()
    rows = moved.reshape(GRID, GRID, 3, tall, wide).transpose(2, 0, 3, 1, 4)
    found[whole] = rows.reshape(3, GRID * tall, GRID * wide)
    return found
