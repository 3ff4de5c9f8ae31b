"""The command `benchmark`: a model's pictures and answers as official scorers read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.progress import track

from viceversa.cli.console import console
from viceversa.cli.shares import add, end_line, is_first, made_rows, share
from viceversa.config import INF, ConfigError, check_folder, check_number

if TYPE_CHECKING:
    from viceversa.api.model import Model
    from viceversa.benchmarks.layouts import Item
    from viceversa.benchmarks.pope import Question

#: Prompts or questions that are worked on together, and then written.
AT_ONCE = 8

Name = Annotated[Literal["geneval", "t2i-compbench", "dpg", "pope"], tyro.conf.Positional]
Models = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]


def benchmark(
    name: Name,
    prompts: Path,
    model: Models = (),
    output: Path = Path("benchmark"),
    images: Path | None = None,
    n: int = 0,
    temperature: float = 1.0,
    guidance: float | None = None,
    seed: int = 0,
) -> int:
    """Draw a benchmark's prompts as its official scorer reads them; POPE is scored here.

    Writes a folder a model in OUTPUT, and says which command of the scorer comes next. No prompts
    are shipped: --prompts is the benchmark's own file, or DPG-Bench's folder.

    Try:
        viceversa benchmark geneval --prompts evaluation_metadata.jsonl
        viceversa benchmark t2i-compbench --prompts color_val.txt --model base --model trained
        viceversa benchmark dpg --prompts dpg_bench/prompts --guidance 5
        viceversa benchmark pope --prompts coco_pope_random.json --images val2014

    Args:
        name: The benchmark.
        prompts: GenEval and POPE: JSON lines. T2I-CompBench: a category's text file. DPG-Bench: a
            folder of text files.
        model: `builtin` (where none is given), a folder in Hugging Face layout, a checkpoint, or a
            hub name; give it again for more models, with the same seeds.
        output: The folder of the models' folders.
        images: POPE: the folder of its pictures.
        n: Pictures a prompt (default: as the benchmark asks).
        temperature: 0 picks the likeliest token.
        guidance: Classifier-free guidance (default: the model's own setting, or none).
        seed: The same seed draws the same pictures. POPE has none: it is greedy.
    """
    check_number("--temperature", temperature, 0, INF)
    check_number("--seed", seed, 0, 2**32 - 1)
    if guidance is not None:
        check_number("--guidance", guidance, 0, INF)
    folder, models = check_folder(str(output), "--output"), model or ("builtin",)
    if name == "pope":
        if (n, temperature, guidance, seed) != (0, 1.0, None, 0):
            left = "--n, --temperature, --guidance and --seed"
            raise ConfigError(f"pope answers greedily: leave out {left}")
        if images is None:
            raise ConfigError("pope asks about pictures: name their folder with --images")
        return _pope(prompts, models, folder, images)
    if images is not None:
        raise ConfigError(f"--images is {str(images)!r}; {name} reads no pictures: leave it out")
    options = {"temperature": temperature, "guidance": guidance, "seed": seed}
    return _pictures(name, prompts, models, folder, n, options)


def _pictures(
    name: str, prompts: Path, models: Sequence[str], output: Path, n: int, options: dict[str, Any]
) -> int:
    """Draw the prompts with each model, and name the scorer's commands."""
    from viceversa.benchmarks.layouts import LAYOUTS, digest, write

    layout = LAYOUTS[name]
    n = n or layout.n
    check_number("--n", n, 1, layout.most)
    items = layout.read(prompts, n)
    recipe = {"benchmark": name, "prompts": digest(items), "n": n, **options}
    after = []
    for model, folder in _claimed(models, output, recipe).items():

        def make(drawer: Model, start: int, some: Sequence[Item], into: Path = folder) -> None:
            drawn = drawer.draw([i.prompt for i in some], n, first_id=start, **options)
            for item, pictures in zip(some, drawn, strict=True):
                write(into, item, pictures)

        todo = share([item.made(folder) for item in items], AT_ONCE)
        _work(model, folder, items, todo, make, _check_prompts)
        left = sum(not item.made(folder) for item in items)
        after += [f"wrote  {folder}{_elsewhere(left)}", *layout.after(folder.resolve(), prompts, n)]
    _say(after)
    return 0


def _pope(prompts: Path, models: Sequence[str], output: Path, images: Path) -> int:
    """Ask each model, and measure its answers once all are there."""
    from viceversa.benchmarks import pope
    from viceversa.benchmarks.folders import put

    questions = pope.read_questions(prompts, images)
    asked = hashlib.sha256(repr(questions).encode()).hexdigest()[:16]
    recipe = {"benchmark": "pope", "prompts": asked, "images": str(images.resolve())}
    after = []
    for model, folder in _claimed(models, output, recipe).items():
        record = folder / "answers.jsonl"

        def make(asker: Model, start: int, some: Sequence[Question], into: Path = record) -> None:
            answers = pope.ask(asker.adapter, some, images)
            rows = [_row(start + i, some[i], answers[i]) for i in range(len(some))]
            add(into, "".join(rows))

        end_line(record)
        there = _answers(record)
        todo = share([i in there for i in range(len(questions))], AT_ONCE)
        _work(model, folder, questions, todo, make)
        there = _answers(record)
        left = sum(i not in there for i in range(len(questions)))
        after.append(f"wrote  {folder}{_elsewhere(left)}")
        if not left:
            answers = [there[i] for i in range(len(questions))]
            found = pope.scores([q.label for q in questions], answers)
            rows = [_row(i, q, answers[i]) for i, q in enumerate(questions)]
            put(folder, record.name, "".join(rows).encode())  # in the order of the questions
            put(folder, "scores.json", (json.dumps(found, indent=1) + "\n").encode())
            shares = ("accuracy", "precision", "recall", "f1", "yes_rate")
            after.append(", ".join(f"{key} {found[key]:.4f}" for key in shares))
    after.append(
        "no command is left: these are the figures of evaluate.py in github.com/AoiDragon/POPE "
        "with ans_file answers.jsonl and label_file the questions"
    )
    _say(after)
    return 0


def _row(number: int, asked: Question, answer: str) -> str:
    row = {
        "number": number,
        "question_id": asked.question_id,
        "image": asked.image,
        "question": asked.text,
        "answer": answer,
        "label": asked.label,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _answers(record: Path) -> dict[int, str]:
    """Return the answers in a record by number."""
    return {number: row["answer"] for number, row in made_rows(record, "answer").items()}


def _claimed(models: Sequence[str], output: Path, recipe: dict[str, Any]) -> dict[str, Path]:
    """Return each model's folder, the recipe in it. Raises ConfigError before any work."""
    from viceversa.benchmarks.folders import claim, folder_names, place_of
    from viceversa.models import supported_type
    from viceversa.models.lora import base_of

    names = folder_names(models)
    for model in models:
        base = base_of(model) or model
        if base != "builtin":
            supported_type(base, model)
    for model, name in names.items():
        claim(output / name, {**recipe, "model": place_of(model)})
    return {model: output / name for model, name in names.items()}


def _work(
    model: str,
    folder: Path,
    items: Sequence[Any],
    todo: Sequence[range],
    make: Callable[[Model, int, Sequence[Any]], None],
    check: Callable[[Model, Sequence[Any]], None] | None = None,
) -> None:
    """Load a model and make stretch after stretch of inputs, where any is left."""
    if not todo:
        return
    from viceversa.api.model import load

    loaded = load(model)
    if check is not None:
        check(loaded, items)
    for some in track(todo, folder.name, console=console, disable=not is_first(), transient=True):
        make(loaded, some.start, items[some.start : some.stop])


def _check_prompts(model: Model, items: Sequence[Item]) -> None:
    """Raise ConfigError, naming file and line, for a prompt that the model cannot draw."""
    from viceversa.data.prompts import Row, cleaned

    limits = model.adapter.text_limits("")
    for item in items:
        cleaned(Row(item.place, item.prompt), limits)


def _elsewhere(left: int) -> str:
    return f" ({left} are still with other processes)" if left else ""


def _say(lines: Sequence[str]) -> None:
    if is_first():
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)
