"""The commands `draw`, `caption` and `score`: a model's outputs, many at a time, without training.

What is there already is not made again. Under torchrun each process takes its share of the inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.progress import track

from viceversa.benchmarks.folders import differing, place_of, text_of
from viceversa.cli.console import console
from viceversa.cli.shares import add, end_line, is_first, made_rows, share
from viceversa.config import INF, ConfigError, DataConfig, check_file, check_folder, check_number

if TYPE_CHECKING:
    from viceversa.data.places import Ref

#: Inputs that are worked on together, and then written.
AT_ONCE = 8

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
    from viceversa.api.model import load

    check_number("--n", n, 1, INF)
    check_number("--best-of", best_of, 0, INF)
    check_number("--temperature", temperature, 0, INF)
    check_number("--seed", seed, 0, INF)
    if guidance is not None:
        check_number("--guidance", guidance, 0, INF)
    folder = check_folder(str(output), "--output")
    texts = [text for given in prompts for text in _prompts(given)]
    record = folder / "pictures.jsonl"
    recipe = {"model": place_of(model), "n": n, "best_of": best_of, "temperature": temperature}
    recipe |= {"guidance": guidance, "seed": seed}
    todo = _todo(texts, record, "prompt", recipe)
    if not todo:
        return _finished(record)
    drawer = load(model)
    drawer.cleaned(texts)  # all of them, before any work
    folder.mkdir(parents=True, exist_ok=True)

    def make(first: int, some: Sequence[str]) -> list[dict[str, Any]]:
        drawn = drawer.draw(
            list(some),
            n,
            best_of=best_of,
            temperature=temperature,
            guidance=guidance,
            seed=seed,
            first_id=first,
        )
        rows = []
        for number, (text, pictures) in enumerate(zip(some, drawn, strict=True), start=first):
            files = [f"{number:05d}-{k}.png" for k in range(len(pictures))]
            for name, picture in zip(files, pictures, strict=True):
                picture.save(folder / f".{name}", "PNG")
                (folder / f".{name}").replace(folder / name)
            rows.append({"number": number, "prompt": text, "files": files, "recipe": recipe})
        return rows

    return _write(texts, todo, record, make)


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
    from viceversa.api.model import load

    check_number("--best-of", best_of, 1, INF)
    check_number("--max-tokens", max_tokens, 1, INF)
    check_number("--seed", seed, 0, INF)
    check_file(output, "--output")
    refs = [ref for given in images for ref in _pictures(given)]
    paths = [ref.name for ref in refs]
    recipe = {"model": place_of(model), "best_of": best_of, "max_tokens": max_tokens}
    recipe |= {"instruction": instruction, "seed": seed}
    todo = _todo(paths, output, "image", recipe)
    if not todo:
        return _finished(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    writer = load(model)

    def make(first: int, some: Sequence[str]) -> list[dict[str, Any]]:
        texts = writer.caption(
            refs[first : first + len(some)],
            best_of=best_of,
            max_tokens=max_tokens,
            instruction=instruction,
            seed=seed,
            first_id=first,
        )
        rows = zip(range(first, first + len(some)), some, texts, strict=True)
        return [
            {"number": i, "image": path, "caption": text, "recipe": recipe}
            for i, path, text in rows
        ]

    return _write(paths, todo, output, make)


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
    from viceversa.api.model import load

    check_file(output, "--output")
    given = pairs_of(pairs)
    keys = [json.dumps([row["text"], row["image"]]) for row in given]
    recipe = {"model": place_of(model), "instruction": instruction}
    todo = _todo(keys, output, "pair", recipe)
    if not todo:
        return _finished(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    judge = load(model)

    def make(first: int, some: Sequence[str]) -> list[dict[str, Any]]:
        texts, images = zip(*(json.loads(key) for key in some), strict=True)
        paths = [str(pairs.parent / name) for name in images]
        found = judge.score(list(texts), paths, instruction=instruction)
        return [
            {
                "number": first + i,
                "pair": some[i],
                "text": texts[i],
                "image": images[i],
                "text_given_image": round(float(found.text_given_image[i]), 6),
                "image_given_text": round(float(found.image_given_text[i]), 6),
                "recipe": recipe,
            }
            for i in range(len(some))
        ]

    return _write(keys, todo, output, make)


def _prompts(given: str) -> list[str]:
    """Return the prompts of a file or dataset, or the one prompt that is given in words.

    Raises ConfigError for a folder, and for a file that cannot be read.
    """
    from viceversa.data.hub import PREFIX
    from viceversa.data.prompts import READERS, read_prompts

    if os.path.isdir(given):  # noqa: PTH112  # long text: Path raises
        raise ConfigError(
            f"prompts is {given!r}, a folder; name a file in it, or say the prompt in other words"
        )
    # what ends so is a file of prompts, also where there is none
    named = given.startswith(PREFIX) or given.lower().endswith(tuple(READERS))
    if not named and not os.path.isfile(given):  # noqa: PTH113
        return [given]
    texts = [row.text for row in read_prompts(DataConfig(prompts=given))]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _pictures(given: str) -> list[Ref]:
    """Return the pictures at a place, in the order of their names; say what was left out."""
    from viceversa.data.given import picture_refs
    from viceversa.types import Note

    if not Path(given).exists():
        raise ConfigError(f"images is {given!r}; there is no such file or folder")
    found = []
    for ref in picture_refs(given, DataConfig()):
        if not isinstance(ref, Note):
            found.append(ref)
        elif is_first():
            told = f"skipped {ref.name}: {ref.kind}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)
    if not found:
        raise ConfigError(f"images is {given!r}; it holds no picture")
    return found


def pairs_of(path: Path) -> list[dict[str, str]]:
    """Read pairs. Raises ConfigError, naming the line, for one that is none."""
    found = []
    for number, line in enumerate(text_of(path, "--pairs").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(
            isinstance(row.get(k), str) for k in ("text", "image")
        ):
            raise ConfigError(f"{path}, line {number}: it takes an object with text and image")
        found.append(row)
    if not found:
        raise ConfigError(f"--pairs is {str(path)!r}; it holds no pair")
    return found


def _todo(items: Sequence[str], record: Path, key: str, recipe: dict[str, Any]) -> list[range]:
    """Return the stretches of inputs that this process has to make.

    Those lack a line in `record`, or files that it names. Raises ConfigError where `record` holds
    outputs of other inputs, or by another recipe.
    """
    there = made_rows(record, key)
    for number, row in there.items():
        if number >= len(items) or items[number] != row[key]:
            raise ConfigError(
                f"{record} holds outputs of other inputs ({row[key]!r}): choose another --output"
            )
        if differ := differing(row.get("recipe", {}), recipe):
            raise ConfigError(
                f"{record} holds outputs by another recipe ({differ}): choose another --output"
            )
    whole = {
        number
        for number, row in there.items()
        if all((record.parent / name).is_file() for name in row.get("files", ()))
    }
    return share([i in whole for i in range(len(items))], AT_ONCE)


def _write(
    items: Sequence[str],
    todo: Sequence[range],
    record: Path,
    make: Callable[[int, Sequence[str]], list[dict[str, Any]]],
) -> int:
    """Make stretch after stretch of inputs, and add to `record` the lines that it lacks."""
    end_line(record)
    there = made_rows(record, "recipe")
    for some in track(todo, record.stem, console=console, disable=not is_first(), transient=True):
        made = make(some.start, items[some.start : some.stop])
        rows = [row for row in made if row["number"] not in there]
        add(record, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return _finished(record)


def _finished(record: Path) -> int:
    if is_first():
        console.print(f"wrote  {record}", highlight=False, soft_wrap=True)
    return 0
