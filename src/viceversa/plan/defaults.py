"""The settings that a user left open: by the model's geometry, its size, and the GPU's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from viceversa.config import (
    RECIPES,
    Config,
    build,
    check,
    file_of,
    merged,
    read_options,
    to_dict,
)
from viceversa.models.geometry import geometry_of, known_as, meta_adapter
from viceversa.plan.advice import advise
from viceversa.plan.gpus import Gpu
from viceversa.plan.plan import GIB, make_plan

#: Where --lora or a GPU decides.
LORA_RANK = 16
#: A known geometry -> its recipe: with LoRA, and with every weight sharded over GPUs.
WITH_LORA = {
    "janus-pro-1b": "janus-pro-1b-lora",
    "janus-pro-7b": "janus-pro-7b-lora",
    "emu3": "emu3-lora",
    "anole-7b": "anole-lora",
}
SHARDED = {"janus-pro-7b": "janus-pro-7b-full-fsdp2"}
#: What a recipe says of these is a place holder.
PLACES = ("model.path", "data.prompts", "data.images", "output_dir")
#: Share of what the plan thinks usable that budgets are fitted to: the plan was up to 12 % below
#: measured peaks of more than 200 MiB (RESULTS.md, "The plan against a CPU").
ROOM = 0.86
#: Memory's options, which never change the result.
BUDGETS = (
    "sampling.batch_rows",
    "reward.batch_rows",
    "loss.batch_rows",
    "train.activation_checkpointing",
)


def resolve(
    path: str | Path | None,
    overrides: Iterable[str | tuple[str, Any]] = (),
    lora: bool = False,
    gpu: Gpu | None = None,
    processes: int = 1,
) -> tuple[Config, str]:
    """Return the config that is asked for, what it leaves open decided, and one line that says so.

    A packaged recipe by its name leaves nothing open, and so does the built-in model, which takes
    the recipe `builtin` where `path` is None. A released model, by its geometry, takes its recipe;
    any other, on `gpu`, what `by_size` says. Row budgets and activation checkpointing are then
    fitted to the memory of `gpu`. `lora`: not every weight.

    Raises ConfigError as `load_config` does, and for a model that cannot be found.
    """
    tree = read_options(path, overrides)
    asked = build(tree)
    packaged = path is not None and file_of(Path(path)).parent == RECIPES
    if packaged or asked.model.path == "builtin":
        base = read_options("builtin") if path is None else {}
        config, said, budgets = build(merged(base, tree)), "", []
    else:
        gpu = None if asked.train.get("use_cpu") else gpu
        base, said = _left_open(asked, tree, lora, gpu)
        config = build(merged(base, tree))
        budgets = _free_budgets(config, tree)
    if lora and not config.lora.rank:
        config.lora.rank = LORA_RANK
    check(config)
    if gpu is None or not budgets:
        return config, said
    config, fitted = _fitted(config, gpu, processes, budgets)
    return config, "; ".join(filter(None, (said, fitted)))


def _left_open(
    asked: Config, tree: dict[str, Any], lora: bool, gpu: Gpu | None
) -> tuple[dict[str, Any], str]:
    """Options to go under those of `tree`, by section, and what to say of them."""
    geometry, sharded = geometry_of(asked.model.path), bool(asked.train.get("fsdp"))
    whole = not lora and (asked.lora.rank == 0 if _has(tree, "lora.rank") else sharded)
    recipes = WITH_LORA if not whole else SHARDED if sharded else {}
    name = recipes.get(known_as(geometry) or "")
    if name is not None:
        options = read_options(name)
        base = {leaf: value for leaf, value in _leaves(options) if leaf not in PLACES}
        what = f"what was not set comes from the recipe {name}, made for this model"
    elif gpu is not None:
        numbers = sum(p.numel() for p in meta_adapter(asked.model).model.parameters())
        base = by_size(numbers, whole)
        if "fp16" in asked.train:
            base.pop("train.bf16", None)
        what = f"what was not set, for {numbers / 1e6:,.0f} M parameters on a GPU: "
    else:
        return {}, ""
    base = {leaf: value for leaf, value in base.items() if not _has(tree, leaf)}
    if not base:
        return {}, ""
    if name is None:
        what += ", ".join(f"{leaf}={value}" for leaf, value in base.items())
    every = "" if whole else "; --set lora.rank=0 trains every weight"
    what += f" (change any with --set section.field=value{every})"
    return read_options(None, base.items()), what


def _free_budgets(config: Config, tree: dict[str, Any]) -> list[str]:
    """Return those of BUDGETS that the user did not set under any name."""
    found = [name for name in BUDGETS if not _has(tree, name)]
    checkpointing = config.train.get("fsdp") or "gradient_checkpointing" in config.train
    return [name for name in found if not (checkpointing and name.startswith("train."))]


def by_size(numbers: int, whole: bool) -> dict[str, Any]:
    """Options, by name, of a model of `numbers` parameters on a GPU.

    The rate for every weight is a power law through 1e-6 for 7.4 billion (T2I-R1, Janus-Pro-7B) and
    3e-4 for the built-in model's 1.6 million; LoRA takes ten times as much, 1e-5 for 7.4 billion
    (OSPO). None of it was tuned for other sizes.
    """
    rate = (1e-6 if whole else 1e-5) * (7.4e9 / numbers) ** (2 / 3)
    found = {"train.learning_rate": float(f"{min(rate, 3e-4):.1e}")}
    if whole:
        return {"train.bf16": True, **found}
    return {"model.dtype": "bfloat16", "lora.rank": LORA_RANK, **found}


def _fitted(config: Config, gpu: Gpu, processes: int, budgets: Sequence[str]) -> tuple[Config, str]:
    """Return `config` with the `budgets` that the plan asks for, and what to say of them."""
    steps = advise(config, replace(gpu, memory=ROOM * gpu.memory), processes, only=budgets)
    then = steps[-1].config if steps else config
    plan = steps[-1].plan if steps else make_plan(config, processes)
    before = dict(_leaves(to_dict(config)))
    changed = [f"{k}={v}" for k, v in _leaves(to_dict(then)) if before.get(k) != v]
    said = f"for its {gpu.memory:.0f} GiB: {', '.join(changed)}" if changed else ""
    if not plan.fits(gpu.memory):
        need = f"{plan.peak.bytes / GIB:.0f} of the GPU's {gpu.memory:.0f} GiB in {plan.peak.name}"
        said = f"it does not fit, with {need}: `viceversa plan` with the same options says more"
    return then, said


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `section.field` and its value."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _has(tree: Any, name: str) -> bool:
    """Tell whether the tree has `section.field`, or something else in a section's place."""
    for part in name.split("."):
        if not isinstance(tree, dict):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True
