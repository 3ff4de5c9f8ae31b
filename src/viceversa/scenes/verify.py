"""The exact verifier: pixels in, what is there out. It never sees a spec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from viceversa.scenes.language import Claims, parse_caption
from viceversa.scenes.render import CELL, CELL_CONTENTS, PAPER, RGB, SIZE, draw_object
from viceversa.scenes.spec import GRID, Cell, Object, Spec, relation_between

#: A cell is unreadable where a quarter of it is further from the nearest template than this, as a
#: share of the template's contrast with the paper. The thinnest quarter of a shape covers 0.25.
TOLERANCE = 0.2

_TEMPLATES = np.stack([draw_object(o) for o in CELL_CONTENTS]).astype(np.float32)
_FLAT = _TEMPLATES.reshape(len(CELL_CONTENTS), -1)
_CONTRAST = np.array(
    [np.abs(np.subtract(RGB[o.colour if o else "yellow"], PAPER)).mean() for o in CELL_CONTENTS]
)


@dataclass(frozen=True)
class Scene:
    """A picture as the verifier read it: objects and cells, and how many it could not read."""

    objects: tuple[tuple[Object, Cell], ...]
    unreadable: int

    @property
    def counts(self) -> Counter[Object]:
        return Counter(obj for obj, _ in self.objects)


def read_pictures(pixels: np.ndarray) -> list[Scene]:
    """Read pictures, uint8 [B, SIZE, SIZE, 3] (values 0 to 255), cell by cell.

    Raises ValueError on any other shape or dtype.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"pixels are {pixels.dtype} {pixels.shape}; give uint8 [B, {SIZE}, {SIZE}, 3]"
        )
    cells = pixels.reshape(-1, GRID, CELL, GRID, CELL, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = cells.reshape(-1, GRID * GRID, CELL * CELL * 3).astype(np.float32)
    # squared distance picks the template without a [B, cells, templates, pixels] array
    squared = -2 * flat @ _FLAT.T + (_FLAT**2).sum(-1)
    best = squared.argmin(-1)
    half = CELL // 2
    error = np.abs(flat - _FLAT[best]).reshape(*best.shape, 2, half, 2, half, 3)
    error = error.mean((3, 5, 6)).max((2, 3)) / _CONTRAST[best]
    return [_scene(b, e) for b, e in zip(best, error, strict=True)]


def _scene(best: np.ndarray, error: np.ndarray) -> Scene:
    found: list[tuple[Object, Cell]] = []
    for index, content in enumerate(best):
        obj = CELL_CONTENTS[content]
        if obj is not None and error[index] <= TOLERANCE:
            found.append((obj, divmod(index, GRID)))
    return Scene(tuple(found), int((error > TOLERANCE).sum()))


def picture_matches(scene: Scene, spec: Spec) -> bool:
    """True where the picture shows exactly the spec: every object, every relation, nothing else."""
    if scene.unreadable or scene.counts != Counter(spec.objects):
        return False
    where = dict(scene.objects)  # specs with relations never repeat an object
    return all(
        relation_between(where[spec.objects[i]], where[spec.objects[j]]) == rel
        for i, rel, j in spec.relations
    )


def caption_matches(caption: str, scene: Scene) -> bool:
    """True where the caption is true of the scene and complete.

    Complete: it names every object with its colour, and, where all objects differ, as many
    relations as tie them together (one for a pair in line, none for a pair on a diagonal).
    A caption that does not parse is wrong.
    """
    claims = parse_caption(caption)
    if claims is None or claims.counts != scene.counts or scene.unreadable:
        return False
    if not _relations_true(claims, scene):
        return False
    return _components(scene, claims) == _components(scene, None)


def _relations_true(claims: Claims, scene: Scene) -> bool:
    if any(scene.counts[a] > 1 or scene.counts[b] > 1 for a, _, b in claims.relations):
        return False  # "a circle left of a circle" says too little to be checked
    where = dict(scene.objects)
    return all(relation_between(where[a], where[b]) == rel for a, rel, b in claims.relations)


def _components(scene: Scene, claims: Claims | None) -> int:
    """Groups of objects once related ones are tied: by the claims, or by all true relations."""
    objects: Sequence[Object] = list(scene.counts)
    if max(scene.counts.values(), default=0) > 1:
        return 1
    parent = {o: o for o in objects}

    def root(o: Object) -> Object:
        return o if parent[o] == o else root(parent[o])

    if claims is None:
        for a, cell_a in scene.objects:
            for b, cell_b in scene.objects:
                if a != b and relation_between(cell_a, cell_b):
                    parent[root(a)] = root(b)
    else:
        for a, _, b in claims.relations:
            parent[root(a)] = root(b)
    return len({root(o) for o in objects})


def verify_pictures(pixels: np.ndarray, specs: Sequence[Spec]) -> list[bool]:
    """Right or wrong for each picture, uint8 [B, SIZE, SIZE, 3], against its spec."""
    return [picture_matches(s, spec) for s, spec in zip(read_pictures(pixels), specs, strict=True)]
