"""Settings that a user left open: decided by the model and the GPU, said, and always overridden."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from builders import ADAPTERS, save
from viceversa import cli
from viceversa.cli import main
from viceversa.config import (
    Config,
    ConfigError,
    LoraConfig,
    ModelConfig,
    load_config,
    recipe_names,
    save_config,
)
from viceversa.models import geometry, load_adapter
from viceversa.models.geometry import KNOWN, geometry_of, known_as
from viceversa.models.lora import save_lora
from viceversa.plan import defaults, gpus
from viceversa.plan import plan as planning
from viceversa.plan.defaults import SHARDED, WITH_LORA, by_size, resolve
from viceversa.plan.gpus import GPUS, Gpu, own_gpu
from viceversa.plan.plan import GIB, make_plan
from viceversa.training import run as run_module

CARD = GPUS["rtx4090"]
#: Set by the user, so that nothing is fitted.
BUDGETS = [f"{name}=8" for name in defaults.BUDGETS[:3]] + ["train.activation_checkpointing=true"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny random Janus."""
    adapter = ADAPTERS["janus"]()
    save(adapter, tmp_path / "mine")
    return tmp_path / "mine"


@pytest.fixture
def released(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as if its geometry were Janus-Pro-7B's."""
    shape = AutoConfig.from_pretrained(folder)
    monkeypatch.setattr(geometry, "KNOWN", {"janus-pro-7b": lambda: shape})
    return folder


def settings(folder: Path, *overrides: str, config: Path | None = None, **more: Any) -> Config:
    return resolve(config, [f"model.path={folder}", *overrides], **more)[0]


def test_a_released_model_is_known_by_its_geometry(tmp_path: Path) -> None:
    for name, build in KNOWN.items():
        build().save_pretrained(tmp_path / name)
        assert known_as(geometry_of(str(tmp_path / name))) == name.replace("chameleon", "anole")
    other = geometry._janus_pro(2048, 23, 16, 5632)
    assert known_as(other) is None


def test_every_recipe_is_that_of_a_geometry() -> None:
    found = set()
    for name in (n for n in recipe_names() if not n.startswith("builtin")):
        config = load_config(name)
        recipes = WITH_LORA if config.lora.rank else SHARDED
        found.add(recipes[known_as(geometry_of(config.model.path)) or ""])
    assert found == {*WITH_LORA.values(), *SHARDED.values()}


def test_a_released_model_takes_its_recipe(released: Path) -> None:
    config, said = resolve(None, [f"model.path={released}", "data.prompts=a.txt"])
    expected = load_config("janus-pro-7b-lora")
    expected.model.path, expected.data.prompts = str(released), "a.txt"
    expected.data.images, expected.output_dir = Config().data.images, Config().output_dir
    assert config == expected
    assert "recipe janus-pro-7b-lora" in said and "--set lora.rank=0" in said and "\n" not in said


def test_what_the_user_sets_wins(released: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("loss: {beta: 2}\ntrain: {learning_rate: 1e-4}\n")
    config = settings(released, "sampling.group_size=4", "lora.rank=8", config=path, lora=True)
    assert (config.loss.beta, config.sampling.group_size, config.lora.rank) == (2.0, 4, 8)
    assert config.train["learning_rate"] == 1e-4
    assert config.loss.name == "simpo"  # the rest is the recipe's
    save_config(config, path)
    assert resolve(path) == (config, "")  # a run's own file leaves nothing open
    assert resolve("janus-pro-1b-lora") == (load_config("janus-pro-1b-lora"), "")
    for flag in (False, True):
        assert settings(released, lora=flag).lora.rank == 64
    whole = settings(released, "lora.rank=0", *BUDGETS, gpu=CARD)
    assert whole.loss == replace(Config().loss, batch_rows=8) and whole.train["bf16"]
    sharded = settings(released, "train.fsdp=true")
    assert sharded.lora.rank == 0 and sharded.train == load_config("janus-pro-7b-full-fsdp2").train


def test_a_lora_checkpoint_is_known_by_its_base(released: Path, tmp_path: Path) -> None:
    adapter = load_adapter(ModelConfig(str(released)), LoraConfig(rank=2))
    save_lora(adapter, tmp_path / "lora")
    assert "recipe janus-pro-7b-lora" in resolve(None, [f"model.path={tmp_path / 'lora'}"])[1]
    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(released), str(tmp_path / "gone")))
    with pytest.raises(ConfigError, match=r"adapter_config\.json names the base: .*gone"):
        resolve(None, [f"model.path={tmp_path / 'lora'}"])


def test_another_model_on_a_gpu(folder: Path) -> None:
    config, said = resolve(None, [f"model.path={folder}"], gpu=CARD)
    assert (config.model.dtype, config.lora.rank) == ("bfloat16", defaults.LORA_RANK)
    rate = config.train["learning_rate"]
    assert f"train.learning_rate={rate}" in said and "model.dtype=bfloat16" in said
    assert config.sampling == Config().sampling  # all rows fit
    given = ["model.dtype=float32", "train.learning_rate=1", *BUDGETS]
    mine, said = resolve(None, [f"model.path={folder}", *given], gpu=CARD)
    assert mine.model.dtype == "float32" and mine.train["learning_rate"] == 1
    assert said.startswith("what was not set") and "dtype" not in said and "batch_rows" not in said
    plain = settings(folder)
    assert plain.lora.rank == 0 and plain.train == {}
    assert settings(folder, "train.use_cpu=true", gpu=CARD).lora.rank == 0
    assert settings(folder, lora=True).lora.rank == defaults.LORA_RANK
    assert resolve(None, [], gpu=CARD) == (load_config("builtin"), "")


def test_the_rate_falls_with_size() -> None:
    rates = [by_size(n, whole=True)["train.learning_rate"] for n in (10**6, 10**9, 7_400_000_000)]
    assert rates == [3e-4, 3.8e-6, 1e-6]
    assert by_size(7_400_000_000, whole=False)["train.learning_rate"] == 1e-5


def test_budgets_are_fitted_to_the_gpu(folder: Path) -> None:
    words = ["data.prompts_per_step=64", "data.images_per_step=64"]
    roomy = settings(folder, *words, gpu=CARD)
    small = replace(CARD, memory=0.4 * make_plan(roomy).peak.bytes / GIB)
    config, said = resolve(None, [f"model.path={folder}", *words], gpu=small)
    assert make_plan(config).fits(small.memory)
    assert 0 < config.loss.batch_rows < 512
    assert f"loss.batch_rows={config.loss.batch_rows}" in said
    words += ["loss.batch_rows=0", "train.activation_checkpointing=false"]
    config, said = resolve(None, [f"model.path={folder}", *words], gpu=small)
    assert config.loss.batch_rows == 0 and "does not fit" in said


def test_train_and_plan_decide_alike(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Config] = {}
    honest = planning.make_plan

    def planned(config: Config, *more: Any) -> Any:
        seen["plan"] = config
        return honest(config, *more)

    monkeypatch.setattr(planning, "make_plan", planned)
    monkeypatch.setattr(run_module, "train", lambda config, *_: seen.update(train=config))
    monkeypatch.setattr(gpus, "own_gpu", lambda: replace(CARD, memory=0.013))
    words = f"--model {released} --prompts p.txt --images photos --steps 7 --seed 3 --lora"
    words += f" --output {tmp_path / 'run'} --set loss.beta=2"
    assert main(["train", *words.split()]) == 0
    main(["plan", *words.split(), "--gpu", "rtx4090", "--memory", "0.013"])
    assert seen["plan"] == seen["train"]
    assert seen["train"].loss.batch_rows < load_config("janus-pro-7b-lora").loss.batch_rows
    main(["plan", *words.split()])  # of this machine's own
    assert seen["plan"] == seen["train"]


def test_plan_takes_the_options_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {}
    for command in ("train", "plan"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        listed = re.findall(r"^\W*(?:-h, )?--([a-z-]+)", capsys.readouterr().out, re.MULTILINE)
        flags[command] = set(listed)
    assert flags["train"] == {
        *("config", "model", "prompts", "images", "steps", "seed", "output", "set", "lora"),
        *("resume", "stop-on-collapse", "help"),
    }
    assert flags["plan"] - flags["train"] == {"gpu", "memory", "processes", "prompt-tokens", "json"}
    assert flags["train"] < flags["plan"]
    assert "options" in inspect.signature(cli.plan).parameters


def test_this_machines_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA L40S", total_memory=47 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_gpu() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert own_gpu() == Gpu("NVIDIA L40S", 47)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gpu"), [("7B", "h100"), ("1B", "rtx4090")])
def test_janus_pro_fits_as_the_pages_say(
    model: str, gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"plan --model deepseek-community/Janus-Pro-{model} --lora --gpu {gpu}"
    assert main(words.split()) == 0
    text = capsys.readouterr().out
    assert "recipe janus-pro" in text.split("phase")[0]
    peak = re.search(r"peak ([\d.]+ GiB) in", text)
    assert peak is not None
    for name in ("README.md", "docs/your-model.md"):
        page = (Path(__file__).parents[2] / name).read_text(encoding="utf-8")
        assert f"{peak[1]} of an" in page and f"viceversa {words}" in page
