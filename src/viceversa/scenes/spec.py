"""What a picture should show: kinds, objects, relations, layouts, and who may see which spec."""

from __future__ import annotations

import hashlib
import itertools
import random
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "green", "blue", "yellow")
INK = "black"  # a shape named without a colour is drawn in ink
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = (2, 3, 4)
GRID = 3

#: GenEval's six kinds and a harder one.
KINDS = ("single", "two", "counting", "colours", "position", "attribution", "complex")
SPLITS = ("train", "tune", "test")

#: Shapes are drawn with unequal weights, so that "popular" negatives mean something.
SHAPE_WEIGHTS = (3, 3, 2, 2, 1, 1)
POPULAR_SHAPES = ("circle", "square")

#: Never shown in pretraining or tuning, evaluated apart.
HELD_OUT_PAIRS = frozenset(
    {("blue", "triangle"), ("yellow", "cross"), ("red", "ring"), ("green", "diamond")}
)
HELD_OUT_RELATIONS = frozenset(
    {
        ("circle", "left of", "triangle"),
        ("triangle", "right of", "circle"),
        ("square", "above", "cross"),
        ("cross", "below", "square"),
        ("square", "left of", "ring"),
        ("ring", "right of", "square"),
        ("circle", "above", "cross"),
        ("cross", "below", "circle"),
    }
)

Cell = tuple[int, int]


@dataclass(frozen=True, order=True)
class Object:
    shape: str
    colour: str = INK


@dataclass(frozen=True)
class Spec:
    """One scene. `relations` holds (i, relation, j): object i stands so to object j.
    `cells` holds the (row, column) of each object; a drawn picture may choose others.
    `phrasing` picks among the wordings of the caption."""

    kind: str
    objects: tuple[Object, ...]
    relations: tuple[tuple[int, str, int], ...]
    cells: tuple[Cell, ...]
    phrasing: int

    def key(self) -> str:
        """Return the picture's name, which decides the split, so that none is in two."""
        return repr(sorted(zip(self.objects, self.cells, strict=True)))

    @property
    def split(self) -> str:
        """Return `train`, `tune` or `test`."""
        bucket = hashlib.sha256(self.key().encode()).digest()[0] % 10
        return "train" if bucket < 6 else "tune" if bucket < 8 else "test"

    @property
    def held_out(self) -> bool:
        """True where the picture has a pair or a relation that pretraining never shows."""
        if any((o.colour, o.shape) in HELD_OUT_PAIRS for o in self.objects):
            return True
        placed = list(zip(self.objects, self.cells, strict=True))
        return any(
            (a.shape, relation_between(here, there), b.shape) in HELD_OUT_RELATIONS
            for a, here in placed
            for b, there in placed
        )


def relation_between(a: Cell, b: Cell) -> str | None:
    """Relate `a` to `b` along the longer of the two distances; None on an exact diagonal."""
    down, right = b[0] - a[0], b[1] - a[1]
    if abs(down) == abs(right):
        return None
    if abs(right) > abs(down):
        return "left of" if right > 0 else "right of"
    return "above" if down > 0 else "below"


ALL_CELLS: tuple[Cell, ...] = tuple((r, c) for r in range(GRID) for c in range(GRID))
DIAGONAL_PAIRS = tuple(
    p for p in itertools.permutations(ALL_CELLS, 2) if relation_between(*p) is None
)


def _draw_objects(rng: random.Random, n: int, coloured: bool) -> tuple[Object, ...]:
    found: list[Object] = []
    while len(found) < n:
        shape = rng.choices(SHAPES, SHAPE_WEIGHTS)[0]
        obj = Object(shape, rng.choice(COLOURS) if coloured else INK)
        if obj not in found and (coloured or all(o.shape != shape for o in found)):
            found.append(obj)
    return tuple(found)


def _draw(rng: random.Random, kind: str) -> Spec:
    phrasing = rng.randrange(12)
    if kind in ("single", "colours"):
        objects = _draw_objects(rng, 1, kind == "colours")
        return Spec(kind, objects, (), (rng.choice(ALL_CELLS),), phrasing)
    if kind == "counting":
        n = rng.choice(COUNTS)
        objects = _draw_objects(rng, 1, False) * n
        return Spec(kind, objects, (), tuple(sorted(rng.sample(ALL_CELLS, n))), phrasing)
    if kind in ("two", "attribution"):
        objects = _draw_objects(rng, 2, kind == "attribution")
        return Spec(kind, objects, (), rng.choice(DIAGONAL_PAIRS), phrasing)
    n = 2 if kind == "position" else 3
    objects = _draw_objects(rng, n, False)
    while True:
        cells = tuple(rng.sample(ALL_CELLS, n))
        if all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(cells)):
            break  # each in line with the next
    chain = [relation_between(a, b) for a, b in itertools.pairwise(cells)]
    relations = tuple((i, rel, i + 1) for i, rel in enumerate(chain) if rel)
    return Spec(kind, objects, relations, cells, phrasing)


def draw_spec(rng: random.Random, kind: str, split: str = "train", held_out: bool = False) -> Spec:
    """Draw a spec of `kind` in `split`; with `held_out`, of combinations that appear nowhere else.

    Raises ValueError for an unknown kind or split, or a kind that has no held-out specs.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; choose one of {', '.join(KINDS)}")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if held_out and kind not in HELD_OUT_KINDS:
        raise ValueError(f"kind {kind!r} has no held-out specs; choose one of {HELD_OUT_KINDS}")
    while True:
        spec = _draw(rng, kind)
        if spec.split == split and spec.held_out == held_out:
            return spec


#: Kinds with a colour-shape pair or a relation in them.
HELD_OUT_KINDS = ("colours", "position", "attribution", "complex")


def draw_specs(
    seed: int | str,
    per_kind: int,
    split: str,
    kinds: tuple[str, ...] = KINDS,
    held_out: bool = False,
) -> list[Spec]:
    """Draw `per_kind` specs of each kind, interleaved; the same for the same arguments."""
    rngs = {k: random.Random(f"{seed}/{split}/{k}/{held_out}") for k in kinds}
    return [draw_spec(rngs[k], k, split, held_out) for _ in range(per_kind) for k in kinds]
