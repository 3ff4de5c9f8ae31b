"""The outputs that a run kept, as cards: before and after, groups, inputs that were followed.

A card's `facets` are what a reader can filter by: its kind, its outcome, its direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from viceversa.report.pictures import Pictures
from viceversa.report.reading import DIRECTIONS, decimals, number, read_lines, section
from viceversa.report.skills import TASKS

#: What base and tuned made of the same inputs: of the built-in world, and held out.
SAMPLES, HELD_OUT = "samples/samples.jsonl", "samples/held_out.jsonl"
#: What a watched run made of the same inputs, look by look.
FOLLOWED = "samples/followed.jsonl"
#: By what was right before and after. Facets offer their values in this order, others after them.
OUTCOMES = {
    (False, True): "now right",
    (True, False): "now wrong",
    (True, True): "right in both",
    (False, False): "wrong in both",
}
#: Prompts whose drawings the first screen shows.
GLANCED = 6
SHARES = ("all right", "some right", "none right")


def facets(cards: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count the cards by each facet's values; a facet that tells no two cards apart is left out."""
    counts: dict[str, Counter[str]] = {}
    for card in cards:
        for name, value in card["facets"].items():
            counts.setdefault(name, Counter())[value] += bool(value)
    order = {value: place for place, value in enumerate((*OUTCOMES.values(), *SHARES))}
    found = {}
    for name, values in counts.items():
        known = sorted((v for v in values if v), key=lambda v: order.get(v, len(order)))
        if len(known) > 1:
            found[name] = {value: values[value] for value in known}
    return found


def gallery(pictures: Pictures, name: str) -> dict[str, Any]:
    """Return SAMPLES or HELD_OUT: cards, facets, and notes on what is wrong with the file."""
    rows, notes = read_lines(pictures.run_dir, name)
    cards = [card(pictures, row) for row in rows]
    return {"cards": cards, "facets": facets(cards), "notes": notes}


def card(pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    """Return an input, and what base and tuned made of it, of a row of SAMPLES or HELD_OUT."""
    outputs = [made_by(who, pictures, row) for who in ("base", "tuned")]
    before, after = (output["right"] for output in outputs)
    return {
        "input": pictures.shown(row.get("input_text"), row.get("input_image")),
        "outputs": outputs,
        "facets": {
            "task": TASKS.get(str(row.get("direction")), "").capitalize(),
            "kind": str(row.get("kind") or ""),
            "outcome": OUTCOMES.get((before, after), ""),
        },
    }


def made_by(who: str, pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    """Return what `base` or `tuned` made of an input."""
    made = section(row, who)
    shown = pictures.shown(made.get("text"), made.get("image"))
    return {"who": who, "right": made.get("right"), **shown}


def samples(pictures: Pictures, known: bool) -> dict[str, Any]:
    """Return the world's gallery, before and after; `known`: it is missed where it is not there."""
    found = gallery(pictures, SAMPLES)
    if not known and not (pictures.run_dir / SAMPLES).exists():
        found["notes"] = []
    tally = {}
    for place, who in enumerate(("base", "tuned")):
        if judged := _judged([card["outputs"][place] for card in found["cards"]]):
            tally[who] = f"{sum(judged)} of {len(judged)}"
    return {**found, "tally": tally}


def _judged(outputs: Sequence[dict[str, Any]]) -> list[bool]:
    return [o["right"] for o in outputs if o["right"] is not None]


def glance(*galleries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most GLANCED drawings of the first gallery that shows some.

    They are spread evenly over it, or over the first of each kind where it has several.
    """
    for cards in galleries:
        drawn = [card for card in cards if all("src" in output for output in card["outputs"])]
        if drawn:
            kinds = [card["facets"].get("kind") for card in drawn]
            if len(set(kinds)) > 1:
                drawn = [c for i, c in enumerate(drawn) if kinds[i] not in kinds[:i]]
            count = min(GLANCED, len(drawn))
            return [drawn[i * len(drawn) // count] for i in range(count)]
    return []


def groups(pictures: Pictures) -> dict[str, Any]:
    """Return every recorded group, the newest first, its outputs ranked by reward."""
    rows, notes = read_lines(pictures.run_dir, "rollouts.jsonl")
    newest = sorted(rows, key=lambda row: number(row.get("step")) or 0)[::-1]
    cards = [_group(pictures, row) for row in newest]
    return {"cards": cards, "facets": facets(cards), "notes": notes}


def _group(pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    direction = str(row.get("direction"))
    rewards = _numbers(row.get("rewards"))
    low, high = (min(rewards), max(rewards)) if rewards else (0.0, 0.0)
    outputs = _ranked(pictures, row)
    return {
        "step": decimals(row.get("step"), ".0f"),
        "direction": DIRECTIONS.get(direction, direction),
        "size": decimals(row.get("group_size", len(rewards)), ".0f"),
        "input": pictures.shown(row.get("input_text"), row.get("input_image")),
        "outputs": outputs,
        "marks": [round(4 + 192 * (r - low) / (high - low), 1) for r in rewards if high > low],
        "equal": len(rewards) > 1 and high == low,
        "facets": {
            "direction": DIRECTIONS.get(direction, ""),
            "kind": str(row.get("kind") or ""),
            "outcome": share_of(outputs),
        },
    }


def _ranked(pictures: Pictures, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the outputs of a group, the highest reward first; of older runs the best and worst."""
    kept = row.get("outputs")
    if isinstance(kept, list):
        outputs = [o for o in kept if isinstance(o, dict)]
        best_first = sorted(enumerate(outputs), key=lambda found: _reward(found[1]), reverse=True)
        given = [(str(rank), n, output) for rank, (n, output) in enumerate(best_first, 1)]
    else:
        both = enumerate(("best", "worst"))
        given = [(which, n, o) for n, which in both if (o := section(row, which))]
    return [
        {
            "rank": rank,
            "sample": sample,
            "reward": decimals(output.get("reward")),
            "right": output.get("right"),
            **pictures.shown(output.get("text"), output.get("image")),
        }
        for rank, sample, output in given
    ]


def _numbers(given: Any) -> list[float]:
    return [r for v in given if (r := number(v)) is not None] if isinstance(given, list) else []


def _reward(output: dict[str, Any]) -> float:
    reward = number(output.get("reward"))
    return float("-inf") if reward is None else reward


def share_of(outputs: Sequence[dict[str, Any]]) -> str:
    """Say how many outputs are right: all, some or none; empty where nobody judged them."""
    judged = _judged(outputs)
    if not judged:
        return ""
    return SHARES[0] if all(judged) else SHARES[1] if any(judged) else SHARES[2]


def followed(pictures: Pictures) -> dict[str, Any]:
    """Return the inputs that the run followed, each with its looks in the order of training."""
    if not (pictures.run_dir / FOLLOWED).exists():
        return {"inputs": [], "notes": []}
    rows, notes = read_lines(pictures.run_dir, FOLLOWED)
    by_input: dict[tuple[str, float], dict[float, dict[str, Any]]] = {}
    for row in rows:
        step, place = number(row.get("step")), number(row.get("number"))
        if step is not None and place is not None:
            by_input.setdefault((str(row.get("direction")), place), {})[step] = row
    inputs = []
    for direction, place in sorted(by_input, key=lambda key: (key[0] != "t2i", key[1])):
        looks = by_input[direction, place]
        last = looks[max(looks)]
        given = pictures.shown(last.get("input_text"), last.get("input_image"))
        title = f"draw: {given['text']}" if "text" in given else f"caption: picture {place + 1:.0f}"
        frames = [_frame(pictures, looks[step]) for step in sorted(looks)]
        inputs.append({"title": title, "input": given, "frames": frames})
    return {"inputs": inputs, "notes": notes}


def _frame(pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    """Return one look: its step, what came of it in words, and the outputs in sampling's order."""
    rewards = _numbers(row.get("rewards"))
    outputs = sorted(_ranked(pictures, row), key=lambda output: output["sample"])
    said = f"mean reward {sum(rewards) / len(rewards):.3f}" if rewards else "no rewards"
    if judged := _judged(outputs):
        said += f", {sum(judged)} of {len(judged)} right"
    return {"step": decimals(row.get("step"), ".0f"), "said": said, "outputs": outputs}
