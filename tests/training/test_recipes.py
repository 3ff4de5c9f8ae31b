"""Every packaged recipe loads, says where its numbers come from, and takes two steps."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import recipe_steps
from builders import ADAPTERS, save
from processes import apart, launch
from recipe_steps import overrides
from viceversa.cli import main
from viceversa.config import RECIPES, ConfigError, load_config, recipe_names
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs
from viceversa.training.arguments import training_arguments
from viceversa.training.run import train

CLASSES = {"builtin": "janus", "janus": "janus", "emu3": "emu3", "anole": "chameleon"}
SHARDED = [name for name in recipe_names() if "fsdp" in name]


def prepare(out: Path, name: str) -> Path:
    """A tiny model of the recipe's class, prompts and pictures, in the recipe's folder in `out`."""
    folder = out / name
    folder.mkdir()
    model = ADAPTERS[CLASSES[name.split("-")[0]]]()
    save(model, folder / "base")
    (folder / "prompts.txt").write_text("a red ring\na blue star\ntwo green circles\na ring\n")
    (folder / "photos").mkdir()
    for i, spec in enumerate(draw_specs(0, 1, "train")[:4]):
        Image.fromarray(render(spec)).save(folder / "photos" / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in SHARDED])
def test_two_steps(name: str, tmp_path: Path) -> None:
    folder = prepare(tmp_path, name)
    config = load_config(name, [*overrides(folder, "run"), "train.use_cpu=true"])
    console = Console(file=(tmp_path / "console").open("w"))
    train(config, console)
    rows = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(row["grad_norm"] > 0 for row in rows)
    checkpoint = folder / "run" / "checkpoint-2"
    if not config.lora.rank:
        assert (checkpoint / "model.safetensors").is_file()
        return
    # under activation checkpointing, frozen embeddings must not cut LoRA off from its gradients
    weights = load_file(checkpoint / "adapter_model.safetensors")
    moved = [w.abs().max() > 0 for key, w in weights.items() if "lora_B" in key]
    assert moved and torch.stack(moved).all()


@pytest.mark.parametrize("name", SHARDED)
def test_one_process_cannot_shard(name: str, tmp_path: Path) -> None:
    config = load_config(name, overrides(prepare(tmp_path, name), "run"))
    with pytest.raises(ConfigError, match=r"^train\.fsdp is True in one process; start .*torchrun"):
        train(config, Console(file=(tmp_path / "console").open("w")))
    assert not (tmp_path / name / "run").exists()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipe_steps.py wrote of every recipe: of two processes, and of one without sharding."""
    out = tmp_path_factory.mktemp("recipes")
    for name in recipe_names():
        prepare(out, name)
    script = str(Path(recipe_steps.__file__))
    launch(script, str(out), *recipe_names(), cwd=out)
    here = Path(script).parent
    path = os.pathsep.join([str(here), str(here.parent / "src")])
    one = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, script, str(out), *recipe_names()], env=one, check=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_two_steps_of_two_processes(name: str, compared: Path) -> None:
    """As the recipe is: only paths, counts, caption length and output are not its own."""
    for rank in (0, 1):
        record = json.loads((compared / name / f"steps-{rank}.json").read_text())
        assert record["world_size"] == 2
        assert record["sharded"] == (name in SHARDED)
        assert record["wrapped_layers"] == (2 if name in SHARDED else 0)  # all there are
        assert [row["step"] for row in record["rows"]] == [1, 2]
        assert all(row["grad_norm"] > 0 for row in record["rows"])
    if name in SHARDED:
        assert record["codec"] == "torch.float32"  # image ids are cached, by its weights
    files = {p.name for p in (compared / name / "run" / "checkpoint-2").iterdir()}
    lora = load_config(name).lora.rank
    assert ("adapter_model.safetensors" if lora else "model.safetensors") in files
    assert "pytorch_model_fsdp.bin" not in files


class Compared:
    """One cell of one recipe: what the model gave to each output, and the last gradients."""

    def __init__(self, folder: Path, cell: str, *ranks: object):
        self.rewards: dict[str, list[float]] = {}
        for rank in ranks:
            self.rewards |= json.loads((folder / f"rewards-{cell}-{rank}.json").read_text())
        self.gradients = load_file(folder / f"gradients-{cell}-{ranks[-1]}.safetensors")

    def apart(self, other: Compared) -> tuple[float, float]:
        """Root mean square difference of rewards, in nats a token; relative one of gradients."""
        assert self.rewards.keys() == other.rewards.keys()
        squares = [
            (a - b) ** 2
            for key, row in self.rewards.items()
            for a, b in zip(row, other.rewards[key], strict=True)
        ]
        return math.sqrt(sum(squares) / len(squares)), apart(self.gradients, other.gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_two_processes_compute_what_one_does(name: str, compared: Path) -> None:
    folder = compared / name
    exact = Compared(folder, "exact", "alone")
    rewards, gradients = Compared(folder, "exact", 0, 1).apart(exact)
    assert rewards < 1e-4
    assert gradients < 1e-5
    # as the recipe is, in bfloat16: no further from float32 than one process is
    found, alone = Compared(folder, "as-is", 0, 1).apart(exact), Compared(folder, "as-is", "alone")
    plain = alone.apart(exact)
    assert found[0] <= 1.25 * plain[0] + 1e-5
    if name in SHARDED:  # gathers norms and embeddings in bfloat16, too, as a bfloat16 model has
        plain = Compared(folder, "bf16-weights", "alone").apart(exact)
    assert found[1] <= 1.25 * plain[1] + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(recipe_steps.KEPT))
@pytest.mark.parametrize("name", SHARDED)
def test_weights_of_another_time_are_sharded(name: str, cell: str, compared: Path) -> None:
    """The second step of a frozen or average scorer, DPO and a KL is that of one process."""
    two, one = Compared(compared / name, cell, 0, 1), Compared(compared / name, cell, "alone")
    rewards, gradients = two.apart(one)
    assert rewards < 1e-4
    assert gradients < 2e-3  # of the weights after a step that was equal to rounding
    if cell in ("frozen", "average"):  # and not what the live policy would say
        live = Compared(compared / name, "kl", "alone")
        assert one.apart(live)[0] > 1e-2


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_says(name: str) -> None:
    config = load_config(name)
    if name not in SHARDED:
        training_arguments(config)
    head = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0]
    words = [f"viceversa train --config {name}"]
    if not name.startswith("builtin"):
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
