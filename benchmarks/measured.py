"""Accuracies of a model on the built-in world, measured once and kept; tables of changes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from viceversa.config import EvalConfig, ModelConfig, load_config
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.report.paired import Change, change_of, paired_change
from viceversa.report.skills import TASKS
from viceversa.scenes.evaluate import accuracy, best_decoding, evaluate_scenes
from viceversa.scenes.spec import draw_specs
from viceversa.training.run import Given, train
from viceversa.types import DIRECTIONS

#: Seeds 0 and 5 of the specs served to choose a base and a recipe, seed 0 of training, too.
EVALUATION_SEED = 1
#: The replay that the recipes had when some of the figures in RESULTS.md were made.
MORE_REPLAY = ["replay.per_step=96", "replay.weight=1"]
#: Where a model's best decoding is looked for, on this many tuning specs a kind.
TEMPERATURES, GUIDANCES, TUNING_SPECS = (1.0, 0.5, 0.0), (1.0, 1.5, 2.0), 60


def trained(
    recipe: str, sets: Sequence[str], out: Path, console: Console, given: Given | None = None
) -> str:
    """Train a recipe with overrides into `out`, if it is not there; return its last checkpoint."""
    config = load_config(recipe, [*sets, f"output_dir={out}", "eval.specs_per_kind=0"])
    last = out / f"checkpoint-{config.steps}"
    if not last.exists():
        console.rule(out.name)
        train(config, console, given=given)
    return str(last)


def figures_of(model: str, path: Path, settings: EvalConfig, best: bool = False) -> dict[str, Any]:
    """Measure a model, or read from `path` what was measured.

    At temperature 1, and where `best` is set each direction at its best decoding, too, which is
    chosen on tuning specs.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found and not (best and "best" not in found):
        return found
    adapter = load_adapter(ModelConfig(path=model))
    found = found or evaluate_scenes(adapter, settings)
    if best:
        found["best"] = {d: _at_best(adapter, d, settings) for d in DIRECTIONS}
    if not path.stem.endswith("base"):  # the inputs are the base's
        found = _without_inputs(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.replace(path)
    return found


def _without_inputs(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {k: _without_inputs(v) for k, v in tree.items() if k != "inputs"}


def _at_best(adapter: Adapter, direction: Any, settings: EvalConfig) -> dict[str, Any]:
    few = replace(settings, specs_per_kind=TUNING_SPECS)
    temperature, guidance, _ = best_decoding(
        adapter, few, TEMPERATURES, GUIDANCES, direction=direction
    )
    at = replace(settings, temperature=temperature, guidance=guidance)
    specs = draw_specs(settings.seed, settings.specs_per_kind, settings.split)
    figures = accuracy(adapter, direction, specs, at)
    return {"temperature": temperature, "guidance": guidance, **figures}


def change(
    base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], *place: str
) -> Change | None:
    """Compare runs that differ in their seed alone with the base, at a place in their figures."""
    return change_of(_at(base, place), [_at(figures, place) for figures in runs])


def less(
    base: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    *place: str,
) -> Change | None:
    """Compare runs with others of the same seeds, on the inputs that the base was measured on."""
    known = _at(base, place)["kinds"]
    kinds = [_at(figures, place)["kinds"] for figures in others]
    befores = [{k: {**known[k], **run[k]} for k in known} for run in kinds]
    return paired_change(befores, [_at(figures, place)["kinds"] for figures in runs])


def mean(runs: Sequence[Mapping[str, Any]], *place: str) -> float:
    """Return the mean accuracy of runs at a place in their figures."""
    return sum(_at(run, place)["accuracy"] for run in runs) / len(runs)


def _at(figures: Mapping[str, Any], place: Sequence[str]) -> Any:
    found: Any = figures
    for name in place:
        found = found[name]
    return found


def cell(base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], *place: str) -> str:
    """Say `after (change [low, high])`, the interval over inputs and seeds."""
    return f"{mean(runs, *place):.3f} ({change(base, runs, *place)})"


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def by_task(
    base: Mapping[str, Any], table: Mapping[str, Sequence[Mapping[str, Any]]], *inside: str
) -> list[str]:
    """Return a table of methods: every task, or (`inside` "best") both directions."""
    tasks = [t for t in TASKS if not inside or t in DIRECTIONS]
    lines = [row(["model", *(TASKS[t] for t in tasks)]), row(["---"] * (len(tasks) + 1))]
    lines.append(row(["base", *(f"{mean([base], *inside, t):.3f}" for t in tasks)]))
    for method, runs in table.items():
        lines.append(row([method, *(cell(base, runs, *inside, t) for t in tasks)]))
    return lines


def by_difference(
    base: Mapping[str, Any],
    table: Mapping[str, Sequence[Mapping[str, Any]]],
    first: str,
    *inside: str,
) -> list[str]:
    """Return a table of the other methods: their accuracy less the first one's, seed by seed."""
    tasks = [t for t in TASKS if not inside or t in DIRECTIONS]
    lines = [
        row([f"difference from {first}", *(TASKS[t] for t in tasks)]),
        row(["---"] * (len(tasks) + 1)),
    ]
    for method, runs in table.items():
        shared = min(len(runs), len(table[first]))
        if method != first and shared:
            pair = runs[:shared], table[first][:shared]
            lines.append(row([method, *(str(less(base, *pair, *inside, t)) for t in tasks)]))
    return lines


def by_skill(base: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], *inside: str) -> list[str]:
    """Return a table of kinds: both directions, before and after."""
    lines = [row(["skill", *(TASKS[d] for d in DIRECTIONS)]), row(["---"] * 3)]
    for kind in _at(base, (*inside, "t2i", "kinds")):
        cells = []
        for direction in DIRECTIONS:
            place = (*inside, direction, "kinds", kind)
            cells.append(f"{mean([base], *place):.2f} → {cell(base, runs, *place)}")
        lines.append(row([kind, *cells]))
    return lines
