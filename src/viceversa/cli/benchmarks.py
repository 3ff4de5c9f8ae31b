"""The command `benchmark`: a model's pictures and answers as official scorers read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from viceversa.cli.shares import fill, rows_of, say, share
from viceversa.config import INF, ConfigError, check_folder, check_number

if TYPE_CHECKING:
    from viceversa.api.model import Model
    from viceversa.benchmarks.layouts import Item
    from viceversa.benchmarks.pope import Question

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
    from viceversa.benchmarks.layouts import LAYOUTS, digest

    layout = LAYOUTS[name]
    n = n or layout.n
    check_number("--n", n, 1, layout.most)
    items = layout.read(prompts, n)
    recipe = {"benchmark": name, "prompts": digest(items), "n": n, **options}
    after = []
    for model, folder in _claimed(models, output, recipe).items():
        _draw(model, folder, items, n, options)
        left = sum(not item.made(folder) for item in items)
        after += [_wrote(folder, left), *layout.after(folder.resolve(), prompts, n)]
    for line in after:
        say(line)
    return 0


def _draw(model: str, folder: Path, items: Sequence[Item], n: int, options: dict[str, Any]) -> None:
    """Draw what a model's folder lacks. Raises ConfigError, naming its line, for a bad prompt."""
    from viceversa.benchmarks.layouts import write
    from viceversa.data.prompts import Row, cleaned

    def make(drawer: Model, some: list[int]) -> None:
        drawn = drawer.draw([items[i].prompt for i in some], n, ids=some, **options)
        for i, pictures in zip(some, drawn, strict=True):
            write(folder, items[i], pictures)

    def check(drawer: Model) -> None:
        limits = drawer.adapter.text_limits("")
        for item in items:
            cleaned(Row(item.place, item.prompt), limits)

    made = {i for i, item in enumerate(items) if item.made(folder)}
    share(made, len(items), folder.name, model, make, check)


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
        _ask(model, record, questions, images)
        there = rows_of(record, "answer")
        after.append(_wrote(folder, len(questions) - len(there)))
        if len(there) < len(questions):
            continue
        rows = [there[i] for i in range(len(questions))]  # in the order of the questions
        found = pope.scores([q.label for q in questions], [row["answer"] for row in rows])
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        put(folder, record.name, lines.encode())
        put(folder, "scores.json", (json.dumps(found, indent=1) + "\n").encode())
        shares = ("accuracy", "precision", "recall", "f1", "yes_rate")
        after.append(", ".join(f"{key} {found[key]:.4f}" for key in shares))
    after.append(
        "no command is left: these are the figures of evaluate.py in github.com/AoiDragon/POPE "
        "with ans_file answers.jsonl and label_file the questions"
    )
    for line in after:
        say(line)
    return 0


def _ask(model: str, record: Path, questions: Sequence[Question], images: Path) -> None:
    """Add to a model's record the answers that it lacks."""
    from viceversa.benchmarks import pope
    from viceversa.benchmarks.asking import row_budget

    budget = row_budget()

    def make(asker: Model, some: list[int]) -> list[dict[str, Any]]:
        asked = [questions[i] for i in some]
        answers = pope.ask(asker.adapter, asked, images, budget)
        return [
            {"question_id": q.question_id, "image": q.image, "answer": answer, "label": q.label}
            for q, answer in zip(asked, answers, strict=True)
        ]

    fill(record, [q.text for q in questions], "question", {}, model, make)


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


def _wrote(folder: Path, left: int) -> str:
    return f"wrote  {folder}" + (f" ({left} are still with other processes)" if left else "")
