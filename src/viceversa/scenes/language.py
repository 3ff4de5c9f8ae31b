"""Specs to captions and questions, captions back to claims."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass

from viceversa.scenes.spec import (
    COLOURS,
    COUNTS,
    HELD_OUT_PAIRS,
    INK,
    POPULAR_SHAPES,
    RELATIONS,
    SHAPES,
    Object,
    Spec,
    relation_between,
)

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
#: How a caption may begin.
OPENINGS = ("", "a picture of ", "an image with ")
_WORDINGS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_JOINS = (" and ", " with ")


def noun(obj: Object, count: int = 1) -> str:
    """Say `a red circle`, `a ring`, `three crosses`."""
    words = obj.shape if obj.colour == INK else f"{obj.colour} {obj.shape}"
    if count > 1:
        return f"{NUMBERS[count]} {plural(words)}"
    return f"a {words}"


def plural(words: str) -> str:
    return words + ("es" if words.endswith("s") else "s")


def caption(spec: Spec) -> str:
    """Say a spec in words; `spec.phrasing` picks the wording."""
    prefix = OPENINGS[spec.phrasing % 3]
    variant = spec.phrasing // 3  # 0 to 3
    if spec.kind == "counting":
        return prefix + noun(spec.objects[0], len(spec.objects))
    if not spec.relations:
        return prefix + _JOINS[variant % 2].join(noun(o) for o in spec.objects)
    text = noun(spec.objects[0])
    for i, rel, j in spec.relations:
        assert j == i + 1  # relations form a chain
        text += f" {_WORDINGS[rel][variant % 2]} {noun(spec.objects[j])}"
    return prefix + text


@dataclass(frozen=True)
class Claims:
    """A caption's statements: how many of each object, and the relations between them."""

    counts: Counter[Object]
    relations: tuple[tuple[Object, str, Object], ...]


_NUMBER_OF = {"a": 1, **{w: n for n, w in NUMBERS.items()}}
_SHAPE_OF = {**{s: s for s in SHAPES}, **{plural(s): s for s in SHAPES}}
_RELATION_OF = {w: rel for rel, wordings in _WORDINGS.items() for w in wordings}
_CONNECTOR = "|".join(sorted([*_RELATION_OF, "and", "with"], key=len, reverse=True))
_NOUN = (
    rf"(?:{'|'.join(_NUMBER_OF)}) (?:(?:{'|'.join((INK, *COLOURS))}) )?"
    rf"(?:{'|'.join(sorted(_SHAPE_OF, key=len, reverse=True))})"
)
_CAPTION = re.compile(rf"{_NOUN}(?: (?:{_CONNECTOR}) {_NOUN})*")
_PIECES = re.compile(rf"\b({_CONNECTOR})\b")


def parse_caption(text: str) -> Claims | None:
    """Read a caption's claims; None where it does not follow the world's grammar."""
    words = " ".join(text.lower().replace(",", " ").rstrip(". ").split())
    words = without_opening(words)
    if not _CAPTION.fullmatch(words):
        return None
    pieces = [p.strip() for p in _PIECES.split(words)]
    nouns = [_parse_noun(p) for p in pieces[0::2]]
    counts: Counter[Object] = Counter()
    for obj, n in nouns:
        counts[obj] += n
    relations = tuple(
        (nouns[k][0], _RELATION_OF[word], nouns[k + 1][0])
        for k, word in enumerate(pieces[1::2])
        if word in _RELATION_OF
    )
    return Claims(counts, relations)


def _parse_noun(words: str) -> tuple[Object, int]:
    number, *colour, shape = words.split()
    return Object(_SHAPE_OF[shape], colour[0] if colour else INK), _NUMBER_OF[number]


@dataclass(frozen=True)
class Question:
    """`kind`: yes, random, popular, adversarial (yes/no, after POPE), count, colour, position."""

    kind: str
    text: str
    answer: str


QUESTION_KINDS = ("yes", "random", "popular", "adversarial", "count", "colour", "position")


def questions(spec: Spec, rng: random.Random) -> list[Question]:
    """Questions whose answers the picture settles: one of each kind that fits the spec."""
    found = [Question("yes", _is_there(rng.choice(spec.objects)), "yes")]
    coloured = spec.objects[0].colour != INK
    for kind in ("random", "popular", "adversarial"):
        absent = _absent_object(spec, kind, coloured, rng)
        if absent is not None:
            found.append(Question(kind, _is_there(absent), "no"))
    shape = rng.choice(spec.objects).shape
    n = sum(o.shape == shape for o in spec.objects)
    found.append(Question("count", f"how many {plural(shape)} are there?", NUMBERS[n]))
    unique = [o for o in spec.objects if sum(p.shape == o.shape for p in spec.objects) == 1]
    if coloured and unique:
        obj = rng.choice(unique)
        found.append(Question("colour", f"what colour is the {obj.shape}?", obj.colour))
    if len(unique) >= 2:
        question = _position_question(spec, unique, rng)
        if question is not None:
            found.append(question)
    return found


def _is_there(obj: Object) -> str:
    return f"is there {noun(obj)}?"


def _absent_object(spec: Spec, kind: str, coloured: bool, rng: random.Random) -> Object | None:
    """Random: any absent object. Popular: a frequent shape that is absent. Adversarial: a shape of
    the scene in a colour of it that belongs to another object, else in any other colour. Never a
    held-out pair, or pretraining would teach that those pairs do not exist."""
    palette = COLOURS if coloured else (INK,)
    shapes: tuple[str, ...] = SHAPES
    if kind == "popular":
        shapes = POPULAR_SHAPES
    elif kind == "adversarial":
        shapes = tuple(o.shape for o in spec.objects)
        swapped = [
            Object(a.shape, b.colour)
            for a in spec.objects
            for b in spec.objects
            if _may_be_absent(Object(a.shape, b.colour), spec)
        ]
        if swapped:
            return rng.choice(swapped)
        palette = COLOURS
    choices = [Object(s, c) for s in shapes for c in palette]
    choices = [o for o in choices if _may_be_absent(o, spec)]
    return rng.choice(choices) if choices else None


def _may_be_absent(obj: Object, spec: Spec) -> bool:
    return obj not in spec.objects and (obj.colour, obj.shape) not in HELD_OUT_PAIRS


def _position_question(spec: Spec, unique: list[Object], rng: random.Random) -> Question | None:
    a, b = rng.sample(unique, 2)
    where = dict(zip(spec.objects, spec.cells, strict=True))
    rel = relation_between(where[a], where[b])
    if rel is None:
        return None
    text = f"where is the {a.shape} relative to the {b.shape}?"
    return Question("position", text, rel.removesuffix(" of"))


def answer_vocabulary() -> tuple[str, ...]:
    """List every answer a question may have."""
    positions = tuple(r.removesuffix(" of") for r in RELATIONS)
    return ("yes", "no", *NUMBERS.values(), *COLOURS, *positions)


def without_opening(text: str) -> str:
    """Return a caption without its opening phrase."""
    for opening in OPENINGS[1:]:
        text = text.removeprefix(opening)
    return text


def grammar_corpus() -> list[str]:
    """Text that holds every word of the world, for training the built-in tokenizer."""
    lines = [noun(Object(s, c), n) for s in SHAPES for c in (INK, *COLOURS) for n in (1, *COUNTS)]
    lines += [p + w for p in OPENINGS for ws in _WORDINGS.values() for w in ws]
    lines += [f"is there {noun(Object(s, c))}?" for s in SHAPES for c in COLOURS]
    lines += [f"how many {plural(s)} are there?" for s in SHAPES]
    lines += [f"what colour is the {s}?" for s in SHAPES]
    lines += [f"where is the {s} relative to the {t}?" for s in SHAPES for t in SHAPES]
    lines += ["a circle and a square with a ring", *answer_vocabulary()]
    return lines
