"""POPE: questions about objects in pictures, answered yes or no, and what the answers are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from viceversa.benchmarks.folders import json_lines
from viceversa.config import ConfigError

if TYPE_CHECKING:
    from viceversa.inference.memory import RowBudget
    from viceversa.models.base import Adapter

#: Tokens of an answer; its first sentence counts.
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Question:
    question_id: int | str
    image: str
    """A file's name in the folder of pictures."""
    text: str
    label: str
    """`yes` or `no`, in whatever case it was given."""


def read_questions(path: Path, images: Path) -> list[Question]:
    """Read POPE's JSON lines. Raises ConfigError, naming the line, for a bad one."""
    if not images.is_dir():
        raise ConfigError(f"--images is {str(images)!r}; there is no such folder")
    found = [_question(place, row, images) for place, _, row in json_lines(path)]
    if not found:
        raise ConfigError(f"--prompts is {str(path)!r}; it holds no question")
    return found


def _question(place: str, row: dict[str, Any], images: Path) -> Question:
    takes = {"question_id": (int, str), "image": (str,), "text": (str,)}
    for key, kinds in takes.items():
        if not isinstance(row.get(key), kinds) or row[key] == "":
            wanted = "a number or text" if len(kinds) == 2 else "text"
            raise ConfigError(f"{place}: {key} is {row.get(key)!r}; it takes {wanted}")
    label = str(row.get("label")).strip().lower()
    if label not in ("yes", "no"):
        raise ConfigError(f"{place}: label is {row.get('label')!r}; it must be 'yes' or 'no'")
    if not (images / row["image"]).is_file():
        raise ConfigError(
            f"{place}: image is {row['image']!r}; {images} holds no such file: choose the folder "
            "with --images"
        )
    return Question(row["question_id"], row["image"], row["text"], label)


def ask(
    adapter: Adapter,
    questions: Sequence[Question],
    images: Path,
    rows_at_once: RowBudget | None = None,
) -> list[str]:
    """Answer questions by the likeliest tokens; `rows_at_once` is as `answers` takes it.

    Raises ConfigError, naming it, for a picture that cannot be used, and for a question that is
    too long for the model.
    """
    from viceversa.benchmarks.asking import Answering, Asked, answers

    asked = [
        Asked(f"question {q.question_id}", i, q.text, images / q.image)
        for i, q in enumerate(questions)
    ]
    return answers(adapter, asked, Answering(ANSWER_TOKENS), rows_at_once=rows_at_once)


def says_yes(answer: str) -> bool:
    """Tell what an answer counts as, by POPE's own rule.

    github.com/AoiDragon/POPE, evaluate.py at f3ec604: of the first sentence, commas left out, a
    word `No`, `no` or `not` makes it a no, and all else is a yes.
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def scores(labels: Sequence[str], answers: Sequence[str]) -> dict[str, Any]:
    """Measure answers as POPE's evaluate.py does; a share of nothing is 0.

    `neither` counts the answers that begin with neither yes nor no, whatever they count as.
    """
    pairs = [(label == "yes", says_yes(a)) for label, a in zip(labels, answers, strict=True)]
    tp, fp, tn, fn = (
        pairs.count(kind) for kind in ((True, True), (False, True), (False, False), (True, False))
    )
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    return {
        "accuracy": _share(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_rate": _share(tp + fp, len(pairs)),
        "questions": len(pairs),
        "counts": {"TP": tp, "FP": fp, "TN": tn, "FN": fn},
        "neither": sum(not a.strip().lower().startswith(("yes", "no")) for a in answers),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
