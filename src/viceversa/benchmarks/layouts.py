"""Pictures of a benchmark's prompts, in the folder and under the names that its scorer reads.

Each layout was checked against the scorer's own code at the commit that it names.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from viceversa.benchmarks.folders import json_lines, put, put_picture, text_of, without_tail
from viceversa.config import INF, ConfigError

#: Bytes of a file's name on most file systems.
LONGEST = 255


@dataclass(frozen=True)
class Item:
    """One prompt, and what is made of it."""

    prompt: str
    place: str
    """Where it was read: file and line."""
    files: tuple[str, ...]
    """The pictures' files, from the model's folder."""
    notes: tuple[str, str] | None = None
    """A text file beside the pictures, and its content."""

    def made(self, folder: Path) -> bool:
        """Tell whether all of it is in a model's folder."""
        names = [*self.files, *(self.notes[:1] if self.notes else ())]
        return all((folder / name).is_file() for name in names)


@dataclass(frozen=True)
class Layout:
    """How a benchmark is read and written."""

    n: int
    """Pictures a prompt, as the benchmark asks."""
    most: float
    """Pictures a prompt that its scorer can read."""
    read: Callable[[Path, int], list[Item]]
    """From the prompts and pictures a prompt; raises ConfigError for what cannot be."""
    after: Callable[[Path, Path, int], list[str]]
    """The scorer's commands, of a model's folder, the prompts and pictures a prompt."""


def digest(items: Sequence[Item]) -> str:
    """Return what tells these prompts from others."""
    told = json.dumps([[i.prompt, i.files, i.notes] for i in items])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def write(folder: Path, item: Item, pictures: Sequence[Image.Image]) -> None:
    """Write a prompt's pictures, each in its file, or all as a grid where there is one file."""
    if item.notes:
        put(folder, item.notes[0], item.notes[1].encode())
    shown = pictures if len(item.files) == len(pictures) else [grid(pictures)]
    for name, picture in zip(item.files, shown, strict=True):
        put_picture(folder, name, picture)


def grid(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put up to four pictures in a square: left to right, then down."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for k, picture in enumerate(pictures):
        whole.paste(picture, (k % 2 * width, k // 2 * height))
    return whole


def geneval(path: Path, n: int) -> list[Item]:
    """Read GenEval's JSON lines: each becomes `00000/metadata.jsonl` and `00000/samples/0000.png`.

    github.com/djghosh13/geneval, evaluation/evaluate_images.py at 16f1681: it takes the folders
    whose names are digits, reads metadata.jsonl as one JSON object, and of `samples` the files that
    are digits and .png; of what is to be included and excluded it takes class, count and position.
    evaluation/summary_scores.py at 75c43cb reads what that writes, the metadata and tag among it.
    README.md at af4902f: the metadata is the prompt's line, four pictures.
    """
    items = []
    for number, (place, line, row) in enumerate(json_lines(path)):
        _check_metadata(place, row)
        folder = f"{number:05d}"
        files = tuple(f"{folder}/samples/{k:04d}.png" for k in range(n))
        items.append(Item(row["prompt"], place, files, (f"{folder}/metadata.jsonl", line + "\n")))
    return _some(items, path)


def _check_metadata(place: str, row: dict[str, Any]) -> None:
    """Raise ConfigError where the scorer would miss something in a line."""
    for key, kind in {"tag": str, "include": list, "prompt": str}.items():
        if not isinstance(row.get(key), kind):
            takes = "text" if kind is str else "a list"
            raise ConfigError(f"{place}: {key} is {row.get(key)!r}; it takes {takes}")
    for key in ("include", "exclude"):
        asked = row.get(key, [])
        if not isinstance(asked, list):
            raise ConfigError(f"{place}: {key} is {asked!r}; it takes a list")
        for number, one in enumerate(asked):
            _check_asked(f"{place}: {key} holds {one!r}; it takes", one, number)


def _check_asked(trouble: str, asked: Any, number: int) -> None:
    """Raise ConfigError where the scorer cannot take class, count and position from an entry.

    `number` entries come before it, which a position may refer to.
    """
    known = asked if isinstance(asked, dict) else {}
    if not isinstance(known.get("class"), str) or type(known.get("count")) is not int:
        raise ConfigError(f"{trouble} class, a text, and count, a whole number")
    match known.get("position", ["", -1]):
        case [str(), int(place)] if place < number:
            return
    raise ConfigError(f"{trouble} as position a relation and the place of an earlier entry")


def _after_geneval(folder: Path, prompts: Path, n: int) -> list[str]:
    results = shlex.quote(str(folder / "results.jsonl"))
    return [
        "in github.com/djghosh13/geneval, with its detector:",
        f"python evaluation/evaluate_images.py {shlex.quote(str(folder))} --outfile {results} "
        "--model-path OBJECT_DETECTOR_FOLDER",
        f"python evaluation/summary_scores.py {results}",
    ]


def t2i_compbench(path: Path, n: int) -> list[Item]:
    """Read a category of T2I-CompBench: picture `i` of all becomes `samples/{prompt}_{000000}.png`.

    github.com/Karine-Huang/T2I-CompBench. GORS_finetune/inference_eval.py at e1bfb0c: a line is a
    prompt up to its first tab, ten pictures each, and the number goes on from prompt to prompt.
    BLIPvqa_eval/BLIP_vqa.py at bfe6300, CLIPScore_eval/CLIP_similarity.py at c6f6b14 and
    UniDet_eval/2D_spatial_eval.py at 6d58bed take every file of `samples`, the prompt up to the
    first `_` of its name, the number after the last. So do UniDet_eval/3D_spatial_eval.py at
    ed5367e and numeracy_eval.py at 01835fe, and their loaders take the number after the first `_`:
    experts/obj_detection/generate_dataset.py at 7710d05, experts/obj_detection/
    generate_dataset_3d.py and experts/depth/generate_dataset.py at ed5367e. The 3D script finds its
    own depth maps only by a folder's path that does not end in `/`. 3_in_1_eval/3_in_1.py at
    5c4ae15 takes ten pictures for each line of examples/dataset/complex_val.txt.
    """
    items = []
    for number, line in enumerate(without_tail(text_of(path).splitlines()), start=1):
        prompt, place = line.split("\t")[0], f"{path}, line {number}"
        first = (number - 1) * n
        names = tuple(f"{prompt}_{k:06d}.png" for k in range(first, first + n))
        _check_name(prompt, place, names[-1])
        items.append(Item(prompt, place, tuple(f"samples/{name}" for name in names)))
    return _some(items, path)


def _check_name(prompt: str, place: str, name: str) -> None:
    """Raise ConfigError for a prompt that the scorer cannot read back from a file's name."""
    if not prompt.strip():
        raise ConfigError(f"{place} is empty; delete the line")
    for sign in ("/", "\0", "_", ".png"):
        if sign in prompt:
            raise ConfigError(
                f"{place} is {prompt!r}; the scorer reads prompts from the names of files, which "
                f"cannot hold {sign!r}: reword it"
            )
    if len(name.encode()) > LONGEST:
        raise ConfigError(
            f"{place} is {prompt!r}; its file's name would have {len(name.encode())} bytes, and "
            f"{LONGEST} is the most: shorten it"
        )


def _after_t2i_compbench(folder: Path, prompts: Path, n: int) -> list[str]:
    """Name the commands for the category that the prompts' file is called after."""
    at = shlex.quote(str(folder))
    blip = f"(cd BLIPvqa_eval && python BLIP_vqa.py --out_dir={at})"
    flat, deep, count = (
        f"(cd UniDet_eval && python {name}.py --outpath={at})"
        for name in ("2D_spatial_eval", "3D_spatial_eval", "numeracy_eval")
    )
    clip = f"python CLIPScore_eval/CLIP_similarity.py --outpath={at}"
    whole = [
        blip,
        f"(cd UniDet_eval && python 2D_spatial_eval.py --outpath={at} --complex True)",
        f"{clip} --complex True",
        f"(cd 3_in_1_eval && python 3_in_1.py --outpath={at})",
    ]
    kinds = {
        "color": [blip],
        "shape": [blip],
        "texture": [blip],
        "non_spatial": [clip],
        "3d_spatial": [deep],
        "spatial": [flat],
        "numeracy": [count],
        "complex": whole,
    }
    stem = prompts.stem.lower()
    known = next((kinds[kind] for kind in kinds if stem.startswith(kind)), None)
    every = [f"{kind}: {command}" for kind, commands in kinds.items() for command in commands]
    return ["in github.com/Karine-Huang/T2I-CompBench:", *(known or every)]


def dpg(path: Path, n: int) -> list[Item]:
    """Read DPG-Bench's prompts: those in `name.txt` become one picture, `grids/name.png`.

    github.com/TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py at 1cf31ce: it takes every file
    of the folder, finds its questions by the name up to the first dot, and cuts from the picture up
    to four squares of the resolution: upper left, upper right, lower left, lower right.
    dpg_bench/dist_eval.sh at 1cf31ce: it takes folder and resolution, and from the environment
    PIC_NUM and PROCESSES, two or more. README.md at 3c228f1: four pictures a prompt, under the name
    of the prompt's file.
    """
    if not path.is_dir():
        raise ConfigError(f"--prompts is {str(path)!r}; there is no such folder")
    items = []
    for file in sorted(path.glob("*.txt")):
        prompt = text_of(file).strip()
        if not prompt:
            raise ConfigError(f"{file} is empty; write its prompt, or delete it")
        if "." in file.stem:
            raise ConfigError(f"{file}: the scorer reads names up to the first dot: rename it")
        items.append(Item(prompt, str(file), (f"grids/{file.stem}.png",)))
    if not items:
        raise ConfigError(f"--prompts is {str(path)!r}; the folder holds no .txt")
    return items


def _after_dpg(folder: Path, prompts: Path, n: int) -> list[str]:
    grids = folder / "grids"
    some = min(grids.glob("*.png"), default=None)
    side = "RESOLUTION"
    if some is not None:
        with Image.open(some) as picture:
            side = str(picture.width if n == 1 else picture.width // 2)
    return [
        "in github.com/TencentQQGYLab/ELLA, with one process a GPU, on two or more:",
        f"PIC_NUM={n} PROCESSES=8 bash dpg_bench/dist_eval.sh {shlex.quote(str(grids))} {side}",
    ]


def _some(items: list[Item], path: Path) -> list[Item]:
    if not items:
        raise ConfigError(f"--prompts is {str(path)!r}; it holds no prompt")
    return items


LAYOUTS = {
    "geneval": Layout(4, INF, geneval, _after_geneval),
    "t2i-compbench": Layout(10, INF, t2i_compbench, _after_t2i_compbench),
    "dpg": Layout(4, 4, dpg, _after_dpg),
}
