"""The part of the page about held-out inputs: the sentence, the measures, the outputs."""

from __future__ import annotations

from typing import Any

from viceversa.report.galleries import HELD_OUT, gallery
from viceversa.report.pictures import Pictures
from viceversa.report.reading import decimals, section
from viceversa.report.skills import TASKS

DECODINGS = {"training": "as sampled in training", "use": "as the model is used"}
MEASURES = {
    "base_likelihood": "likelihood of the input, judged by the base, nats a token",
    "own_likelihood": "the same, judged by the model itself",
    "gap": "what the model finds its outputs better by than the base does, nats a token",
    "best_of_gain": "what the best of a group adds, nats a token",
    "diversity": "outputs of one input apart, share",
    "variety": "outputs of different inputs apart, share",
    "entropy": "entropy, nats a token",
    "caption_tokens": "caption length, tokens",
    "never_stops": "captions that never stop, share",
    "distinct_words": "distinct words, share",
}


def held_out(pictures: Pictures, scores: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of held-out inputs; empty where nothing was measured."""
    found = section(scores, "held_out")
    if not found:
        return {}
    return {
        "sentence": str(found.get("sentence", "")),
        "tables": held_out_tables(found),
        **gallery(pictures, HELD_OUT),
    }


def held_out_tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Arrange the measures of eval.json's `held_out` in titled tables, one a way of decoding."""
    return [
        {"title": f"{TASKS[direction]}, {how}".capitalize(), "rows": measured}
        for direction in ("t2i", "i2t")
        for decoding, how in DECODINGS.items()
        if (measured := _rows(section(found, direction, decoding)))
    ]


def _rows(measured: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "label": label,
            "base": decimals(figure.get("base")),
            "tuned": decimals(figure.get("tuned")),
            **_change(section(figure, "change")),
        }
        for name, label in MEASURES.items()
        if (figure := section(measured, name))
    ]


def _change(change: dict[str, Any]) -> dict[str, str]:
    value, low, high = (decimals(change.get(k), "+.3f") for k in ("value", "low", "high"))
    return {"change": value, "ends": f"[{low}, {high}]" if low != "–" else ""}
