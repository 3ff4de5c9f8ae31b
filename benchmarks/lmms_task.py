"""A task for lmms-eval in POPE's format, of the built-in world; and its answers beside our own.

python benchmarks/lmms_task.py write scenes_pope                 # 300 questions
python benchmarks/lmms_task.py compare SAMPLES.jsonl answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from viceversa.benchmarks.pope import scores
from viceversa.scenes.language import questions
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

SOURCE = Path(__file__).parent / "lmms_scenes"
#: POPE's three ways to ask for what is not there.
ABSENT = ("random", "popular", "adversarial")


def write(folder: Path, asked: int, seed: int) -> None:
    """Write POPE's lines, the pictures, and the task's YAML and functions, into a new folder.

    Each picture has a question whose answer is yes and one whose answer is no, as in POPE.
    """
    draft = folder.with_name(folder.name + ".draft")
    if folder.exists() or draft.exists():
        raise SystemExit(f"{folder} or {draft} is there: choose another folder")
    (draft / "pictures").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    rng = random.Random(seed)
    specs = iter(draw_specs(seed, asked, "test"))
    for number in track(range(asked // 2), "drawing"):
        name, kind = f"scene_{number:06d}.png", ABSENT[number % len(ABSENT)]
        pair: list[Any] = []
        while len(pair) < 2:  # a kind of question need not fit every spec
            spec = next(specs)
            pair = [q for q in questions(spec, rng) if q.kind in ("yes", kind)]
        Image.fromarray(render(spec)).save(draft / "pictures" / name)
        for question in pair:
            asks = {"image": name, "text": question.text, "label": question.answer}
            rows.append({"question_id": len(rows) + 1, **asks})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (draft / "questions.jsonl").write_text(lines, encoding="utf-8")
    shutil.copy(SOURCE / "utils.py", draft)
    task = (SOURCE / "scenes_pope.yaml").read_text(encoding="utf-8")
    place = json.dumps(str(folder.resolve() / "questions.jsonl"))
    (draft / "scenes_pope.yaml").write_text(
        task.replace("questions.jsonl", place), encoding="utf-8"
    )
    draft.rename(folder)


def compare(samples: Path, answers: Path) -> int:
    """Print where lmms-eval's answers differ from ours, and what ours are worth."""
    theirs = {}
    for row in map(json.loads, samples.open()):
        said = row["filtered_resps"]
        theirs[row["accuracy"]["question_id"]] = said if isinstance(said, str) else said[0]
    rows = [json.loads(line) for line in answers.open()]
    ours = {row["question_id"]: row["answer"] for row in rows}
    differ = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    console = Console()
    for key in sorted(differ)[:10]:
        console.print(f"question {key}: lmms-eval {theirs.get(key)!r}, viceversa {ours.get(key)!r}")
    console.print(f"{len(ours)} of ours, {len(theirs)} of lmms-eval, {len(differ)} differ")
    found = scores([row["label"] for row in rows], [row["answer"] for row in rows])
    console.print(json.dumps(found), soft_wrap=True, highlight=False)
    return 1 if differ else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    todo = parser.add_subparsers(required=True, dest="todo")
    writes = todo.add_parser("write", help="write the task's folder")
    writes.add_argument("folder", type=Path)
    writes.add_argument("--questions", type=int, default=300)
    writes.add_argument("--seed", type=int, default=0)
    compares = todo.add_parser("compare", help="compare answers one by one")
    compares.add_argument("samples", type=Path, help="of lmms_eval --log_samples")
    compares.add_argument("answers", type=Path, help="of viceversa benchmark pope")
    given = parser.parse_args()
    if given.todo == "compare":
        return compare(given.samples, given.answers)
    write(given.folder, given.questions, given.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
