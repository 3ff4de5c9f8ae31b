"""What the task `scenes_pope` has lmms-eval call: POPE's own functions, on POPE's own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.tasks.pope.utils import (  # pyright: ignore[reportMissingImports]
    pope_aggregate_accuracy,
    pope_aggregate_f1_score,
    pope_aggregate_precision,
    pope_aggregate_recall,
    pope_process_results,
)
from PIL import Image

PICTURES = Path(__file__).parent / "pictures"

accuracy, precision = pope_aggregate_accuracy, pope_aggregate_precision
recall, f1 = pope_aggregate_recall, pope_aggregate_f1_score


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    with Image.open(PICTURES / doc["image"]) as picture:
        return [picture.convert("RGB")]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    return doc["text"]


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    found = pope_process_results({**doc, "answer": doc["label"]}, results)
    names = ("accuracy", "precision", "recall", "f1", "yes_rate")
    return dict.fromkeys(names, found["pope_accuracy"])


def yes_rate(results: list[dict[str, Any]]) -> float:
    """The share of answers that are yes; lmms-eval's own counts the labels."""
    return sum(r["prediction"] == "yes" for r in results) / len(results)
