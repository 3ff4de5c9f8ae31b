"""data: prompts and pictures from files, what is left out, and the order of training."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from viceversa.config import Config, ConfigError
from viceversa.data import (
    Source,
    Stream,
    examples_of,
    load_images,
    load_prompts,
    load_sources,
    picture,
    read_image,
)
from viceversa.scenes import Spec, caption, draw_specs, render
from viceversa.types import Direction, Example

SIZE = 16
Schedule = Literal["joint", "alternate", "t2i", "i2t"]


def config_of(prompts: Path | None = None, images: Path | None = None) -> Config:
    config = Config()
    config.data.prompts = str(prompts) if prompts else "scenes"
    config.data.images = str(images) if images else "scenes"
    return config


def prompts_of(path: Path, content: str | bytes | None = None) -> Source:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_prompts(config_of(path))


def texts(source: Source) -> list[str | None]:
    return [e.text for e in source.examples]


# prompts


def test_prompts_from_text(tmp_path: Path) -> None:
    """One a line, stripped; empty lines are counted with their line numbers."""
    path = tmp_path / "p.txt"
    source = prompts_of(path, "a red circle\n\n  a café  \n   \na ring")
    assert texts(source) == ["a red circle", "a café", "a ring"]
    assert source.skipped == [(f"{path} row 2", "empty"), (f"{path} row 4", "empty")]
    assert [e.example_id for e in source.examples] == [0, 1, 2]
    assert {e.direction for e in source.examples} == {"t2i"}
    assert all(e.reference is None and e.pixels is None for e in source.examples)


@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
def test_prompts_from_jsonl(tmp_path: Path, column: str) -> None:
    rows = [{"id": 3, column: "a ring"}, {"id": 4, column: " "}, {"id": 5}, {column: "a é"}]
    source = prompts_of(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert texts(source) == ["a ring", "a é"]
    assert [reason for _, reason in source.skipped] == ["empty", "empty"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_prompts_from_tables(tmp_path: Path, kind: str) -> None:
    """Quoted commas survive; empty and missing cells are counted."""
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"id": [1, 2, 3, 4], "text": ["a ring, red", "", None, "a é"]})
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    source = prompts_of(path)
    assert texts(source) == ["a ring, red", "a é"]
    assert [reason for _, reason in source.skipped] == ["empty", "empty"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_prompt_column_comes_before_text_and_caption(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"caption": ["c"], "text": ["t"], "prompt": ["p"]})
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    assert texts(prompts_of(path)) == ["p"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_unknown_columns_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"title": ["a"], "url": ["b"]})
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    with pytest.raises(ConfigError, match=r"has columns \['title', 'url'\], none of prompt"):
        prompts_of(path)


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_file_without_prompts(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.txt'; it holds no prompt"):
        prompts_of(tmp_path / "p.txt", content)


def test_empty_jsonl(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"p\.jsonl'"):
        prompts_of(tmp_path / "p.jsonl", "")


@pytest.mark.parametrize(
    ("name", "content"), [("p.txt", b"caf\xe9"), ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ')]
)
def test_unreadable_prompts(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(ConfigError, match="it cannot be read"):
        prompts_of(tmp_path / name, content)


@pytest.mark.parametrize("name", ["none.txt", "none.csv", "."])
def test_missing_prompts(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        prompts_of(tmp_path / name)


# pictures


def save(path: Path, size: tuple[int, int] = (20, 20), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def noise_png() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def test_images_from_a_folder(tmp_path: Path) -> None:
    """Sorted by path, subfolders included, other files left alone."""
    save(tmp_path / "b.JPG", colour="blue")
    save(tmp_path / "a.png", colour="red")
    save(tmp_path / "c" / "d.jpeg", (9, 40), "lime")
    (tmp_path / "notes.txt").write_text("not a picture")
    source = load_images(config_of(images=tmp_path), SIZE)
    assert source.skipped == []
    assert [e.example_id for e in source.examples] == [0, 1, 2]
    for example, channel in zip(source.examples, (0, 2, 1), strict=True):
        assert example.direction == "i2t"
        assert example.text is None
        assert example.reference is None
        assert example.pixels is not None
        assert example.pixels.shape == (3, SIZE, SIZE)
        assert example.pixels.dtype == torch.uint8
        assert example.pixels[channel].min() > 240
        assert example.pixels.float().mean((1, 2)).argmax() == channel


def test_broken_images_are_skipped_by_name(tmp_path: Path) -> None:
    """Cut short, empty, or text with a picture's name: left out, with a reason, the rest kept."""
    save(tmp_path / "good.png")
    whole = noise_png()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(whole)).save(jpeg, "jpeg")
    (tmp_path / "cut.jpg").write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    source = load_images(config_of(images=tmp_path), SIZE)
    assert [e.example_id for e in source.examples] == [0]
    names = ["cut.jpg", "cut.png", "empty.png", "folder.png", "text.png"]
    assert [name for name, _ in source.skipped] == [str(tmp_path / n) for n in names]
    assert all(reason for _, reason in source.skipped)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load_images(config_of(images=tmp_path / "none"), SIZE)


def test_folder_without_readable_images(tmp_path: Path) -> None:
    """An empty one, and one whose only picture is broken, which is counted."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"none of its files could be read \(0 skipped"):
        load_images(config_of(images=folder), SIZE)
    (folder / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"none of its files could be read \(1 skipped"):
        load_images(config_of(images=folder), SIZE)


@pytest.mark.parametrize("wide", [True, False])
def test_crop_keeps_the_centre(tmp_path: Path, wide: bool) -> None:
    """Red, lime and blue thirds of 16 pixels each: exactly the lime one is left, unresized."""
    pixels = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    for k in range(3):
        pixels[:, k * SIZE : (k + 1) * SIZE, k] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels if wide else pixels.transpose(1, 0, 2).copy()).save(path)
    found = read_image(path, SIZE)
    assert found[1].eq(255).all()
    assert found[[0, 2]].eq(0).all()


def test_read_image_keeps_orientation(tmp_path: Path) -> None:
    """Rows stay rows: a red top half over a blue bottom half, doubled in size."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :, 0] = pixels[4:, :, 2] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    found = read_image(path, SIZE)
    assert found[0, :4].eq(255).all()
    assert found[2, :4].eq(0).all()
    assert found[2, -4:].eq(255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    """A white picture is white in every mode."""
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new("RGB", (20, 20), "white").convert(mode).save(path)
    assert read_image(path, SIZE).tolist() == np.full((3, SIZE, SIZE), 255).tolist()


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


# known failures: strict, so a fix in src shows up here


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("header.csv", b"prompt\n"),
        ("ragged.csv", b"prompt,n\na,1\nb,2,3,4\n"),
        ("latin.csv", b"prompt\ncaf\xe9\n"),
        ("empty.parquet", b""),
        ("broken.parquet", b"not a parquet file at all"),
        ("numbers.jsonl", b"5\n"),
        ("mixed.jsonl", b'{"prompt": "a"}\n[1]\n'),
    ],
)
def test_broken_tables_are_config_errors(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(ConfigError):
        prompts_of(tmp_path / name, content)


def test_brackets_in_a_file_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a1.csv").write_text("prompt\nanother file\n")
    assert texts(prompts_of(tmp_path / "a[1].csv", "prompt\nthis file\n")) == ["this file"]


def test_a_prompt_may_be_the_word_null(tmp_path: Path) -> None:
    assert texts(prompts_of(tmp_path / "p.csv", "prompt\na\nnull\n")) == ["a", "null"]


def test_blank_jsonl_lines_are_counted(tmp_path: Path) -> None:
    """The one empty prompt stands on line 3, after a blank line 2."""
    path = tmp_path / "p.jsonl"
    source = prompts_of(path, '{"prompt": "a"}\n\n{"prompt": ""}\n')
    assert source.skipped == [(f"{path} row 2", "empty"), (f"{path} row 3", "empty")]


def test_jsonl_prompts_may_hold_any_character(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)
    assert texts(prompts_of(tmp_path / "p.jsonl", line)) == ["a\u2028b"]


def test_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    assert texts(prompts_of(tmp_path / "p.txt", "\ufeffa ring")) == ["a ring"]


def test_png_with_a_bad_chunk_is_skipped(tmp_path: Path) -> None:
    """The data chunk claims half its length, so what follows is no chunk."""
    save(tmp_path / "good.png")
    png = noise_png()
    start = png.index(b"IDAT") - 4
    half = int.from_bytes(png[start : start + 4]) // 2
    (tmp_path / "bad.png").write_bytes(png[:start] + half.to_bytes(4) + png[start + 4 :])
    source = load_images(config_of(images=tmp_path), SIZE)
    assert [name for name, _ in source.skipped] == [str(tmp_path / "bad.png")]


def test_photos_are_turned_upright(tmp_path: Path) -> None:
    """Orientation 3: stored upside down, so the red top half belongs at the bottom."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[: SIZE // 2, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png", SIZE)
    assert found[0, -1].eq(255).all()
    assert found[0, 0].eq(0).all()
