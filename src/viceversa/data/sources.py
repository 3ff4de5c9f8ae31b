"""The inputs of a run in training order: the built-in world, or the user's prompts and pictures."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from viceversa.config import Config, ConfigError, DataConfig, load_object
from viceversa.data.cache import DiskCache
from viceversa.data.given import GIVEN, picture_refs, prompt_rows, streams
from viceversa.data.hub import check_reference
from viceversa.data.pictures import check_pictures, read_picture, usable
from viceversa.data.places import Ref, RowRef
from viceversa.data.prompts import Row, TextLimits, clean_prompts, read_prompts
from viceversa.types import Direction, Example, Note

T = TypeVar("T")

#: Of each input in turn: the example, or None where it cannot be used, and what was done.
Readings = Iterator[tuple[Example | None, list[Note]]]

#: At most one input in so many is held out.
SHARE = 8

#: Inputs that a streaming set is shuffled among.
BUFFER = 1000


#: Built-in worlds, by import path. They give inputs and labels, and evaluate a model.
WORLDS = {"scenes": "viceversa.scenes.world:Scenes"}


@dataclass
class Source:
    """Inputs of one direction, with what was left out or changed."""

    examples: Sequence[Example]
    notes: list[Note] = field(default_factory=list)
    world: Any = None
    """The built-in world that the inputs come from."""
    monitored: bool = False
    """The examples carry the world's labels, and its monitor can read outputs."""
    held_out: Sequence[Example] = ()
    """Inputs that are never trained on, to measure with."""
    _order: tuple[str, list[int]] = ("", [])

    @property
    def used(self) -> int:
        """Count the inputs; of a streaming set, those read so far."""
        return len(self.examples)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """List what was left out, (name, kind)."""
        return [(n.name, n.kind) for n in self.notes if n.skipped]

    def nth(self, position: int, salt: str) -> Example:
        """Return the input at this place of the training order, which `salt` shuffles each pass."""
        lap, place = divmod(position, len(self.examples))
        if self._order[0] != f"{salt}/{lap}":
            order = list(range(len(self.examples)))
            random.Random(f"{salt}/{lap}").shuffle(order)
            self._order = (f"{salt}/{lap}", order)
        return self.examples[self._order[1][place]]

    def hold_out(self, direction: Direction, config: Config) -> None:
        """Set `held_out`, the same inputs in every run of a seed, and take them out of training.

        A built-in world gives others than training's. Texts and pictures that are equal to one held
        out are left out of training as well.
        """
        count = min(config.eval.held_out_inputs, len(self.examples) // SHARE)
        if not count:
            return
        if self.world is not None:
            self.held_out = self.world.held_out(direction, config.seed, count)
            return
        rng = random.Random(_held_out_salt(config, direction))
        some = rng.sample(range(len(self.examples)), count)
        if isinstance(self.examples, Pictures):
            self.examples, self.held_out = self.examples.without(some)
            return
        self.held_out = [self.examples[i] for i in some]
        texts = {e.text for e in self.held_out}
        self.examples = [e for e in self.examples if e.text not in texts]
        if not self.examples:
            raise ConfigError(
                "data.prompts: nothing is left to train on beside what is held out: set "
                "eval.held_out_inputs to 0"
            )


class Pictures(Sequence[Example]):
    """Pictures decoded when asked for: a set of photographs would not fit in memory."""

    def __init__(self, refs: Sequence[Ref], size: int, crop: str, notes: list[Note]):
        self.refs, self.size, self.crop, self.notes = refs, size, crop, notes
        self.numbers: Sequence[int] = range(len(refs))
        self.refused: frozenset[bytes] = frozenset()
        """Digests of pictures that are not given, under whatever name."""

    def without(self, some: Sequence[int]) -> tuple[Pictures, list[Example]]:
        """Return the pictures but those at `some` places, and their equals; and those, read."""
        taken = [self[i] for i in some]
        left = sorted(set(range(len(self))) - set(some))
        rest = Pictures([self.refs[i] for i in left], self.size, self.crop, self.notes)
        rest.numbers = left
        rest.refused = frozenset(digest_of(e) for e in taken)
        return rest, taken

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        first = range(len(self))[index]  # IndexError past the end: iteration stops there
        for number in (*range(first, len(self)), *range(first)):
            pixels, notes = read_picture(self.refs[number], self.size, self.crop)
            if pixels is not None:
                reference = _reference(self.refs[number])
                found = Example(self.numbers[number], "i2t", None, pixels, reference)
                if not self.refused or digest_of(found) not in self.refused:
                    return found
            # it could be read before training: rather the next one than a run cut off
            self.notes += [note for note in notes if note not in self.notes]
        raise ConfigError(
            "data.images: none of the pictures can be read any longer"
            + " that is not equal to one held out (eval.held_out_inputs)" * bool(self.refused)
        )


class Streamed(Source):
    """Inputs of a set larger than memory, read in order through a shuffle buffer, again and again.

    Every process reads the whole set and takes its share: which inputs are usable, and so which
    ones make up a step, shows only when they are read. A resumed run reads up to where it was.
    """

    def __init__(
        self,
        read: Callable[[random.Random], Iterator[tuple[Example | None, list[Note]]]],
        keep: int,
    ):
        super().__init__([])
        self._read = read
        self._kept: deque[Example] = deque(maxlen=keep)  # a step may be asked for again
        self._next = 0
        self._salt: str | None = None
        self._withheld: frozenset[int] = frozenset()
        self._flow: Iterator[Example] = iter(())
        self._noted = self._used = 0

    @property
    def used(self) -> int:
        return self._used

    def nth(self, position: int, salt: str) -> Example:
        if salt != self._salt or position < self._next - len(self._kept):
            self._salt, self._next, self._flow = salt, 0, self._laps(salt)
            self._kept.clear()
        while self._next <= position:
            self._kept.append(next(self._flow))
            self._next += 1
        return self._kept[position - self._next]

    def hold_out(self, direction: Direction, config: Config) -> None:
        """Take the first inputs of the stream, and their equals, out of training.

        So many as `eval.held_out_inputs`; fewer of a set that ends before SHARE times as many.
        """
        count, kept, seen = config.eval.held_out_inputs, dict[int, Example](), 0
        if not count:
            return
        for example, _ in self._read(random.Random(_held_out_salt(config, direction))):
            if seen == SHARE * count:
                break
            if example is not None:
                seen += 1
                if len(kept) < count:
                    kept[example.example_id] = example
        self.held_out = list(kept.values())[: seen // SHARE]
        self._withheld = frozenset(e.example_id for e in self.held_out)

    def _laps(self, salt: str) -> Iterator[Example]:
        for lap in itertools.count():
            found = 0
            for number, (example, notes) in enumerate(self._read(random.Random(f"{salt}/{lap}"))):
                if lap == 0 and number >= self._noted:  # once, however often it is read
                    self._noted = number + 1
                    self.notes += notes
                    self._used += example is not None
                if example is not None and example.example_id not in self._withheld:
                    found += 1
                    yield example
            if not found:
                raise ConfigError(f"the data hold nothing to use: {summary(self.notes)}")


def summary(notes: Iterable[Note]) -> str:
    """Say `2 truncated, 1 empty file`: what was left out."""
    kinds = Counter(n.kind for n in notes if n.skipped)
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()) or "nothing was found"


def shuffled(items: Iterable[T], rng: random.Random, size: int = BUFFER) -> Iterator[T]:
    """Yield the items, each at a random place among the `size` around it."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) > size:
            place = rng.randrange(size)
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def load_sources(
    config: Config,
    image_size: int,
    limits: TextLimits | None = None,
    console: Console | None = None,
    draws_pixels: bool = True,
    given: Mapping[Direction, Any] | None = None,
) -> dict[Direction, Source]:
    """Load the inputs of each direction that the schedule needs; progress goes to `console`.

    Those that are `given`, as Python has them (data.given), take the place of what the config
    names. Raises ConfigError for a missing or empty file, folder or dataset.
    """
    given = given or {}
    sources: dict[Direction, Source] = {}
    if config.schedule != "i2t":
        drawn_size = image_size if draws_pixels else 0
        sources["t2i"] = load_prompts(config, limits, drawn_size, given.get("t2i"))
    if config.schedule != "t2i":
        sources["i2t"] = load_images(config, image_size, console, given.get("i2t"))
    for direction, source in sources.items():
        source.hold_out(direction, config)
        if isinstance(source, Streamed):
            source.nth(0, salt_of(config, direction))  # troubles of the whole set show now
    return sources


def world_of(name: str) -> Any:
    """Return the built-in world of that name; None where there is none."""
    return load_object("data", WORLDS[name])() if name in WORLDS else None


def load_prompts(
    config: Config, limits: TextLimits | None = None, drawn_size: int = 0, given: Any = None
) -> Source:
    """Read prompts. Those of a built-in world are labelled where its monitor reads pictures of
    `drawn_size` pixels a side, which the model draws; 0: it draws none."""
    data, limits = config.data, limits or TextLimits()
    if world := world_of(data.prompts):
        check_reference(data, "prompts")
        examples = world.prompts(config.seed, data.scenes_size)
        if drawn_size == world.side:
            return Source(examples, world=world, monitored=True)
        return Source([replace(e, reference=None) for e in examples], world=world)
    _check_named("data.prompts", data.prompts, given)
    if streams(given, data):
        read = functools.partial(_stream_prompts, given, data, limits)
        return Streamed(read, data.prompts_per_step)
    kept, notes = _cleaned(prompt_rows(given, data), limits)
    if not kept:
        raise ConfigError(f"data.prompts is {data.prompts!r}; it holds no prompt: {summary(notes)}")
    rows = enumerate(kept)
    return Source([Example(i, "t2i", r.text, reference=r.reference) for i, r in rows], notes)


def load_images(
    config: Config, image_size: int, console: Console | None = None, given: Any = None
) -> Source:
    data = config.data
    if world := world_of(data.images):
        check_reference(data, "images")
        if image_size != world.side:
            raise ConfigError(
                f"data.images is {data.images!r}, whose pictures have {world.side} pixels a side, "
                f"and the model's have {image_size}; give pictures of your own"
            )
        pictures = world.pictures(config.seed, data.scenes_size)
        return Source(pictures, world=world, monitored=True)
    _check_named("data.images", data.images, given)
    if streams(given, data):
        read = functools.partial(_stream_pictures, given, data, image_size)
        return Streamed(read, data.images_per_step)
    cache = DiskCache(Path(data.cache_dir) / "pictures.sqlite")
    refs, notes = [], []
    for ref, found in check_pictures(list(picture_refs(given, data)), cache, console):
        notes += found
        if usable(found):
            refs.append(ref)
    if not refs:
        raise ConfigError(
            f"data.images is {data.images!r}; none of its files could be read: {summary(notes)}"
        )
    return Source(Pictures(refs, image_size, data.crop, notes), notes)


def load_questions(config: Config, limits: TextLimits | None = None) -> list[str]:
    """Read what replay asks about pictures, if the schedule has any.

    Raises ConfigError where there is no question.
    """
    name = config.replay.questions
    if not config.replays:
        return []
    if world := world_of(name):
        return world.questions(config.seed, config.data.scenes_size)
    data = replace(config.data, prompts=name, reference_column="")
    found, notes = _cleaned(read_prompts(data), limits or TextLimits())
    if not found:
        raise ConfigError(f"replay.questions is {name!r}; it holds no question: {summary(notes)}")
    return [row.text for row in found]


def _cleaned(rows: Iterable[Row], limits: TextLimits) -> tuple[list[Row], list[Note]]:
    """Return the texts that can be used, and what was left out or changed."""
    kept, notes = [], []
    for row, found in clean_prompts(rows, limits):
        notes += found
        if row is not None:
            kept.append(row)
    return kept, notes


def _check_named(option: str, name: str, given: Any) -> None:
    """Raise ConfigError for inputs that were given in Python, and now are not."""
    if given is None and name.startswith(GIVEN):
        raise ConfigError(
            f"{option} is {name!r}: the run had inputs without a name; go on with it from Python, "
            "with viceversa.train(…, resume=True)"
        )


def _stream_prompts(
    given: Any, data: DataConfig, limits: TextLimits, rng: random.Random
) -> Readings:
    for row, notes in clean_prompts(shuffled(prompt_rows(given, data), rng), limits):
        if row is None:
            yield None, notes
        else:
            number = _content_id(row.text.encode())
            yield Example(number, "t2i", row.text, reference=row.reference), notes


def _stream_pictures(given: Any, data: DataConfig, size: int, rng: random.Random) -> Readings:
    for ref in shuffled(picture_refs(given, data, rng), rng):
        pixels, notes = read_picture(ref, size, data.crop)
        if pixels is None:
            yield None, notes
        else:
            number = _content_id(pixels.numpy().tobytes())
            yield Example(number, "i2t", None, pixels, _reference(ref)), notes


def _reference(ref: Ref | Note) -> Any:
    return ref.reference if isinstance(ref, RowRef) else None


def _content_id(content: bytes) -> int:
    """Make an id that is the same wherever in a stream the input comes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest())


def digest_of(example: Example) -> bytes:
    """Return what two pictures share that are equal at the model's size."""
    assert example.pixels is not None
    return hashlib.blake2b(example.pixels.numpy().tobytes(), digest_size=16).digest()


def salt_of(config: Config, direction: Direction) -> str:
    """Return what shuffles the inputs of a direction."""
    return f"{config.seed}/{direction}"


def _held_out_salt(config: Config, direction: Direction) -> str:
    return f"{salt_of(config, direction)}/held out"
