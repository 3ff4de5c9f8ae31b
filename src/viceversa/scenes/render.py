"""Specs to pictures: 24 x 24 pixels, a 3 x 3 grid of cells, hard edges, no noise."""

from __future__ import annotations

import numpy as np
from PIL import Image

from viceversa.scenes.spec import COLOURS, GRID, INK, SHAPES, Object, Spec

CELL = 8
SIZE = CELL * GRID
PAPER = (240, 240, 232)
RGB = {
    INK: (24, 24, 28),
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 214),
    "yellow": (246, 212, 40),
}

_BITMAPS = {
    "circle": "........ ..####.. .######. .######. .######. .######. ..####.. ........",
    "square": "######## ######## ######## ######## ######## ######## ######## ########",
    "triangle": "........ ...##... ...##... ..####.. ..####.. .######. .######. ........",
    "cross": "........ ...##... ...##... .######. .######. ...##... ...##... ........",
    "ring": "..####.. .######. ##....## ##....## ##....## ##....## .######. ..####..",
    "diamond": "...##... ..####.. .##..##. ##....## ##....## .##..##. ..####.. ...##...",
}
MASKS = {
    shape: np.array([[c == "#" for c in row] for row in rows.split()])
    for shape, rows in _BITMAPS.items()
}


def draw_object(obj: Object | None) -> np.ndarray:
    """Draw one cell, uint8 [CELL, CELL, 3]; None is an empty cell."""
    cell = np.empty((CELL, CELL, 3), dtype=np.uint8)
    cell[:] = PAPER
    if obj is not None:
        cell[MASKS[obj.shape]] = RGB[obj.colour]
    return cell


def render(spec: Spec) -> np.ndarray:
    """Draw a spec's own picture, uint8 [SIZE, SIZE, 3]."""
    picture = np.empty((SIZE, SIZE, 3), dtype=np.uint8)
    picture[:] = PAPER
    for obj, (row, col) in zip(spec.objects, spec.cells, strict=True):
        y, x = row * CELL, col * CELL
        picture[y : y + CELL, x : x + CELL] = draw_object(obj)
    return picture


def render_image(spec: Spec) -> Image.Image:
    return Image.fromarray(render(spec))


#: Everything one cell may hold; the first is empty.
CELL_CONTENTS: tuple[Object | None, ...] = (
    None,
    *(Object(s, c) for s in SHAPES for c in (INK, *COLOURS)),
)
