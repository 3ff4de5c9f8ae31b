"""scenes: the verifier, the captions, the questions and the splits of the built-in world."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from viceversa.scenes.language import (
    NUMBERS,
    QUESTION_KINDS,
    answer_vocabulary,
    caption,
    parse_caption,
    questions,
)
from viceversa.scenes.render import CELL, CELL_CONTENTS, MASKS, PAPER, SIZE, render, render_image
from viceversa.scenes.spec import (
    ALL_CELLS,
    COLOURS,
    HELD_OUT_KINDS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    INK,
    KINDS,
    POPULAR_SHAPES,
    SHAPES,
    SPLITS,
    Cell,
    Object,
    Spec,
    draw_spec,
    draw_specs,
    relation_between,
)
from viceversa.scenes.verify import (
    TOLERANCE,
    Scene,
    caption_matches,
    picture_matches,
    read_pictures,
    verify_pictures,
)

REQUIRED = 0.995
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.fixture(scope="module")
def specs() -> list[Spec]:
    """5,000 specs: every kind, every split, held out or not."""
    found = [s for split in SPLITS for s in draw_specs("seen", 220, split)]
    for split in SPLITS:
        found += draw_specs("apart", 32, split, HELD_OUT_KINDS, held_out=True)
    return found[:5000]


def pictures(specs: list[Spec]) -> np.ndarray:
    return np.stack([render(s) for s in specs])


def scene_of(objects: list[Object], cells: list[Cell]) -> Scene:
    spec = Spec("two", tuple(objects), (), tuple(cells), 0)
    return read_pictures(render(spec)[None])[0]


# one attribute changed


def with_object(spec: Spec, index: int, obj: Object) -> Spec:
    objects = (*spec.objects[:index], obj, *spec.objects[index + 1 :])
    return dataclasses.replace(spec, objects=objects)


def other_shape(spec: Spec, rng: random.Random) -> Spec:
    k = rng.randrange(len(spec.objects))
    old = spec.objects[k]
    shape = rng.choice([s for s in SHAPES if s != old.shape])
    return with_object(spec, k, Object(shape, old.colour))


def other_colour(spec: Spec, rng: random.Random) -> Spec:
    k = rng.randrange(len(spec.objects))
    old = spec.objects[k]
    colour = rng.choice([c for c in (INK, *COLOURS) if c != old.colour])
    return with_object(spec, k, Object(old.shape, colour))


def one_more(spec: Spec, rng: random.Random) -> Spec:
    cell = rng.choice([c for c in ALL_CELLS if c not in spec.cells])
    obj = Object(rng.choice(SHAPES), rng.choice((INK, *COLOURS)))
    return dataclasses.replace(spec, objects=(*spec.objects, obj), cells=(*spec.cells, cell))


def one_less(spec: Spec, rng: random.Random) -> Spec:
    k = rng.randrange(len(spec.objects))
    objects, cells = list(spec.objects), list(spec.cells)
    del objects[k], cells[k]
    return dataclasses.replace(spec, objects=tuple(objects), cells=tuple(cells))


def other_relation(spec: Spec, rng: random.Random) -> Spec:
    """The two objects of one relation change places."""
    i, _, j = rng.choice(spec.relations)
    cells = list(spec.cells)
    cells[i], cells[j] = cells[j], cells[i]
    return dataclasses.replace(spec, cells=tuple(cells))


# pictures


def test_verifier_accepts_its_own_pictures(specs: list[Spec]) -> None:
    """At least 99.5 % of 5,000 pictures drawn from their own spec are right."""
    assert len(specs) == 5000
    assert {(s.kind, s.split) for s in specs} == {(k, s) for k in KINDS for s in SPLITS}
    assert np.mean(verify_pictures(pictures(specs), specs)) >= REQUIRED


def test_verifier_reads_every_object_in_its_cell(specs: list[Spec]) -> None:
    """What is read is what was drawn, where it was drawn, with nothing unreadable."""
    for spec, scene in zip(specs, read_pictures(pictures(specs)), strict=True):
        assert dict(zip(spec.cells, spec.objects, strict=True)) == {c: o for o, c in scene.objects}
        assert scene.unreadable == 0


@pytest.mark.parametrize(
    ("change", "part", "fewest"),
    [
        (other_shape, 0, 1250),
        (other_colour, 1, 1250),
        (one_more, 2, 1250),
        (one_less, 3, 1250),
        (other_relation, None, 1250),
    ],
)
def test_verifier_rejects_one_changed_attribute(
    specs: list[Spec], change: Callable[[Spec, random.Random], Spec], part: int | None, fewest: int
) -> None:
    """Of more than 5,000 pictures in all with one thing changed, 99.5 % of each sort are wrong."""
    asked = specs[part::4] if part is not None else [s for s in specs if s.relations]
    assert len(asked) >= fewest
    rng = random.Random(0)
    changed = [change(s, rng) for s in asked]
    assert np.mean(verify_pictures(pictures(changed), asked)) <= 1 - REQUIRED


def test_picture_may_choose_its_own_cells() -> None:
    """A relation holds over any distance; a spec without relations is right in any layout."""
    circle, square = Object("circle"), Object("square")
    position = Spec("position", (circle, square), ((0, "left of", 1),), ((0, 0), (0, 1)), 0)
    two = Spec("two", (circle, square), (), ((0, 0), (1, 1)), 0)
    far, near, upright = [(2, 0), (1, 2)], [(1, 1), (1, 2)], [(0, 1), (1, 1)]
    for cells, expected in ((far, True), (near, True), (upright, False)):
        assert picture_matches(scene_of([circle, square], cells), position) is expected
        assert picture_matches(scene_of([circle, square], cells), two)


def test_empty_picture_matches_nothing(specs: list[Spec]) -> None:
    empty = np.stack([render(dataclasses.replace(specs[0], objects=(), cells=()))] * 50)
    assert read_pictures(empty)[0] == Scene((), 0)
    assert not any(verify_pictures(empty, specs[:50]))


def test_unreadable_cell_makes_picture_and_caption_wrong(specs: list[Spec]) -> None:
    """Noise in one empty cell, the rest being right, is enough."""
    noise = np.random.default_rng(0)
    for spec in specs[:210]:
        picture = render(spec)
        row, col = next(c for c in ALL_CELLS if c not in spec.cells)
        y, x = row * CELL, col * CELL
        picture[y : y + CELL, x : x + CELL] = noise.integers(0, 256, (CELL, CELL, 3))
        scene = read_pictures(picture[None])[0]
        assert scene.unreadable == 1
        assert scene.counts == Counter(spec.objects)
        assert not picture_matches(scene, spec)
        assert not caption_matches(caption(spec), scene)


def test_pure_noise_is_unreadable_everywhere() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, SIZE, SIZE, 3), dtype=np.uint8)
    assert read_pictures(noise) == [Scene((), 9)] * 20


@pytest.mark.parametrize(("strength", "readable"), [(16, True), (64, False)])
def test_noise_is_forgiven_up_to_the_tolerance(
    specs: list[Spec], strength: int, readable: bool
) -> None:
    """Uniform noise of 16 is a mean error of 8, a tenth of the palest contrast (yellow, 75): under
    the tolerance of 0.2. Noise of 64 is not, over any content."""
    asked = specs[:500]
    noise = np.random.default_rng(0).integers(-strength, strength + 1, (len(asked), SIZE, SIZE, 3))
    noisy = (pictures(asked) + noise).clip(0, 255).astype(np.uint8)
    assert set(verify_pictures(noisy, asked)) == {readable}


@pytest.mark.parametrize("quarter", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_three_quarters_of_a_shape_are_not_the_shape(quarter: tuple[int, int]) -> None:
    """Any shape in any colour with a quarter of its cell left blank is unreadable."""
    half = CELL // 2
    y, x = CELL + quarter[0] * half, CELL + quarter[1] * half
    for content in CELL_CONTENTS[1:]:
        assert content is not None
        picture = render(Spec("single", (content,), (), ((1, 1),), 0))
        picture[y : y + half, x : x + half] = PAPER
        assert read_pictures(picture[None])[0] == Scene((), 1), content


def test_thinnest_quarter_of_a_shape_is_above_the_tolerance() -> None:
    """The top of the triangle covers 4 of 16 pixels: 0.25 of the contrast with the paper."""
    half = CELL // 2
    covered = [m.reshape(2, half, 2, half).mean((1, 3)).min() for m in MASKS.values()]
    assert min(covered) == 0.25
    assert TOLERANCE < 0.25


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((1, SIZE + 8, SIZE, 3), np.uint8),
    ],
)
def test_read_pictures_refuses_other_shapes_and_types(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        read_pictures(pixels)


def test_every_picture_needs_a_spec(specs: list[Spec]) -> None:
    with pytest.raises(ValueError, match="zip"):
        verify_pictures(pictures(specs[:3]), specs[:2])


def test_render_image_holds_the_pixels(specs: list[Spec]) -> None:
    image = render_image(specs[0])
    assert image.size == (SIZE, SIZE)
    assert (np.asarray(image) == render(specs[0])).all()


# captions


def test_own_caption_is_true_and_complete_in_every_phrasing(specs: list[Spec]) -> None:
    """It parses to the spec's objects and relations, and matches the spec's picture."""
    asked = specs[::5]
    for spec, scene in zip(asked, read_pictures(pictures(asked)), strict=True):
        for phrasing in range(12):
            text = caption(dataclasses.replace(spec, phrasing=phrasing))
            claims = parse_caption(text)
            assert claims is not None, text
            assert claims.counts == Counter(spec.objects), text
            said = [(spec.objects[i], rel, spec.objects[j]) for i, rel, j in spec.relations]
            assert list(claims.relations) == said, text
            assert caption_matches(text, scene), text


@pytest.mark.parametrize(("kind", "wordings"), [("single", 3), ("two", 6), ("complex", 6)])
def test_phrasing_changes_the_words(kind: str, wordings: int) -> None:
    spec = draw_spec(random.Random(0), kind)
    texts = {caption(dataclasses.replace(spec, phrasing=p)) for p in range(12)}
    assert len(texts) == wordings


RED_CIRCLE, BLUE_SQUARE, RING = Object("circle", "red"), Object("square", "blue"), Object("ring")
CIRCLE, SQUARE, CROSS = Object("circle"), Object("square"), Object("cross")

#: name -> objects, cells
SCENES: dict[str, tuple[list[Object], list[Cell]]] = {
    "row": ([RED_CIRCLE, BLUE_SQUARE], [(1, 0), (1, 2)]),
    "knight": ([CIRCLE, SQUARE], [(0, 0), (2, 1)]),
    "diagonal": ([CIRCLE, SQUARE], [(0, 0), (2, 2)]),
    "three": ([CROSS] * 3, [(0, 0), (0, 1), (2, 2)]),
    "corner": ([CIRCLE, SQUARE, RING], [(0, 0), (0, 2), (2, 0)]),
    "one": ([Object("ring", "yellow")], [(1, 1)]),
    "mixed": ([CIRCLE, CIRCLE, SQUARE], [(0, 0), (1, 0), (1, 2)]),
    "empty": ([], []),
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("row", "a red circle left of a blue square"),
        ("row", "A picture of a red circle to the left of a blue square."),
        ("row", "a blue square to the right of a red circle"),
        ("knight", "a circle above a square"),
        ("knight", "an image with a square under a circle"),
        ("diagonal", "a circle and a square"),
        ("diagonal", "a square with a circle"),
        ("three", "three crosses"),
        ("corner", "a square right of a circle above a ring"),
        ("corner", "a ring below a circle to the left of a square"),
        ("one", "a yellow ring"),
        ("mixed", "two circles and a square"),
    ],
)
def test_right_captions(name: str, text: str) -> None:
    """Any true and complete caption is right, not only the spec's own."""
    assert caption_matches(text, scene_of(*SCENES[name]))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("row", ""),
        ("row", "   "),
        ("row", "lorem ipsum dolor"),
        ("row", "a red circle left of"),
        ("row", "a red circle left of a blue square left of"),
        ("row", "a red circle left of a blue square, nice"),
        ("row", "a red circle"),  # an object is missing
        ("row", "a blue circle left of a red square"),  # colours swapped
        ("row", "a circle left of a square"),  # no colours
        ("row", "a red circle right of a blue square"),  # relation swapped
        ("row", "a blue square left of a red circle"),  # objects swapped
        ("row", "a red circle above a blue square"),
        ("row", "a red circle and a blue square"),  # relation missing
        ("row", "two red circles left of a blue square"),  # wrong count
        ("row", "a red circle left of a blue square and a green ring"),  # an object too many
        ("knight", "a circle left of a square"),  # the shorter distance
        ("knight", "a circle with a square"),
        ("diagonal", "a circle left of a square"),
        ("diagonal", "a circle above a square"),
        ("diagonal", "a circle"),
        ("three", "two crosses"),
        ("three", "four crosses"),
        ("three", "a cross"),
        ("three", "three rings"),
        ("three", "three red crosses"),
        ("three", "three crosses and a ring"),
        ("three", "two crosses above a cross"),  # which of them?
        ("corner", "a circle left of a square and a ring"),  # the ring is not placed
        ("corner", "a circle and a square with a ring"),
        ("corner", "a square right of a circle below a ring"),
        ("mixed", "two circles left of a square"),  # one of them may not be
        ("mixed", "a circle left of a square and a circle"),
        ("one", "a ring"),
        ("one", "a yellow circle"),
        ("empty", ""),
        ("empty", "a circle"),
    ],
)
def test_wrong_captions(name: str, text: str) -> None:
    assert not caption_matches(text, scene_of(*SCENES[name]))


def test_captions_with_one_thing_changed_are_wrong(specs: list[Spec]) -> None:
    """Over 1,000 specs: another shape, colour, count or relation never passes."""
    rng = random.Random(0)
    asked = specs[::5]
    said: Counter[str] = Counter()
    for spec, scene in zip(asked, read_pictures(pictures(asked)), strict=True):
        wrong: list[Spec] = []
        if spec.kind == "counting":
            wrong = [one_less(spec, rng)]
            if len(spec.objects) < 4:
                wrong.append(one_more(spec, rng))  # worded as one more of the first object
        else:
            wrong = [other_shape(spec, rng), other_colour(spec, rng)]
        for i, (a, rel, b) in enumerate(spec.relations):
            swapped = (*spec.relations[:i], (a, INVERSE[rel], b), *spec.relations[i + 1 :])
            wrong.append(dataclasses.replace(spec, relations=swapped))
        for other in wrong:
            assert not caption_matches(caption(other), scene), (spec, caption(other))
        said[spec.kind] += len(wrong)
    assert set(said) == set(KINDS)


@pytest.mark.parametrize(
    ("text", "counts", "relations"),
    [
        ("a yellow ring", {Object("ring", "yellow"): 1}, ()),
        ("four crosses", {CROSS: 4}, ()),
        ("a black circle", {CIRCLE: 1}, ()),
        ("a circle and a circle", {CIRCLE: 2}, ()),
        (
            "A circle, over a square with a ring.",
            {CIRCLE: 1, SQUARE: 1, RING: 1},
            ((CIRCLE, "above", SQUARE),),
        ),
    ],
)
def test_parse_caption(text: str, counts: dict[Object, int], relations: tuple) -> None:
    claims = parse_caption(text)
    assert claims is not None
    assert dict(claims.counts) == counts
    assert claims.relations == relations


@pytest.mark.parametrize(
    "text",
    [
        "",
        "circle",
        "a red",
        "five circles",
        "a pink circle",
        "a circle near a ring",
        "a circle and",
    ],
)
def test_parse_caption_knows_what_it_cannot_read(text: str) -> None:
    assert parse_caption(text) is None


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0), (0, 2), "left of"),
        ((0, 2), (1, 0), "right of"),
        ((0, 1), (2, 2), "above"),
        ((2, 1), (0, 1), "below"),
        ((0, 0), (1, 1), None),
        ((2, 0), (0, 2), None),
    ],
)
def test_relation_between(a: Cell, b: Cell, expected: str | None) -> None:
    """Along the longer distance; none on a diagonal."""
    assert relation_between(a, b) == expected


# splits


def test_splits_share_no_spec() -> None:
    keys = {s: {x.key() for x in draw_specs(0, 300, s)} for s in SPLITS}
    assert all(len(k) > 500 for k in keys.values())
    assert not keys["train"] & keys["tune"]
    assert not keys["train"] & keys["test"]
    assert not keys["tune"] & keys["test"]


def test_split_is_the_same_on_every_machine() -> None:
    """Pinned: a split that moved would put trained specs into the test."""
    cells = [Spec("single", (CIRCLE,), (), (cell,), 0).split for cell in ALL_CELLS[:6]]
    assert cells == ["test", "test", "tune", "train", "test", "test"]


def test_split_shares() -> None:
    """6, 2 and 2 in 10 of every picture of one object; within 0.05, over 378."""
    every = [Spec("single", (o,), (), (c,), 0).split for o in CELL_CONTENTS if o for c in ALL_CELLS]
    for split, share in (("train", 0.6), ("tune", 0.2), ("test", 0.2)):
        assert every.count(split) / len(every) == pytest.approx(share, abs=0.05)


def test_draw_specs_is_a_function_of_its_arguments() -> None:
    first = draw_specs(3, 20, "tune")
    assert first == draw_specs(3, 20, "tune")
    assert first != draw_specs(4, 20, "tune")
    assert [s.kind for s in first] == list(KINDS) * 20
    assert {s.split for s in first} == {"tune"}
    assert draw_specs(3, 5, "tune") == first[: 5 * len(KINDS)]


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_specs_are_apart(split: str) -> None:
    """held_out=True draws only held-out specs, False none, and each has a reason."""
    apart = draw_specs(0, 40, split, HELD_OUT_KINDS, held_out=True)
    assert all(has_held_out_pair(s) or has_held_out_relation(s) for s in apart)
    assert all(s.held_out and s.split == split for s in apart)
    assert not any(s.held_out for s in draw_specs(0, 100, split))


def test_training_never_shows_held_out_combinations() -> None:
    """3,000 train specs: no held-out colour and shape, no held-out relation said either way."""
    train = draw_specs("train", 429, "train")
    assert len(train) >= 3000
    assert not any(has_held_out_pair(s) or has_held_out_relation(s) for s in train)


def has_held_out_pair(spec: Spec) -> bool:
    return any((o.colour, o.shape) in HELD_OUT_PAIRS for o in spec.objects)


def has_held_out_relation(spec: Spec) -> bool:
    """Said in the caption or only seen in the picture."""
    placed = list(zip(spec.objects, spec.cells, strict=True))
    return any(
        (a.shape, relation_between(here, there), b.shape) in HELD_OUT_RELATIONS
        for a, here in placed
        for b, there in placed
    )


def test_held_out_relations_are_written_both_ways() -> None:
    assert all((b, INVERSE[r], a) in HELD_OUT_RELATIONS for a, r, b in HELD_OUT_RELATIONS)


def test_no_picture_is_in_two_splits() -> None:
    pictures = {s: {render(x).tobytes() for x in draw_specs(0, 300, s)} for s in SPLITS}
    for a, b in (("train", "tune"), ("train", "test"), ("tune", "test")):
        assert not pictures[a] & pictures[b]


@pytest.mark.parametrize(
    ("kind", "split", "held_out", "message"),
    [
        ("triple", "train", False, "kind is 'triple'; choose one of single"),
        ("single", "validation", False, "split is 'validation'; choose one of train"),
        ("counting", "test", True, "'counting' has no held-out specs"),
    ],
)
def test_draw_spec_refuses(kind: str, split: str, held_out: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_spec(random.Random(0), kind, split, held_out)


def test_kinds_are_what_they_are_called(specs: list[Spec]) -> None:
    """Object count, ink or colour, relations that are true of the cells, no cell used twice."""
    sizes = {"single": {1}, "colours": {1}, "counting": {2, 3, 4}, "complex": {3}}
    for spec in specs:
        assert len(spec.objects) in sizes.get(spec.kind, {2})
        assert len(set(spec.cells)) == len(spec.cells) == len(spec.objects)
        inked = {o.colour == INK for o in spec.objects}
        assert inked == {spec.kind not in ("colours", "attribution")}
        needed = {"position": 1, "complex": 2}.get(spec.kind, 0)
        assert len(spec.relations) == needed
        for i, rel, j in spec.relations:
            assert relation_between(spec.cells[i], spec.cells[j]) == rel


# questions


def test_questions_have_the_answers_of_the_picture(specs: list[Spec]) -> None:
    """Every answer recomputed from the objects that the verifier reads in the picture."""
    asked = specs[::2]
    rng = random.Random(0)
    seen: Counter[str] = Counter()
    for spec, scene in zip(asked, read_pictures(pictures(asked)), strict=True):
        found = questions(spec, rng)
        kinds = [q.kind for q in found]
        assert len(set(kinds)) == len(kinds)
        for question in found:
            assert question.answer in answer_vocabulary()
            assert question.answer == answer_from(scene, question.text), (spec, question)
        seen.update(kinds)
    assert set(seen) == set(QUESTION_KINDS)


def answer_from(scene: Scene, text: str) -> str:
    words = text.removesuffix("?").split()
    cells = {o.shape: c for o, c in scene.objects}
    if words[0] == "is":
        claims = parse_caption(" ".join(words[2:]))
        assert claims is not None
        (obj,) = claims.counts
        return "yes" if scene.counts[obj] else "no"
    if words[0] == "how":
        shape = next(s for s in SHAPES if words[2] in (s + "s", s + "es"))
        return NUMBERS[sum(o.shape == shape for o, _ in scene.objects)]
    if words[0] == "what":
        (colour,) = [o.colour for o, _ in scene.objects if o.shape == words[-1]]
        return colour
    (down, right) = np.subtract(cells[words[3]], cells[words[-1]])
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    assert abs(down) > abs(right), "asked about a diagonal"
    return "below" if down > 0 else "above"


def test_absent_objects_are_absent_and_of_their_kind(specs: list[Spec]) -> None:
    """Negatives say no; popular ones name a frequent shape, adversarial ones a shape or a pair
    of the scene; and scenes of ink are asked about ink, adversarial questions aside."""
    rng = random.Random(1)
    for spec in specs[1::2]:
        for question in questions(spec, rng):
            if question.kind not in ("random", "popular", "adversarial"):
                continue
            claims = parse_caption(question.text.removeprefix("is there ").removesuffix("?"))
            assert claims is not None
            (absent,) = claims.counts
            assert question.answer == "no"
            assert absent not in spec.objects
            if question.kind == "popular":
                assert absent.shape in POPULAR_SHAPES
            if question.kind == "adversarial":
                assert absent.shape in {o.shape for o in spec.objects}
            else:
                assert (absent.colour == INK) == (spec.objects[0].colour == INK)


def test_adversarial_question_prefers_swapped_colours() -> None:
    spec = Spec("attribution", (RED_CIRCLE, BLUE_SQUARE), (), ((0, 0), (1, 1)), 0)
    for seed in range(20):
        found = {q.kind: q for q in questions(spec, random.Random(seed))}
        assert found["adversarial"].text in ("is there a blue circle?", "is there a red square?")


def test_questions_fit_the_spec() -> None:
    """No colour of ink, no position on a diagonal or for one object, no colour of a shape that
    stands there twice; the count is of the shape, whatever the colours."""
    rng = random.Random(0)

    def kinds(objects: list[Object], cells: list[Cell]) -> dict[str, str]:
        spec = Spec("two", tuple(objects), (), tuple(cells), 0)
        return {q.kind: q.answer for q in questions(spec, rng)}

    assert {"colour", "position"}.isdisjoint(kinds(*SCENES["diagonal"]))
    assert "position" in kinds(*SCENES["knight"])
    twice = kinds([RED_CIRCLE, Object("circle", "blue")], [(0, 0), (0, 2)])
    assert {"colour", "position"}.isdisjoint(twice)
    assert twice["count"] == "two"
    assert kinds(*SCENES["one"])["colour"] == "yellow"
