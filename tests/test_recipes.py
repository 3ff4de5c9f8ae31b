"""Every packaged recipe loads, says where its numbers come from, and takes two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from builders import ADAPTERS
from viceversa.cli import main
from viceversa.config import RECIPES, ConfigError, load_config, recipe_names
from viceversa.run import train, training_arguments
from viceversa.scenes import draw_specs, render

CLASSES = {"builtin": "janus", "janus": "janus", "emu3": "emu3", "anole": "chameleon"}
#: What a tiny model on a CPU cannot have: sharding wants several processes, and Adam's steps of the
#: recipes' size would be lost in random bfloat16 weights.
CPU = ("fsdp", "fsdp_config", "bf16")


def small(tmp_path: Path, name: str) -> list[str]:
    """Overrides of path, sizes and data alone."""
    model = ADAPTERS[CLASSES[name.split("-")[0]]]()
    model.model.save_pretrained(tmp_path / "base")
    model.processor.save_pretrained(tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("a red ring\na blue star\ntwo green circles\na ring\n")
    (tmp_path / "photos").mkdir()
    for i, spec in enumerate(draw_specs(0, 1, "train")[:4]):
        Image.fromarray(render(spec)).save(tmp_path / "photos" / f"{i}.png")
    return [
        f"model.path={tmp_path / 'base'}",
        "model.image_size=24",
        f"data.prompts={tmp_path / 'prompts.txt'}",
        f"data.images={tmp_path / 'photos'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.prompts_per_step=2",
        "data.images_per_step=2",
        "sampling.max_caption_tokens=6",
        "train.use_cpu=true",
        "steps=2",
        f"output_dir={tmp_path / 'run'}",
    ]


@pytest.mark.parametrize("name", recipe_names())
def test_two_steps(name: str, tmp_path: Path) -> None:
    config = load_config(name, small(tmp_path, name))
    for field in CPU:
        config.train.pop(field, None)
    console = Console(file=(tmp_path / "console").open("w"))
    train(config, console)
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["grad_norm"] > 0 for row in rows)
    folder = tmp_path / "run" / "checkpoint-2"
    if not config.lora.rank:
        assert (folder / "model.safetensors").is_file()
        return
    # under activation checkpointing, frozen embeddings must not cut LoRA off from its gradients
    weights = load_file(folder / "adapter_model.safetensors")
    moved = [w.abs().max() > 0 for key, w in weights.items() if "lora_B" in key]
    assert moved and torch.stack(moved).all()


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_says(name: str) -> None:
    config = load_config(name)
    training_arguments_without_gpu = {k: v for k, v in config.train.items() if k not in CPU}
    config.train = training_arguments_without_gpu
    training_arguments(config)
    head = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0]
    words = [f"viceversa train --config {name}"]
    if name != "builtin":
        words += [f"viceversa plan --config {name}", "untested"]
    for word in words:
        assert word in head, word
    given = training_arguments(load_config(name, ["train={}"]))  # what it inherits, it says
    for field in ("warmup_steps", "adam_beta2", "max_grad_norm", "weight_decay"):
        assert f"{field} {getattr(given, field):g}" in head
    assert "paper" in head  # and that none of it is the paper's


def test_a_bare_name_is_a_recipe_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_config(Path("janus-pro-1b-lora")).lora.rank > 0
    assert load_config(RECIPES / "emu3-lora.yaml").model.image_size == 512
    with pytest.raises(ConfigError, match=r"janus-pro.*no recipe.*anole-lora.*janus-pro-1b-lora"):
        load_config("janus-pro")
    assert main(["plan", "--config", "janus"]) == 2
    assert "recipes:" in capsys.readouterr().err
