"""The commands `evaluate`, `pretrain`, `merge` and `export`."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from viceversa.cli.console import console
from viceversa.config import (
    ConfigError,
    ModelConfig,
    build,
    check_file,
    check_folder,
)
from viceversa.pretrain.recipe import PretrainConfig, PretrainOptions


def evaluate(
    model: Annotated[str, tyro.conf.Positional] = "builtin",
    specs: int = 300,
    seed: int = 0,
    temperature: float = 1.0,
    guidance: float = 1.0,
    best_decoding: bool = False,
    output: Path | None = None,
) -> int:
    """Measure a model's accuracy on the built-in world: drawing, captions, questions.

    `viceversa audit` measures how often the self-reward ranks right outputs above wrong ones.

    Try:
        viceversa evaluate
        viceversa evaluate runs/latest/checkpoint-240 --specs 100
        viceversa evaluate --best-decoding

    Args:
        model: `builtin` or a folder in Hugging Face layout.
        specs: Specs of each kind.
        seed: Seeds the specs and the draws.
        temperature: Temperature of the sampled pictures and captions; 0 picks the likeliest token.
        guidance: Classifier-free guidance of the sampled pictures; 1 is none.
        best_decoding: First find each direction's best temperature, and the guidance of pictures,
            on the tuning specs.
        output: Write the figures to this JSON file.
    """
    from viceversa.models import load_adapter
    from viceversa.scenes import evaluate as evaluation
    from viceversa.training.ending import figures_table
    from viceversa.types import DIRECTIONS

    if specs < 1:
        raise ConfigError(f"--specs is {specs}; it must be at least 1")
    options = {"seed": seed, "temperature": temperature, "guidance": guidance}
    settings = build({"eval": {"specs_per_kind": specs, **options}}).eval
    if output is not None:
        check_file(output, "--output")
    captions = None
    adapter = load_adapter(ModelConfig(path=model))
    record: dict[str, Any] = {"model": model}
    if best_decoding:
        found = {d: evaluation.best_decoding(adapter, settings, direction=d) for d in DIRECTIONS}
        for direction, (t, w, _) in found.items():
            console.print(f"best decoding of {direction}: temperature {t}, guidance {w}")
        t, w, _ = found["t2i"]
        settings = replace(settings, temperature=t, guidance=w)
        captions = replace(settings, temperature=found["i2t"][0], guidance=1.0)
        record["decoding"] = {d: table for d, (_, _, table) in found.items()}
    record["figures"] = evaluation.evaluate_scenes(adapter, settings, captions)
    record["settings"] = asdict(settings)
    console.print(figures_table({"base": record["figures"]}))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0


def pretrain(options: Annotated[PretrainOptions, tyro.conf.arg(name="")]) -> int:
    """Build the bundled model from nothing; resumes where it was stopped.

    Try:
        viceversa pretrain
        viceversa pretrain --output /tmp/tiny --steps 20 --codec-steps 20
        viceversa pretrain --codec builtin --read-weights 1 2 2 1 4 3 6 --output /tmp/reader
    """
    from viceversa.pretrain.pretrain import pretrain as run_pretraining

    folder = run_pretraining(PretrainConfig(**asdict(options)), console)
    console.print(f"model  {folder}", highlight=False, soft_wrap=True)
    return 0


def merge(model: Annotated[Path, tyro.conf.Positional], output: Path) -> int:
    """Add a LoRA checkpoint to its base model: a folder that transformers alone loads.

    Try:
        viceversa merge runs/latest/checkpoint-240 --output merged

    Args:
        model: A checkpoint that `viceversa train --lora` wrote.
        output: Where the whole model goes.
    """
    from viceversa.models import load_adapter
    from viceversa.models.export import whole_folder
    from viceversa.models.lora import base_of, merged
    from viceversa.publish.card import card_as, write_card

    if base_of(str(model)) is None:
        raise ConfigError(f"{str(model)!r} holds no LoRA checkpoint; it may be whole already")
    check_folder(str(output), "--output")
    if output.exists():
        raise ConfigError(f"--output is {str(output)!r}; it exists: choose another")
    adapter = load_adapter(ModelConfig(path=str(model)))
    whole = merged(adapter)
    card = card_as(model, "merged", type(whole).__name__)
    with whole_folder(output) as partial:
        whole.save_pretrained(partial)
        adapter.processor.save_pretrained(partial)
        if card is not None:
            write_card(partial, card)
    console.print(f"model  {output}", highlight=False, soft_wrap=True)
    return 0


def export(model: Annotated[Path, tyro.conf.Positional], base: str, output: Path) -> int:
    """Write a tuned Janus in the original's layout, for the official code; LoRA is merged.

    Try:
        viceversa export runs/latest/checkpoint-240 --base Janus-Pro-1B --output tuned

    Args:
        model: A checkpoint that `viceversa train` wrote, whole or LoRA.
        base: The model in the original's layout that it was made from: a folder, or a hub name.
            Key names, number formats, configuration, tokenizer and processor are taken from it.
        output: Where the whole model goes.
    """
    from viceversa.models import load_adapter
    from viceversa.models.export import check_base
    from viceversa.models.export import export as write
    from viceversa.publish.card import card_as

    check_base(base)
    check_folder(str(output), "--output")
    if output.exists():
        raise ConfigError(f"--output is {str(output)!r}; it exists: choose another")
    adapter = load_adapter(ModelConfig(path=str(model)))
    write(adapter, base, output, card_as(model, "original", type(adapter.model).__name__))
    console.print(f"model  {output}", highlight=False, soft_wrap=True)
    return 0
