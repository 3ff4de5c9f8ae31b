"""data: the built-in world, and the order of training, in memory and streaming."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import pytest
import torch
from PIL import Image

from viceversa.config import Config, ConfigError, DataConfig
from viceversa.data.sources import Source, Streamed, load_prompts, load_sources, shuffled
from viceversa.data.stream import Stream
from viceversa.scenes.examples import examples_of, picture
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import Spec, draw_specs
from viceversa.types import Direction, Example

Schedule = Literal["joint", "alternate", "t2i", "i2t"]


def config_of(prompts: Path | None = None, images: Path | None = None) -> Config:
    config = Config()
    config.data.prompts = str(prompts) if prompts else "scenes"
    config.data.images = str(images) if images else "scenes"
    return config


# the built-in world


def test_examples_of_specs() -> None:
    specs = draw_specs(0, 3, "train")
    for k, (prompt, drawn) in enumerate(
        zip(examples_of("t2i", specs), examples_of("i2t", specs), strict=True)
    ):
        assert prompt == Example(k, "t2i", text=caption(specs[k]), reference=specs[k])
        assert (drawn.example_id, drawn.text, drawn.reference) == (k, None, specs[k])
        assert drawn.pixels is not None
        assert torch.equal(drawn.pixels, picture(specs[k]))
        assert (drawn.pixels.permute(1, 2, 0).numpy() == render(specs[k])).all()


@pytest.mark.parametrize(
    ("schedule", "directions"),
    [("joint", {"t2i", "i2t"}), ("alternate", {"t2i", "i2t"}), ("t2i", {"t2i"}), ("i2t", {"i2t"})],
)
def test_sources_are_those_of_the_schedule(schedule: Schedule, directions: set[Direction]) -> None:
    """`scenes_size` of each, unpaired: train specs, other ones for prompts than for pictures."""
    config = Config(schedule=schedule)
    config.data.scenes_size = 30
    sources = load_sources(config, 24)
    assert set(sources) == directions
    references: list[list[Spec]] = [[e.reference for e in s.examples] for s in sources.values()]
    for specs in references:
        assert len(specs) == 30
        assert all(s.split == "train" and not s.held_out for s in specs)
    assert len(references) == 1 or references[0] != references[1]


def test_scene_sources_depend_on_the_seed_alone() -> None:
    config = Config()
    config.data.scenes_size = 14
    first = load_prompts(config)
    assert first == load_prompts(config)
    config.seed = 1
    assert first != load_prompts(config)


def test_unused_sources_are_not_read(tmp_path: Path) -> None:
    """A t2i run needs no folder of pictures."""
    config = config_of(images=tmp_path / "none")
    config.schedule = "t2i"
    config.data.scenes_size = 7
    assert set(load_sources(config, 24)) == {"t2i"}


# the order of training


def stream(
    shares: int = 1,
    schedule: Schedule = "joint",
    sizes: tuple[int, int] = (10, 7),
    per_step: tuple[int, int] = (4, 8),
    steps: int = 12,
    seed: int = 0,
    updates: int = 1,
) -> Stream:
    config = Config(schedule=schedule, steps=steps, seed=seed)
    config.data.prompts_per_step, config.data.images_per_step = per_step
    config.loss.updates_per_rollout = updates
    sources: dict[Direction, Source] = {
        "t2i": Source([Example(i, "t2i", text=str(i)) for i in range(sizes[0])]),
        "i2t": Source([Example(i, "i2t") for i in range(sizes[1])]),
    }
    return Stream(config, sources, shares)


def ids(examples: Sequence[Example], direction: Direction) -> list[int]:
    return [e.example_id for e in examples if e.direction == direction]


def steps_of(found: Stream) -> list[list[Example]]:
    """The examples of each optimizer step, its shares put together."""
    items = [found[i] for i in range(len(found))]
    starts = range(0, len(items), found.shares)
    return [[e for part in items[k : k + found.shares] for e in part] for k in starts]


@pytest.mark.parametrize("schedule", ["joint", "alternate", "t2i", "i2t"])
@pytest.mark.parametrize("shares", [2, 4])
def test_a_step_holds_the_same_examples_whatever_the_shares(
    schedule: Schedule, shares: int
) -> None:
    """And each share gets its equal part of them."""
    whole, split = stream(1, schedule), stream(shares, schedule)
    assert len(whole) == 12
    assert len(split) == 12 * shares
    directions: tuple[Direction, ...] = ("t2i", "i2t")
    for one, many in zip(steps_of(whole), steps_of(split), strict=True):
        assert [ids(one, d) for d in directions] == [ids(many, d) for d in directions]
    sizes = {"joint": {12}, "alternate": {4, 8}, "t2i": {4}, "i2t": {8}}[schedule]
    assert {len(split[i]) * shares for i in range(len(split))} == sizes


def test_stream_is_a_function_of_the_seed_and_index() -> None:
    """A resumed run, which starts in the middle, sees what it would have seen."""
    forward = [stream()[i] for i in range(12)]
    found = stream()
    assert [found[i] for i in reversed(range(12))] == forward[::-1]
    assert [stream(seed=1)[i] for i in range(12)] != forward


@pytest.mark.parametrize("schedule", ["joint", "alternate"])
def test_each_lap_is_a_shuffle_of_the_source(schedule: Schedule) -> None:
    """No example comes twice before all came once, across steps and turns of the schedule."""
    directions: dict[Direction, int] = {"t2i": 10, "i2t": 7}
    seen = [e for step in steps_of(stream(2, schedule, steps=40)) for e in step]
    for direction, size in directions.items():
        order = ids(seen, direction)
        laps = [order[k : k + size] for k in range(0, len(order) - size + 1, size)]
        assert len(laps) >= 8
        assert all(sorted(lap) == list(range(size)) for lap in laps)
        assert len({tuple(lap) for lap in laps}) == len(laps)


def test_a_step_may_be_longer_than_the_source() -> None:
    """8 pictures a step of 3: each comes two or three times."""
    found = ids(stream(sizes=(10, 3))[0], "i2t")
    assert sorted(found[:3]) == sorted(found[3:6]) == [0, 1, 2]
    assert len(found) == 8


def test_joint_steps_hold_both_directions() -> None:
    for step in steps_of(stream()):
        assert (len(ids(step, "t2i")), len(ids(step, "i2t"))) == (4, 8)


def test_alternate_takes_turns_and_starts_with_prompts() -> None:
    for k, step in enumerate(steps_of(stream(2, "alternate"))):
        expected = (4, 0) if k % 2 == 0 else (0, 8)
        assert (len(ids(step, "t2i")), len(ids(step, "i2t"))) == expected


@pytest.mark.parametrize("schedule", ["joint", "alternate", "t2i"])
def test_updates_per_rollout_repeat_a_step(schedule: Schedule) -> None:
    """Three steps on each rollout, and the rollouts are those of a run that takes one on each."""
    repeated = steps_of(stream(2, schedule, updates=3))
    once = steps_of(stream(2, schedule, steps=4))
    assert repeated == [step for step in once for _ in range(3)]
    assert once[0] != once[1]


@pytest.mark.parametrize(("shares", "message"), [(3, "4 t2i inputs"), (8, "4 t2i inputs")])
def test_indivisible_steps_are_refused(shares: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message} a step do not divide among {shares}"):
        stream(shares)


def test_indivisible_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="6 i2t inputs a step do not divide among 4"):
        stream(4, per_step=(4, 6))


# streaming


def streamed(folder: Path, shares: int = 1, updates: int = 1, seed: int = 0) -> Stream:
    """Twenty prompts, four of them bad, and six pictures, one of them bad."""
    folder.mkdir(exist_ok=True)
    lines = [f"prompt {k}" if k % 5 else "" for k in range(20)]
    (folder / "p.txt").write_text("\n".join(lines))
    for k in range(5):
        Image.new("RGB", (20, 20), f"rgb({40 * k},0,0)").save(folder / f"{k}.png")
    (folder / "bad.png").write_bytes(b"")
    config = config_of(folder / "p.txt", folder)
    config.data.streaming, config.steps, config.seed = True, 12, seed
    config.data.prompts_per_step, config.data.images_per_step = 4, 2
    config.loss.updates_per_rollout = updates
    return Stream(config, load_sources(config, 8), shares)


def all_ids(found: Stream) -> list[list[int]]:
    return [[e.example_id for e in step] for step in steps_of(found)]


def test_streaming_does_not_depend_on_the_shares(tmp_path: Path) -> None:
    whole = steps_of(streamed(tmp_path))
    split = steps_of(streamed(tmp_path, 2))
    for direction in ("t2i", "i2t"):
        assert [ids(s, direction) for s in whole] == [ids(s, direction) for s in split]
    other = all_ids(streamed(tmp_path, seed=1))
    assert all_ids(streamed(tmp_path)) != other


def test_a_process_that_takes_every_other_share_sees_the_same(tmp_path: Path) -> None:
    both = streamed(tmp_path, 2)
    expected = [[e.example_id for e in both[k]] for k in range(len(both))]
    for rank in (0, 1):
        mine = streamed(tmp_path, 2)
        found = [[e.example_id for e in mine[k]] for k in range(rank, len(mine), 2)]
        assert found == expected[rank::2]


def test_streaming_resumes_and_goes_back(tmp_path: Path) -> None:
    """From the middle, and from the start again after the probing steps; counts do not double."""
    expected = all_ids(streamed(tmp_path))
    resumed = streamed(tmp_path)
    found = [[e.example_id for e in resumed[k]] for k in range(7, 12)]
    assert found == expected[7:]
    assert [e.example_id for e in resumed[0]] == expected[0]
    assert resumed.sources["t2i"].used == 16
    assert resumed.sources["i2t"].used == 5
    assert [kind for _, kind in resumed.sources["i2t"].skipped] == ["empty file"]
    assert len(resumed.sources["t2i"].skipped) == 4


def test_repeated_updates_do_not_read_again(tmp_path: Path) -> None:
    """Three steps on one rollout ask three times for the same inputs: kept, not read anew."""
    repeated = streamed(tmp_path, updates=3)
    laps: list[str] = []
    for source in repeated.sources.values():
        assert isinstance(source, Streamed)
        honest = source._laps
        source._laps = lambda salt, honest=honest: (laps.append(salt), honest(salt))[1]
    once = all_ids(streamed(tmp_path))
    assert all_ids(repeated) == [step for step in once[:4] for _ in range(3)]
    assert laps == []


def test_an_iterable_dataset_is_read_as_it_comes() -> None:
    """Neither ends; each holds its inputs out, and goes through its buffer as a named set does."""

    def endless(cell: Callable[[int], Any]) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            assert number < 1500, "read far ahead of the buffer"
            yield {"text": f"a ring {number}", "shot": cell(number)}

    def png(number: int) -> Any:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    made = datasets.IterableDataset.from_generator
    kinds = datasets.Features({"text": datasets.Value("string"), "shot": datasets.Image()})
    given: dict[Direction, Any] = {
        "t2i": made(endless, gen_kwargs={"cell": int}),
        "i2t": made(endless, features=kinds, gen_kwargs={"cell": png}),
    }
    config = Config(data=DataConfig(prompts="given in Python: t", images="given in Python: i"))
    config.data.image_column, config.eval.held_out_inputs = "shot", 2
    sources = load_sources(config, 8, given=given)
    for source in sources.values():
        assert isinstance(source, Streamed)
        assert len({source.nth(k, "0").example_id for k in range(20)}) == 20
        assert source.used < 40


def test_shuffled_keeps_every_item_and_bounds_what_it_holds() -> None:
    seen: list[int] = []
    items = (seen.append(k) or k for k in range(100))
    flow = shuffled(items, random.Random(0), 10)
    first = next(flow)
    assert len(seen) == 11
    rest = list(flow)
    assert sorted([first, *rest]) == list(range(100))
    assert [first, *rest] != list(range(100))
