"""Pictures from bytes to pixels: checked once, decoded when they are asked for.

Whatever cannot be used is named with the kind of trouble, and so is whatever is changed beyond its
size.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import PIL
import torch
from PIL import Image, ImageFile
from rich.console import Console
from rich.progress import track

from viceversa.data.cache import DiskCache
from viceversa.data.places import Ref
from viceversa.types import Note, Unusable

#: Not every format of Pillow: some run programs (EPS), some take any bytes for a picture (TGA).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000")
SMALLEST = 8  # pixels of the shorter side
THINNEST = 8  # longer side over shorter: the crop would leave an eighth
LARGEST_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
#: Part of the key of a verdict: a new rule or decoder checks again.
RULES = f"1/{PIL.__version__}/{SMALLEST}/{THINNEST}/{LARGEST_PIXELS}"
#: May be over by the next run, though the file is the same.
PASSING = {"no permission", "unreadable file", "broken link"}
_BATCH = 512  # pictures between writes of verdicts
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(content: bytes) -> tuple[Image.Image, list[str]]:
    """Decode a picture, upright and in RGB; name the kinds of change made. Raises Unusable."""
    if not content:
        raise Unusable("empty file")
    Image.init()
    try:
        image = Image.open(io.BytesIO(content), formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise Unusable("decompression bomb", str(error)) from error
    except Exception as error:  # hostile headers raise nearly anything
        raise Unusable("not a picture", f"{type(error).__name__}: {error}") from error
    _check_size(image)
    changes: list[str] = []
    try:
        deep = _deep(image)
        turned = image.getexif().get(0x0112) in _TURNS
        image.load()
        upright = _upright(image)
        if turned:
            changes.append("rotated by EXIF")
        changes += ["16-bit scaled"] if deep else []
        rgb, more = _to_rgb(upright)
        if _animated(image):
            more.append("first frame")
        return rgb, changes + more
    except Unusable:
        raise
    except Exception as error:  # as hostile as headers
        short = isinstance(error, EOFError) or "truncated" in str(error).lower()
        kind = "truncated" if short else "damaged"
        raise Unusable(kind, f"{type(error).__name__}: {error}") from error


def _check_size(image: Image.Image) -> None:
    """Raise Unusable for a picture of a bad size, by its header: a bomb is never decoded."""
    width, height = image.size
    if width * height > LARGEST_PIXELS:
        raise Unusable("decompression bomb", f"{width} x {height} pixels")
    if min(width, height) < SMALLEST:
        thin = max(width, height) >= SMALLEST
        raise Unusable("too thin" if thin else "too small", f"{width} x {height} pixels")
    if max(width, height) > THINNEST * min(width, height):
        raise Unusable("too thin", f"{width} x {height} pixels")


def _deep(image: Image.Image) -> bool:
    """Tell whether a channel has 16 bits. Pillow itself scales such colour, but clips such grey."""
    return (
        image.mode.startswith("I;16")
        or ";16" in str(getattr(image, "tile", ""))
        or _deep_pgm(image)
    )


def _deep_pgm(image: Image.Image) -> bool:
    return image.mode == "I" and image.format == "PPM"  # scaled to 16 bits by the reader


def _upright(image: Image.Image) -> Image.Image:
    # not ImageOps.exif_transpose, which writes the EXIF again and fails where that is broken;
    # TIFF has been turned by its reader, and says so
    turn = _TURNS.get(image.getexif().get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def _animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001
        return True  # later frames are broken, the first is not


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert to 8-bit RGB, transparent parts white; name the kinds of change. Raises Unusable."""
    if image.mode.startswith("I;16") or _deep_pgm(image):
        grey = (np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8)
        inverted = getattr(image, "tag_v2", {}).get(262) == 0  # TIFF's WhiteIsZero
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB"), []
    if image.mode in ("I", "F"):
        raise Unusable("32-bit pixels", "their range is unknown: convert to 8 or 16 bits")
    kinds = {"CMYK": ["CMYK converted"], "P": ["palette converted"], "PA": ["palette converted"]}
    changes = kinds.get(image.mode, [])
    if not image.has_transparency_data:
        return image.convert("RGB"), list(changes)
    rgba = image.convert("RGBA")
    low, high = rgba.getchannel("A").getextrema()
    if high == 0:
        raise Unusable("fully transparent")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB"), [*changes, *(["alpha on white"] if low != 255 else [])]


def to_pixels(image: Image.Image, size: int, crop: str) -> torch.Tensor:
    """Make an RGB picture square by `crop` (see config) and resize it: uint8 [3, size, size]."""
    if crop == "center":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
    else:
        side = max(image.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def read_picture(ref: Ref | Note, size: int, crop: str) -> tuple[torch.Tensor | None, list[Note]]:
    """Return pixels [3, size, size] uint8, None for a picture of no use, and what was done."""
    if isinstance(ref, Note):
        return None, [ref]
    with _quiet_pillow():
        image, notes = _attempt(ref)
    return None if image is None else to_pixels(image, size, crop), notes


def _attempt(ref: Ref) -> tuple[Image.Image | None, list[Note]]:
    try:
        image, changes = open_picture(ref.read())
    except Unusable as reason:
        return None, [Note(ref.name, reason.kind, True, reason.detail)]
    return image, [Note(ref.name, kind, False) for kind in changes]


def check_pictures(
    refs: Sequence[Ref | Note], cache: DiskCache, console: Console | None = None
) -> Iterator[tuple[Ref | Note, list[Note]]]:
    """Decode every picture once, or take an earlier run's verdict; yield each with its notes.

    A Note is its own verdict. See `usable`.
    """
    starts = range(0, len(refs), _BATCH)
    terminal = console is not None and console.is_terminal
    shown = track(
        starts, "checking pictures", console=console, transient=True, disable=not terminal
    )
    # threads: Pillow decodes without the interpreter's lock
    with ThreadPoolExecutor() as pool:
        for start in shown:
            some = refs[start : start + _BATCH]
            with _quiet_pillow():
                verdicts = _verdicts(some, cache, pool)
            yield from zip(some, verdicts, strict=True)


def _verdicts(
    refs: Sequence[Ref | Note], cache: DiskCache, pool: ThreadPoolExecutor
) -> list[list[Note]]:
    keys = [None if isinstance(r, Note) else _verdict_key(r) for r in refs]
    known = cache.get([k for k in keys if k is not None])
    fresh: dict[bytes, bytes] = {}

    def judge(ref: Ref | Note, key: bytes | None) -> list[Note]:
        if isinstance(ref, Note):
            return [ref]
        if key in known:
            return [Note(ref.name, *fields) for fields in json.loads(known[key])]
        notes = _attempt(ref)[1]
        if key is not None and not any(n.kind in PASSING for n in notes):
            fields = [(n.kind, n.skipped, n.detail) for n in notes]
            fresh[key] = json.dumps(fields).encode()
        return notes

    verdicts = list(pool.map(judge, refs, keys))
    cache.put(fresh)
    return verdicts


def _verdict_key(ref: Ref) -> bytes | None:
    identity = ref.identity()
    return hashlib.sha256(f"{RULES}/{identity}".encode()).digest() if identity else None


def usable(notes: Iterable[Note]) -> bool:
    """Tell whether an input with these notes can be used."""
    return not any(n.skipped for n in notes)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence warnings of what is named here, and let no half-decoded picture pass for whole."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_numpy(pixels: torch.Tensor) -> np.ndarray:
    """Turn uint8 [B, 3, H, W] into [B, H, W, 3] on the CPU."""
    return pixels.permute(0, 2, 3, 1).cpu().numpy()
