"""The part of the page about held-out inputs: the sentence, the measures, the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from viceversa.report.reading import decimals, read_lines, section, shown

#: Inputs of each direction that are shown.
SHOWN = 16
DIRECTIONS = {"t2i": "Drawing", "i2t": "Captions"}
DECODINGS = {"training": "as sampled in training", "use": "as the model is used"}
MEASURES = {
    "base_likelihood": "likelihood of the input, judged by the base, nats a token",
    "own_likelihood": "the same, judged by the model itself",
    "best_of_gain": "what the best of a group adds, nats a token",
    "diversity": "outputs of one input apart, share",
    "variety": "outputs of different inputs apart, share",
    "entropy": "entropy, nats a token",
    "caption_tokens": "caption length, tokens",
    "never_stops": "captions that never stop, share",
    "distinct_words": "distinct words, share",
}


def held_out(run_dir: Path, scores: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of held-out inputs; empty where nothing was measured."""
    found = section(scores, "held_out")
    if not found:
        return {}
    rows, notes = read_lines(run_dir, "samples/held_out.jsonl")
    tables = [
        {"title": f"{title}, {how}", "rows": measured}
        for direction, title in DIRECTIONS.items()
        for decoding, how in DECODINGS.items()
        if (measured := _rows(section(found, direction, decoding)))
    ]
    cards = [
        _card(run_dir, row)
        for direction in DIRECTIONS
        for row in [r for r in rows if r.get("direction") == direction][:SHOWN]
    ]
    return {
        "sentence": str(found.get("sentence", "")),
        "word": str(found.get("verdict", "")),
        "tables": tables,
        "cards": cards,
        "total": len(rows),
        "notes": notes,
    }


def _rows(measured: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "label": label,
            "base": decimals(figure.get("base")),
            "tuned": decimals(figure.get("tuned")),
            "change": _change(section(figure, "change")),
        }
        for name, label in MEASURES.items()
        if (figure := section(measured, name))
    ]


def _change(change: dict[str, Any]) -> str:
    value, low, high = (decimals(change.get(k), "+.3f") for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _card(run_dir: Path, row: dict[str, Any]) -> dict[str, Any]:
    outputs = [
        {"who": who, **shown(run_dir, made.get("text"), made.get("image"))}
        for who in ("base", "tuned")
        for made in [section(row, who)]
    ]
    given = shown(run_dir, row.get("input_text"), row.get("input_image"))
    return {"input": given, "outputs": outputs}
