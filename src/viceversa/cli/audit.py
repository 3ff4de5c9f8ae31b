"""The command `audit`: whether a model's self-reward is worth training on, before it is."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from viceversa.cli.console import console
from viceversa.cli.outputs import pairs_of
from viceversa.config import (
    INF,
    ConfigError,
    DataConfig,
    RewardConfig,
    check_file,
    check_number,
    load_config,
)

if TYPE_CHECKING:
    from torch import Tensor

    from viceversa.models.base import Adapter


def audit(
    model: Annotated[str, tyro.conf.Positional] = "",
    config: Path | None = None,
    pairs: Path | None = None,
    prompts: str = "",
    images: str = "",
    group_size: int = 8,
    inputs: int = 64,
    own: float | None = None,
    seed: int = 0,
    output: Path = Path("audit.json"),
) -> int:
    """Audit a model's self-reward before training: what it ranks, and which direction to train.

    On your pairs, by corrupting them; on your unpaired prompts and pictures, by the spread inside
    groups against noise; with none of them, on the built-in world, by its verifier.

    Audited is the plain reward, unless a recipe or --own weighs its second term.

    Try:
        viceversa audit
        viceversa audit --config builtin
        viceversa audit path/to/janus --pairs pairs.jsonl
        viceversa audit path/to/janus --prompts prompts.txt --images photos/

    Args:
        model: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name (default: the
            recipe's, or `builtin`).
        config: A recipe, as `train` takes it: its reward.t2i_own and reward.i2t_own are audited.
        pairs: JSON lines with `text` and `image`, a path from the file's own folder. For the audit
            alone: training never reads a pair.
        prompts: A file (.txt, .jsonl, .csv, .parquet) or `hf://owner/name`.
        images: A folder of pictures or shards, .tar shards or `hf://owner/name`.
        group_size: Outputs sampled for one input.
        inputs: Inputs of each source, at most, drawn by `--seed`.
        own: Weight of the reward's second term, in both directions (default: the recipe's, or 0).
        seed: The same seed gives the same figures.
        output: The file of figures.
    """
    check_number("--group-size", group_size, 2, INF)
    check_number("--inputs", inputs, 2, INF)
    check_number("--seed", seed, 0, 2**32 - 1)
    check_file(output, "--output")
    given = None if pairs is None else pairs_of(pairs)
    recipe = load_config(config)
    reward = _reward(recipe.reward, config, own)
    model = model or recipe.model.path

    from viceversa.audit.audit import audit as run_audit
    from viceversa.audit.groups import Judge
    from viceversa.audit.table import in_words, tables
    from viceversa.audit.verdict import decide
    from viceversa.files import write_whole
    from viceversa.models import load_adapter

    adapter = load_adapter(replace(recipe.model, path=model))
    if given is None and not prompts and not images:
        _check_draws_scenes(adapter)
    sources = run_audit(
        Judge(adapter, group_size, reward, seed),
        None if given is None else _paired(adapter, str(pairs), given, inputs, seed),
        _prompts(adapter, prompts, inputs, seed) if prompts else [],
        _images(adapter, images, inputs, seed) if images else [],
        inputs,
    )
    verdict = decide(sources)
    weights = {"t2i_own": reward.t2i_own, "i2t_own": reward.i2t_own}
    told = ", ".join(f"reward.{name}={weight:g}" for name, weight in weights.items())
    console.print(f"audited  {model} on its dual reward, {told}", highlight=False, soft_wrap=True)
    for table in tables(sources):
        console.print(table)
    for line in in_words(verdict):
        console.print(line, highlight=False, soft_wrap=True)
    settings = {"group_size": group_size, "inputs": inputs, **weights, "seed": seed}
    record = {"model": model, "settings": settings, "sources": sources, "verdict": verdict}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, json.dumps(record, indent=1, default=asdict) + "\n")
    console.print(f"wrote  {output}", highlight=False, soft_wrap=True)
    return 0


def _reward(reward: RewardConfig, config: Path | None, own: float | None) -> RewardConfig:
    """Return the reward to audit. Raises ConfigError for a recipe whose reward is another."""
    if reward.name != "dual":
        raise ConfigError(
            f"--config is {str(config)!r}; its reward.name is {reward.name!r}, and the audit is of "
            "`dual`: leave --config out, or name another recipe"
        )
    if own is None:
        return reward
    check_number("--own", own, 0, INF)
    return replace(reward, t2i_own=own, i2t_own=own)


def _check_draws_scenes(adapter: Adapter) -> None:
    """Raise ConfigError for a model that does not draw pictures of the built-in world's size."""
    from viceversa.scenes.render import SIZE

    if not adapter.draws_pixels or adapter.image_size != SIZE:
        raise ConfigError(
            f"this model does not draw the built-in world's pictures of {SIZE} pixels a side: "
            "give --pairs, or --prompts and --images"
        )


def _paired(
    adapter: Adapter, name: str, given: list[dict[str, str]], most: int, seed: int
) -> tuple[list[str], Tensor]:
    """Read some pairs. Raises ConfigError for a bad one, and where all captions are alike."""
    from viceversa.data.given import pictures
    from viceversa.data.prompts import Row, cleaned

    some = random.Random(f"{seed}/pairs").sample(given, min(most, len(given)))
    limits = adapter.text_limits("")
    texts = [cleaned(Row(f"{name}: a text", row["text"]), limits) for row in some]
    if len(set(texts)) < 2:
        raise ConfigError(f"--pairs is {name!r}; it takes two pairs of different text")
    files = [str(Path(name).parent / row["image"]) for row in some]
    return texts, pictures(files, adapter.image_size, DataConfig())


def _prompts(adapter: Adapter, name: str, most: int, seed: int) -> list[str]:
    """Read some prompts; those of no use are left out. Raises ConfigError where none is left."""
    from viceversa.data.prompts import clean_prompts, read_prompts

    rows = clean_prompts(read_prompts(DataConfig(prompts=name)), adapter.text_limits(""))
    texts = [row.text for row, _ in rows if row is not None]
    if not texts:
        raise ConfigError(f"--prompts is {name!r}; it holds no prompt")
    return random.Random(f"{seed}/prompts").sample(texts, min(most, len(texts)))


def _images(adapter: Adapter, name: str, most: int, seed: int) -> list[Tensor]:
    """Read some pictures; those of no use are left out. Raises ConfigError where none is left."""
    from viceversa.data.pictures import read_picture
    from viceversa.data.places import find_pictures

    refs = list(find_pictures(DataConfig(images=name)))
    random.Random(f"{seed}/images").shuffle(refs)
    read = (read_picture(ref, adapter.image_size, "center")[0] for ref in refs)
    found = list(islice((pixels for pixels in read if pixels is not None), most))
    if not found:
        raise ConfigError(f"--images is {name!r}; it holds no picture")
    return found
