"""The commands `draw`, `caption` and `score`: a model's outputs, many at a time, without training.

What is there already is not made again. Under torchrun each process takes its share of the inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from viceversa.benchmarks.folders import json_lines, place_of, put_picture
from viceversa.cli.shares import fill, say
from viceversa.config import INF, ConfigError, DataConfig, check_file, check_folder, check_number

if TYPE_CHECKING:
    from viceversa.api.model import Model
    from viceversa.data.places import Ref
    from viceversa.types import Note

#: Inputs that are named of those that are left out for one reason.
NAMES_SHOWN = 5

Places = Annotated[tuple[str, ...], tyro.conf.Positional]


def draw(
    prompts: Places,
    model: str = "builtin",
    output: Path = Path("drawn"),
    n: int = 1,
    best_of: int = 0,
    temperature: float = 1.0,
    guidance: float | None = None,
    seed: int = 0,
) -> int:
    """Draw pictures of prompts, in words or in files.

    Writes OUTPUT/00000-0.png and so on, and a line a prompt in OUTPUT/pictures.jsonl.

    Try:
        viceversa draw "a red circle and a blue square" --n 4
        viceversa draw prompts.txt --best-of 8 --output drawn
        viceversa draw prompts.txt --model runs/latest/checkpoint-240

    Args:
        prompts: Prompts, files of them (.txt, .jsonl, .csv, .parquet) or `hf://owner/name`.
        model: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name.
        output: The folder of the pictures.
        n: Pictures a prompt.
        best_of: Draw so many and keep the `n` best by the dual reward, the best first.
        temperature: 0 picks the likeliest token.
        guidance: Classifier-free guidance (default: the model's own setting, or none).
        seed: The same seed draws the same pictures.
    """
    check_number("--n", n, 1, INF)
    check_number("--best-of", best_of, 0, INF)
    check_number("--temperature", temperature, 0, INF)
    check_number("--seed", seed, 0, INF)
    if guidance is not None:
        check_number("--guidance", guidance, 0, INF)
    folder = check_folder(str(output), "--output")
    texts = [text for given in prompts for text in _prompts(given)]
    options = {"best_of": best_of, "temperature": temperature, "guidance": guidance, "seed": seed}
    recipe = {"model": place_of(model), "n": n, **options}

    def make(drawer: Model, some: list[int]) -> list[dict[str, Any]]:
        drawn = drawer.draw([texts[i] for i in some], n, ids=some, **options)
        files = [[f"{i:05d}-{k}.png" for k in range(n)] for i in some]
        for names, pictures in zip(files, drawn, strict=True):
            for name, picture in zip(names, pictures, strict=True):
                put_picture(folder, name, picture)
        return [{"files": names} for names in files]

    def check(drawer: Model) -> None:
        drawer.cleaned(texts)

    record = folder / "pictures.jsonl"
    fill(record, texts, "prompt", recipe, model, make, check)
    say(f"wrote  {record}")
    return 0


def caption(
    images: Places,
    model: str = "builtin",
    output: Path = Path("captions.jsonl"),
    best_of: int = 1,
    max_tokens: int = 64,
    instruction: str = "",
    seed: int = 0,
) -> int:
    """Caption pictures: files, or folders of them; a line a picture in OUTPUT.

    Try:
        viceversa caption photo.png
        viceversa caption photos/ --best-of 8 --output captions.jsonl

    Args:
        images: Pictures, or folders of pictures or of .tar shards.
        model: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name.
        output: The file of captions.
        best_of: Write so many and keep the best by the dual reward; 1 takes the likeliest words.
        max_tokens: A caption that has not stopped by then is cut.
        instruction: Asks for the caption (default: the model's own).
        seed: The same seed writes the same captions.
    """
    check_number("--best-of", best_of, 1, INF)
    check_number("--max-tokens", max_tokens, 1, INF)
    check_number("--seed", seed, 0, INF)
    check_file(output, "--output")
    refs = [ref for given in images for ref in _pictures(given)]
    options = {"best_of": best_of, "max_tokens": max_tokens, "instruction": instruction}
    options |= {"seed": seed}

    def make(writer: Model, some: list[int]) -> list[dict[str, Any]]:
        written = writer.caption([refs[i] for i in some], ids=some, **options)
        return [{"caption": text} for text in written]

    recipe = {"model": place_of(model), **options}
    fill(output, [ref.name for ref in refs], "image", recipe, model, make)
    say(f"wrote  {output}")
    return 0


def score(
    pairs: Path,
    model: str = "builtin",
    output: Path = Path("scores.jsonl"),
    instruction: str = "",
) -> int:
    """Score pairs of text and picture in both directions, nats a token; a line a pair in OUTPUT.

    Try:
        viceversa score --pairs pairs.jsonl --output scores.jsonl

    Args:
        pairs: JSON lines with `text` and `image`, a path from the file's own folder.
        model: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name.
        output: The file of scores.
        instruction: Asks for the caption (default: the model's own).
    """
    check_file(output, "--output")
    given = pairs_of(pairs)

    def make(judge: Model, some: list[int]) -> list[dict[str, Any]]:
        rows = [given[i] for i in some]
        paths = [str(pairs.parent / row["image"]) for row in rows]
        found = judge.score([row["text"] for row in rows], paths, instruction=instruction)
        return [
            {
                "text": row["text"],
                "image": row["image"],
                "text_given_image": round(float(found.text_given_image[i]), 6),
                "image_given_text": round(float(found.image_given_text[i]), 6),
            }
            for i, row in enumerate(rows)
        ]

    keys = [json.dumps([row["text"], row["image"]]) for row in given]
    recipe = {"model": place_of(model), "instruction": instruction}
    fill(output, keys, "pair", recipe, model, make)
    say(f"wrote  {output}")
    return 0


def _prompts(given: str) -> list[str]:
    """Return the prompts of a file or dataset, or the one prompt that is given in words.

    Says what rows cannot be used. Raises ConfigError for a folder, and for a file that cannot be
    read or holds no prompt.
    """
    from viceversa.data.hub import PREFIX
    from viceversa.data.prompts import READERS, clean_prompts, read_prompts
    from viceversa.models.text import TextLimits

    if os.path.isdir(given):  # noqa: PTH112  # long text: Path raises
        raise ConfigError(
            f"prompts is {given!r}, a folder; name a file in it, or say the prompt in other words"
        )
    # what ends so is a file of prompts, also where there is none
    named = given.startswith(PREFIX) or given.lower().endswith(tuple(READERS))
    if not named and not os.path.isfile(given):  # noqa: PTH113
        return [given]
    texts: list[str] = []
    left: list[Note] = []
    for row in read_prompts(DataConfig(prompts=given)):
        ((good, notes),) = clean_prompts([row], TextLimits())  # one by one: repeats are drawn, too
        if good is not None:
            texts.append(row.text)
        else:
            left += notes
    _say_skipped(left)
    if not texts:
        raise ConfigError(f"prompts is {given!r}; it holds no prompt")
    return texts


def _pictures(given: str) -> list[Ref]:
    """Return the pictures at a place, in the order of their names; say what was left out."""
    from viceversa.data.given import picture_refs
    from viceversa.types import Note

    if not Path(given).exists():
        raise ConfigError(f"images is {given!r}; there is no such file or folder")
    found = list(picture_refs(given, DataConfig()))
    _say_skipped([ref for ref in found if isinstance(ref, Note)])
    refs = [ref for ref in found if not isinstance(ref, Note)]
    if not refs:
        raise ConfigError(f"images is {given!r}; it holds no picture")
    return refs


def _say_skipped(notes: Sequence[Note]) -> None:
    """Say what is left out: a line a kind, with some names."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(note.kind, []).append(note.name)
    for kind, names in kinds.items():
        more = ", …" * (len(names) > NAMES_SHOWN)
        say(f"skipped {len(names)}, {kind}: {', '.join(names[:NAMES_SHOWN])}{more}")


def pairs_of(path: Path) -> list[dict[str, str]]:
    """Read pairs. Raises ConfigError, naming the line, for one that is none."""
    found = []
    for place, _, row in json_lines(path, "--pairs"):
        if not all(isinstance(row.get(key), str) for key in ("text", "image")):
            raise ConfigError(f"{place}: it takes an object with text and image")
        found.append(row)
    if not found:
        raise ConfigError(f"--pairs is {str(path)!r}; it holds no pair")
    return found
