"""The outputs that a run kept, as cards: before and after, groups, inputs that were followed.

A card's `facets` are what a reader can filter by: its kind, its outcome, its direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from viceversa.report.pictures import Pictures
from viceversa.report.reading import DIRECTIONS, decimals, number, read_lines, section

#: Order in which a facet's values are offered; others follow by how many cards have them.
OUTCOMES = ("now right", "now wrong", "right in both", "wrong in both")
#: Prompts whose drawings the first screen shows.
GLANCED = 6
SHARES = ("all right", "some right", "none right")


def facets(cards: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count the cards by each facet's values; a facet that tells no two cards apart is left out."""
    counts: dict[str, Counter[str]] = {}
    for card in cards:
        for name, value in card["facets"].items():
            counts.setdefault(name, Counter())[value] += bool(value)
    order = {value: place for place, value in enumerate((*OUTCOMES, *SHARES))}
    found = {}
    for name, values in counts.items():
        known = sorted((v for v in values if v), key=lambda v: order.get(v, len(order)))
        if len(known) > 1:
            found[name] = {value: values[value] for value in known}
    return found


def samples(pictures: Pictures, known: bool) -> dict[str, Any]:
    """Return the world's gallery, before and after; `known`: it is missed where it is not there."""
    run_dir = pictures.run_dir
    rows, notes = read_lines(run_dir, "samples/samples.jsonl")
    if not known and not (run_dir / "samples/samples.jsonl").exists():
        notes = []
    cards = [_sample(pictures, row) for row in rows]
    tally = {}
    for who in ("base", "tuned"):
        judged = [right for row in rows if isinstance(right := row.get(f"{who}_right"), bool)]
        if judged:
            tally[who] = f"{sum(judged)} of {len(judged)}"
    return {"cards": cards, "facets": facets(cards), "tally": tally, "notes": notes}


def _sample(pictures: Pictures, row: dict[str, Any]) -> dict[str, Any]:
    drawn = []
    for who in ("base", "tuned"):
        name = f"samples/{row[who]}" if row.get(who) else None
        drawn.append({"who": who, "right": row.get(f"{who}_right"), **pictures.picture(name)})
    before, after = (d["right"] for d in drawn)
    outcome = ""
    if isinstance(before, bool) and isinstance(after, bool):
        outcome = OUTCOMES[(0 if after else 1) if after != before else (2 if after else 3)]
    kind = str(row.get("kind") or "")
    given = {"text": str(row.get("prompt", ""))}
    return {"input": given, "outputs": drawn, "facets": {"kind": kind, "outcome": outcome}}


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
    judged = [o["right"] for o in outputs if isinstance(o["right"], bool)]
    if not judged:
        return ""
    return SHARES[0] if all(judged) else SHARES[1] if any(judged) else SHARES[2]


def followed(pictures: Pictures) -> dict[str, Any]:
    """Return the inputs that the run followed, each with its looks in the order of training."""
    if not (pictures.run_dir / "samples/followed.jsonl").exists():
        return {"inputs": [], "notes": []}
    rows, notes = read_lines(pictures.run_dir, "samples/followed.jsonl")
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
    judged = [o["right"] for o in outputs if isinstance(o["right"], bool)]
    if judged:
        said += f", {sum(judged)} of {len(judged)} right"
    return {"step": decimals(row.get("step"), ".0f"), "said": said, "outputs": outputs}
