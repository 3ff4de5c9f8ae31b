"""The part of the page about held-out inputs: the sentence, the measures, the outputs."""

from __future__ import annotations

from typing import Any

from viceversa.report.galleries import facets
from viceversa.report.pictures import Pictures
from viceversa.report.reading import decimals, read_lines, section

TITLES = {"t2i": "Drawing", "i2t": "Captions"}
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
    rows, notes = read_lines(pictures.run_dir, "samples/held_out.jsonl")
    cards = [
        _card(pictures, row, title)
        for direction, title in TITLES.items()
        for row in rows
        if row.get("direction") == direction
    ]
    return {
        "sentence": str(found.get("sentence", "")),
        "word": str(found.get("verdict", "")),
        "tables": _tables(found),
        "cards": cards,
        "facets": facets(cards),
        "notes": notes,
    }


def held_out_changes(scores: dict[str, Any]) -> dict[tuple[str, str], dict[str, str]]:
    """Return the change of each measure, and the ends of its interval, by title and measure."""
    tables = _tables(section(scores, "held_out"))
    return {(t["title"], row["label"]): row for t in tables for row in t["rows"]}


def _tables(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"title": f"{title}, {how}", "rows": measured}
        for direction, title in TITLES.items()
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
    return {"change": value, "ends": f"[{low}, {high}]"}


def _card(pictures: Pictures, row: dict[str, Any], title: str) -> dict[str, Any]:
    outputs = [
        {"who": who, "right": None, **pictures.shown(made.get("text"), made.get("image"))}
        for who in ("base", "tuned")
        for made in [section(row, who)]
    ]
    given = pictures.shown(row.get("input_text"), row.get("input_image"))
    return {"input": given, "outputs": outputs, "facets": {"task": title}}
