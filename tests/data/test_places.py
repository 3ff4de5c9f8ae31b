"""places: pictures in shards and datasets, and their names."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import datasets
import pytest

import hostile
from photographs import colours, kinds, load, save, save_tar, solid
from viceversa.config import Config, ConfigError
from viceversa.data.places import FileRef, RowRef, expand_shards
from viceversa.types import Unusable

# shards


def test_shards_in_a_folder_and_by_name(config: Config, photos: Path) -> None:
    """By folder, by range, by list, by pattern; what is no picture in them is left alone."""
    for k, colour in enumerate(("red", "lime", "blue")):
        members = {f"{k}.png": solid(colour), f"{k}.txt": b"a caption", f"{k}.json": b"{}"}
        save_tar(photos / f"s-{k:03d}.tar", members)
    for name in ("", "/s-{000..002}.tar", "/s-{000,001,002}.tar", "/s-*.tar"):
        config.data.images = f"{photos}{name}"
        source = load(config)
        assert colours(source.examples) == [0, 1, 2]
        assert source.notes == []
    config.data.images = f"{photos}/s-002.tar"
    assert colours(load(config).examples) == [2]


def test_a_shard_may_be_named_in_capitals(config: Config, photos: Path) -> None:
    save_tar(photos / "S.TAR", {"0.png": solid("red")})
    for name in ("", "/S.TAR"):
        config.data.images = f"{photos}{name}"
        assert colours(load(config).examples) == [0]


def test_missing_shards_are_named(config: Config, photos: Path) -> None:
    save_tar(photos / "s-0.tar", {"a.png": solid("red")})
    config.data.images = f"{photos}/s-{{0..1}}.tar"
    with pytest.raises(ConfigError, match=r"there is no shard '.*s-1\.tar'"):
        load(config)


def test_compressed_archives_are_named(config: Config, photos: Path) -> None:
    """In a folder among pictures, and by name."""
    photos.mkdir()
    (photos / "a.png").write_bytes(solid("red"))
    (photos / "s.tar.gz").write_bytes(b"\x1f\x8b")
    source = load(config)
    assert [(Path(n.name).name, n.kind) for n in source.notes] == [
        ("s.tar.gz", "compressed archive")
    ]
    config.data.images = f"{photos}/s.tar.gz"
    with pytest.raises(ConfigError, match=r"plain \.tar"):
        load(config)


def test_shard_names() -> None:
    here = Path(__file__)
    stem = str(here.parent / "test_{places,data}.py")
    assert expand_shards(stem) == [str(here), str(here.parent / "test_data.py")]


@pytest.mark.parametrize("left", [0.3, 0.5, 0.9])
def test_a_cut_shard_gives_what_it_has(config: Config, photos: Path, left: float) -> None:
    save_tar(photos / "whole.tar", {"a.png": solid("red")})
    members = {f"{k}.png": hostile.encoded(hostile.noise(), "png") for k in range(3)}
    save_tar(photos / "cut.tar", members)
    content = (photos / "cut.tar").read_bytes()
    content = content[: 3 * 4096]  # without the zeros at the end
    (photos / "cut.tar").write_bytes(content[: int(left * len(content))])
    source = load(config)
    assert kinds(source)["truncated shard"] == 1
    assert source.used + kinds(source)["truncated"] in (2, 3, 4)


def test_hostile_members_of_a_shard(config: Config, photos: Path) -> None:
    members = {str(n): make() for n, (make, _) in hostile.FILES.items() if isinstance(n, str)}
    save_tar(photos / "a.tar", members)
    source = load(config)
    expected = Counter(k for n, (_, said) in hostile.FILES.items() for k in said)
    assert kinds(source) == expected
    assert all(n.name.startswith(f"{photos}/a.tar/") for n in source.notes)


# datasets


@pytest.mark.usefixtures("quiet_hub")
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["", "shot"])
def test_pictures_from_a_dataset(
    config: Config, photos: Path, streaming: bool, column: str
) -> None:
    """A folder of Parquet, read as a dataset of the hub is; the column is found, or named."""
    photos.mkdir()
    cells = [
        {"bytes": solid("red"), "path": "a.png"},
        {"bytes": b"", "path": "b.png"},
        {"bytes": solid("lime"), "path": None},
        None,
    ]
    table = datasets.Dataset.from_dict({"n": [0, 1, 2, 3], "shot": cells})
    table.cast_column("shot", datasets.Image(decode=False)).to_parquet(photos / "train.parquet")
    config.data.images = f"hf://{photos}:train"
    config.data.image_column, config.data.streaming = column, streaming
    source = load(config)
    drawn = [source.nth(k, "salt") for k in range(3)]
    assert sorted(colours(drawn[:2])) == [0, 1]
    assert sorted(source.skipped) == [
        (f"hf://{photos}:train row 2", "empty file"),
        (f"hf://{photos}:train row 4", "empty file"),
    ]


@pytest.mark.usefixtures("quiet_hub")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_a_dataset_becomes_the_reference(
    config: Config, photos: Path, streaming: bool
) -> None:
    """Also where a picture before it cannot be used."""
    photos.mkdir()
    cells = [{"bytes": solid(c), "path": None} for c in ("red", "lime")]
    rows = {"shot": [cells[0], None, cells[1]], "label": [["red"], ["none"], ["lime"]]}
    table = datasets.Dataset.from_dict(rows)
    table.cast_column("shot", datasets.Image(decode=False)).to_parquet(photos / "train.parquet")
    config.data.images, config.data.streaming = f"hf://{photos}:train", streaming
    config.data.reference_column = "label"
    source = load(config)
    drawn = [source.nth(k, "salt") for k in range(2)]
    assert [e.reference for e in sorted(drawn, key=lambda e: colours([e]))] == [["red"], ["lime"]]
    config.data.reference_column = "answer"
    message = r"reference_column is 'answer', but data\.images .* has columns \['shot', 'label'\]"
    with pytest.raises(ConfigError, match=message):
        load(config).nth(0, "salt")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("images", ["{photos}", "{photos}/a.tar", "scenes"])
def test_pictures_without_columns_have_no_reference(
    config: Config, photos: Path, images: str, streaming: bool
) -> None:
    save(photos / "a.png")
    save_tar(photos / "a.tar", {"b.png": solid("red")})
    config.data.images, config.data.streaming = images.format(photos=photos), streaming
    config.data.reference_column = "label"
    with pytest.raises(ConfigError, match=r"but data\.images .* has no columns: leave it out"):
        load(config).nth(0, "salt")


@pytest.mark.usefixtures("quiet_hub")
@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_may_hold_places_instead_of_bytes(
    config: Config, photos: Path, streaming: bool
) -> None:
    """Files beside it, or, as when streaming from the hub, addresses that fsspec opens."""
    save(photos / "a.png")
    config.data.images, config.data.streaming = f"hf://{photos}", streaming
    assert colours([load(config).nth(0, "salt")]) == [0]
    place = f"file://{photos}/a.png"
    assert RowRef("set", 0, "image", content={"bytes": None, "path": place}).read()
    with pytest.raises(Unusable, match="unreadable file"):
        RowRef("set", 0, "image", content={"bytes": None, "path": f"{place}.none"}).read()


@pytest.mark.usefixtures("quiet_hub")
@pytest.mark.parametrize(
    ("name", "column", "told"),
    [
        ("{here}", "", r"columns \['n'\], none of pictures: name one with data.image_column"),
        ("{here}", "shot", r"columns \['n'\], no 'shot'"),
        ("{here}:test", "", "cannot be loaded"),
        ("/nowhere", "", "cannot be loaded"),
        ("nobody/nothing", "", "cannot be loaded"),
    ],
)
def test_datasets_that_cannot_be_used_are_one_line(
    config: Config, photos: Path, name: str, column: str, told: str
) -> None:
    photos.mkdir()
    datasets.Dataset.from_dict({"n": [0, 1]}).to_parquet(photos / "train.parquet")
    config.data.images = "hf://" + name.format(here=photos)
    config.data.image_column = column
    with pytest.raises(ConfigError, match=told) as raised:
        load(config)
    assert "\n" not in str(raised.value)


def test_a_photo_is_named_by_its_bytes() -> None:
    assert FileRef(os.fsdecode(b"caf\xe9\n.png")).name == "caf\\xe9\\n.png"
