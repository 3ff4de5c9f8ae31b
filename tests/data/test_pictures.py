"""pictures: from bytes to pixels; every hostile file handled or named; streams."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

import hostile
from photographs import SIZE, colours, kinds, load, save
from viceversa.config import Config, ConfigError
from viceversa.data import pictures as images
from viceversa.data.pictures import open_picture, to_pixels
from viceversa.data.places import LARGEST_BYTES, printable
from viceversa.data.sources import Streamed

# folders


def test_images_from_a_folder(config: Config, photos: Path) -> None:
    """Sorted by path, subfolders included, text beside the pictures left alone."""
    save(photos / "b.JPG", colour="blue")
    save(photos / "a.png", colour="red")
    save(photos / "c" / "d.jpeg", (9, 40), "lime")
    (photos / "notes.txt").write_text("not a picture")
    source = load(config)
    assert source.notes == []
    assert [e.example_id for e in source.examples] == [0, 1, 2]
    assert colours(source.examples) == [0, 2, 1]
    for example in source.examples:
        assert (example.direction, example.text, example.reference) == ("i2t", None, None)
        assert example.pixels is not None
        assert example.pixels.shape == (3, SIZE, SIZE)
        assert example.pixels.dtype == torch.uint8


def test_missing_folder(config: Config) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load(config)


def test_folder_without_readable_images(config: Config, photos: Path) -> None:
    """An empty one, and one whose only picture is broken, which is counted."""
    photos.mkdir()
    with pytest.raises(ConfigError, match="none of its files could be read: nothing was found"):
        load(config)
    (photos / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="none of its files could be read: 1 empty file"):
        load(config)


@pytest.mark.parametrize("streaming", [False, True])
def test_hostile_files_are_named_and_counted(config: Config, photos: Path, streaming: bool) -> None:
    """Nothing crashes; each file is used, or skipped under the kind that its maker foresaw."""
    expected = hostile.write_pictures(photos)
    config.data.streaming = streaming
    source = load(config)
    used = [name for name, (_, said) in hostile.FILES.items() if not is_skip(said)]
    if streaming:
        drawn = [source.nth(k, "salt") for k in range(len(used))]
        source.nth(len(used), "salt")  # the second lap; the first is noted whole
    else:
        drawn = list(source.examples)
    assert len(drawn) == source.used == len(used)
    assert all(e.pixels is not None and e.pixels.shape == (3, SIZE, SIZE) for e in drawn)
    assert kinds(source) == Counter({k: n for k, n in expected.items() if k})
    for name, (_, said) in hostile.FILES.items():
        shown = printable(str(photos / os.fsdecode(name)))
        assert tuple(n.kind for n in source.notes if n.name == shown) == said, shown
    names = {n.name: n.kind for n in source.notes if n.skipped}
    assert {str(photos / n): k for n, k in hostile.OTHERS.items()}.items() <= names.items()


def is_skip(said: tuple[str, ...]) -> bool:
    changes = {"CMYK converted", "palette converted", "alpha on white", "16-bit scaled"}
    return bool(set(said) - changes - {"rotated by EXIF", "first frame"})


def test_files_without_permission(
    config: Config, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Skipped by name, and asked again the next time: the file is the same, its mode may not be."""
    save(photos / "a.png")
    save(photos / "b.png")
    honest = Path.read_bytes

    def guarded(self: Path) -> bytes:
        if self.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return honest(self)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert load(config).skipped == [(str(photos / "b.png"), "no permission")]
    monkeypatch.setattr(Path, "read_bytes", honest)
    assert load(config).skipped == []


def test_huge_files_are_not_read(config: Config, photos: Path) -> None:
    save(photos / "a.png")
    with (photos / "b.png").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)  # sparse
    assert load(config).skipped == [(str(photos / "b.png"), "file too large")]


def test_leniency_of_other_libraries_does_not_pass_half_a_picture(
    config: Config, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    save(photos / "a.png")
    (photos / "b.png").write_bytes(hostile.cut(hostile.encoded(hostile.noise(), "png")))
    assert load(config).skipped == [(str(photos / "b.png"), "truncated")]


def test_a_second_start_decodes_nothing(
    config: Config, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts are cached; a changed file is judged again."""
    save(photos / "a.png")
    (photos / "b.png").write_bytes(b"")
    first = load(config).notes
    opened: list[int] = []
    honest = images.open_picture
    monkeypatch.setattr(
        images, "open_picture", lambda content: (opened.append(len(content)), honest(content))[1]
    )
    assert load(config).notes == first
    assert opened == []
    save(photos / "b.png")
    assert load(config).skipped == []
    assert len(opened) == 1


@pytest.mark.parametrize("broken", ["a folder", "not a database"])
def test_a_broken_cache_is_no_cache(config: Config, photos: Path, broken: str) -> None:
    path = Path(config.data.cache_dir) / "pictures.sqlite"
    save(photos / "a.png")
    path.parent.mkdir()
    path.mkdir() if broken == "a folder" else path.write_text("x" * 4096)
    assert load(config).used == 1


def test_a_picture_that_vanishes_is_replaced_by_the_next(config: Config, photos: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "lime"), ("c.png", "blue")):
        save(photos / name, colour=colour)
    source = load(config)
    (photos / "b.png").unlink()
    assert [e.example_id for e in source.examples] == [0, 2, 2]
    assert source.skipped == [(str(photos / "b.png"), "unreadable file")]
    shutil.rmtree(photos)
    with pytest.raises(ConfigError, match="none of the pictures can be read any longer"):
        source.examples[0]


# pixels


@pytest.mark.parametrize("wide", [True, False])
def test_crop_keeps_the_centre(wide: bool) -> None:
    """Red, lime and blue thirds of 16 pixels each: exactly the lime one is left, unresized."""
    pixels = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    for k in range(3):
        pixels[:, k * SIZE : (k + 1) * SIZE, k] = 255
    image = Image.fromarray(pixels if wide else pixels.transpose(1, 0, 2).copy())
    found = to_pixels(image, SIZE, "center")
    assert found[1].eq(255).all()
    assert found[[0, 2]].eq(0).all()


def test_pad_keeps_everything_between_white_bars(config: Config, photos: Path) -> None:
    save(photos / "a.png", (4 * SIZE, 2 * SIZE), "red")
    config.data.crop = "pad"
    pixels = load(config).examples[0].pixels
    assert pixels is not None
    assert pixels[:, : SIZE // 4 - 1].eq(255).all()
    assert pixels[0, SIZE // 2].eq(255).all()
    assert pixels[1:, SIZE // 2].eq(0).all()
    assert pixels[:, -SIZE // 4 + 1 :].eq(255).all()


def test_reading_keeps_orientation() -> None:
    """Rows stay rows: a red top half over a blue bottom half, doubled in size."""
    found = pixels_of(hostile.encoded(Image.fromarray(halves(8)), "png"))
    assert found[0, :4].eq(255).all()
    assert found[2, :4].eq(0).all()
    assert found[2, -4:].eq(255).all()


def halves(side: int) -> np.ndarray:
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[: side // 2, :, 0] = pixels[side // 2 :, :, 2] = 255
    return pixels


def pixels_of(content: bytes) -> torch.Tensor:
    return to_pixels(open_picture(content)[0], SIZE, "center")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """A white picture is white in every mode."""
    white = Image.new("RGB", (20, 20), "white")
    if mode == "I;16":
        white = Image.fromarray(np.full((20, 20), 65535, np.uint16))
    elif mode == "LAB":
        white = Image.new("LAB", (20, 20), (255, 128, 128))
    else:
        white = white.convert(mode)
    kind = "tiff" if mode in ("CMYK", "LAB") else "png"
    assert pixels_of(hostile.encoded(white, kind)).ge(254).all()


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey16.pgm"])
def test_16_bits_are_scaled_and_not_clipped(name: str) -> None:
    found, _ = open_picture(hostile.FILES[name][0]())
    ramp = np.linspace(0, 255, hostile.SIDE**2).reshape(hostile.SIDE, -1)
    assert np.abs(np.asarray(found)[..., 0] - ramp).max() <= 1


def test_inverted_16_bit_tiff() -> None:
    """WhiteIsZero: the largest value is black."""
    content = hostile.encoded(
        Image.fromarray(np.full((20, 20), 65535, np.uint16)), "tiff", tiffinfo={262: 0}
    )
    assert pixels_of(content).eq(0).all()


def test_transparent_parts_are_white() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 10))
    found = pixels_of(hostile.encoded(image, "png"))
    assert found[:, 0].eq(255).all()
    assert found[:, -1].tolist() == [[255] * SIZE, [0] * SIZE, [0] * SIZE]


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_the_first_frame_is_taken(kind: str) -> None:
    found = pixels_of(hostile.animated(kind)).float().mean((1, 2))
    assert found[0] > 250
    assert found[1:].max() < 5


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(kind: str, orientation: int) -> None:
    """As Pillow's own exif_transpose turns them, which this does not use."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = hostile.encoded(Image.fromarray(halves(SIZE)), kind, exif=exif.tobytes())
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert (pixels_of(content).permute(1, 2, 0).numpy() == expected).all()


# streaming


def test_a_stream_of_bad_pictures_alone_is_refused(config: Config, photos: Path) -> None:
    photos.mkdir()
    (photos / "a.png").write_bytes(b"")
    config.data.streaming = True
    source = load(config)
    with pytest.raises(ConfigError, match="nothing to use: 1 empty file"):
        source.nth(0, "salt")


def test_a_stream_shuffles_anew_each_lap(config: Config, photos: Path) -> None:
    for k in range(6):
        save(photos / f"{k}.png", colour=f"rgb({40 * k},0,0)")
    config.data.streaming = True
    source = load(config)
    assert isinstance(source, Streamed)
    order = [source.nth(k, "salt").example_id for k in range(18)]
    laps = [order[k : k + 6] for k in (0, 6, 12)]
    assert all(sorted(lap) == sorted(laps[0]) for lap in laps)
    assert len(set(laps[0])) == 6
    assert laps[0] != laps[1] != laps[2]
