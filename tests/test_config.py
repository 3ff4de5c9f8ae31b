"""config: what loads, what is refused, and what the message says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from viceversa.config import (
    Config,
    ConfigError,
    LossConfig,
    ModelConfig,
    load_config,
    save_config,
    to_dict,
)
from viceversa.rl.algorithms import algorithm_of


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_there_are_the_defaults() -> None:
    assert load_config(None) == Config()
    assert load_config(None, ["model.path=mine"]) == Config(model=ModelConfig(path="mine"))


def test_yaml_fills_sections_and_leaves_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 7\nschedule: alternate\nloss:\n  name: simpo\n  beta: 2.5\n")
    config = load_config(path)
    assert (config.steps, config.schedule, config.loss.name) == (7, "alternate", "simpo")
    assert config.loss.beta == 2.5
    assert config.sampling == Config().sampling


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_empty_file_is_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_config(write(tmp_path, text)) == Config()


def test_overrides_win_over_the_file_and_the_last_one_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: 7\nloss:\n  beta: 2.5\n  gamma: 1.0\n")
    config = load_config(path, ["steps=8", "loss.beta=3", "loss.beta=4", "model.path=a/b=c"])
    assert (config.steps, config.loss.beta, config.loss.gamma) == (8, 4.0, 1.0)
    assert config.model.path == "a/b=c"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("2E3", 2000.0), ("1.5e+2", 150.0), ("3", 3.0), ("0.5", 0.5)],
)
def test_numbers_are_floats_where_floats_are_due(tmp_path: Path, text: str, value: float) -> None:
    """1e-5 is a number (YAML 1.1 reads a string), and a whole number will do for a float."""
    for config in (
        load_config(None, [f"loss.t2i_kl={text}"]),
        load_config(write(tmp_path, f"loss: {{t2i_kl: {text}}}")),
    ):
        assert config.loss.t2i_kl == value
        assert type(config.loss.t2i_kl) is float


def test_train_passes_through(tmp_path: Path) -> None:
    """Any field, any value: transformers judges them, not this package."""
    path = write(tmp_path, "train:\n  learning_rate: 1e-5\n  lr_scheduler_kwargs: {min_lr: 0}\n")
    config = load_config(path, ["train.bf16=true", "train.report_to=[tensorboard]"])
    assert config.train == {
        "learning_rate": 1e-5,
        "lr_scheduler_kwargs": {"min_lr": 0},
        "bf16": True,
        "report_to": ["tensorboard"],
    }


def test_save_and_load_again(tmp_path: Path) -> None:
    config = load_config(
        None, ["loss.t2i_kl=1e-5", "train.learning_rate=1e-7", "schedule=t2i", "data.prompts=é.txt"]
    )
    save_config(config, tmp_path / "saved.yaml")
    again = load_config(tmp_path / "saved.yaml")
    assert again == config
    assert to_dict(again)["loss"]["t2i_kl"] == 1e-5
    assert type(again.train["learning_rate"]) is float


@pytest.mark.parametrize("text", ["1e-5", "2E3", "null", "~", "yes", "#x", "a: b", "[/b]", "é\n"])
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    config = Config(model=ModelConfig(path=text))
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def every_option(options: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each option's name and default."""
    for name, value in vars(options or Config()).items():
        if is_dataclass(value):
            yield from every_option(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


@pytest.mark.parametrize(
    "name", [name for name, value in every_option() if isinstance(value, (int, float))]
)
def test_no_option_takes_a_number_written_as_text(name: str) -> None:
    """Nor a true for a number, or a number for a true."""
    other = 1 if isinstance(dict(every_option())[name], bool) else True
    for value in ("'1'", json.dumps(other)):
        with pytest.raises(ConfigError, match=rf"^{name} is .*; it takes"):
            load_config(None, [f"{name}={value}"])


def test_every_option_says_what_it_does() -> None:
    """Docstrings of options are their descriptions, for pydantic and what is generated from it."""
    sections = [Config(), *(s for s in vars(Config()).values() if is_dataclass(s))]
    for section in sections:
        assert type(section).__doc__
        for name, value in vars(section).items():
            (owner,) = (
                k for k in type(section).__mro__ if name in vars(k).get("__annotations__", {})
            )
            assert owner.__pydantic_fields__[name].description or is_dataclass(value), name


def test_what_is_assigned_is_checked_too() -> None:
    config = Config()
    config.lora.rank = 16
    assert replace(config, steps=3).lora.rank == 16
    for wrong in (-1, 1.5, "16", True):
        with pytest.raises(ValidationError):
            config.lora.rank = wrong  # type: ignore[assignment]
    with pytest.raises(ValidationError):
        replace(config, steps=0)
    assert config.lora.rank == 16


def test_sections_are_not_shared_between_configs() -> None:
    load_config(None, ["train.bf16=true", "loss.beta=9"])
    assert load_config(None) == Config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=3", "unknown option stpes; did you mean steps?"),
        ("loss.bta=3", "unknown option loss.bta; did you mean loss.beta?"),
        ("sampling.groupsize=3", "unknown option sampling.groupsize; did you mean sampling.group"),
        ("lss.beta=3", "unknown option lss; did you mean loss?"),
        ("qqq=3", "unknown option qqq; did you mean "),
        (
            "reward.add=[{nme: dual}]",
            "unknown option reward.add[0].nme; did you mean reward.add[0]",
        ),
        ("reward.add=[{weight: high}]", "reward.add[0].weight is 'high'; it takes a number"),
        ("reward.add=[dual]", "reward.add[0] is 'dual'; it takes fields"),
        ("reward.add=dual", "reward.add is 'dual'; it takes a list"),
        ("data.streaming=1", "data.streaming is 1; it takes true or false"),
        ("steps", "override 'steps' has no '='; write section.field=value"),
        ("steps.x=1", "steps is {'x': 1}; it takes a whole number"),
        ("steps=many", "steps is 'many'; it takes a whole number"),
        ("steps=1.5", "steps is 1.5; it takes a whole number"),
        ("steps=true", "steps is True; it takes a whole number"),
        ("steps=", "steps is None; it takes a whole number"),
        ("loss.beta=high", "loss.beta is 'high'; it takes a number"),
        ("loss.beta=true", "loss.beta is True; it takes a number"),
        ("model.path=3", "model.path is 3; it takes text"),
        ("train=3", "train is 3; it takes fields"),
        ("loss=3", "loss is 3; it takes fields"),
        ("schedule=both", "schedule is 'both'; it must be 'joint', 'alternate', 't2i' or 'i2t'"),
        ("eval.split=train", "eval.split is 'train'; it must be 'tune' or 'test'"),
        ("sampling.guidance=.nan", "sampling.guidance is nan; it must be a finite number"),
        ("sampling.temperature=.inf", "sampling.temperature is inf; it must be a finite number"),
        ("loss.beta=-1", "loss.beta is -1; it must be at least 0"),
        ("seed=5000000000", "seed is 5000000000; it must be at most 4294967295"),
        ("train.run_name=2026-01-01", "override 'train.run_name=2026-01-01' is not YAML of text"),
        ("train=&a {b: *a}", "override 'train=&a {b: *a}' is not YAML of text and numbers"),
        ("steps=" + "[" * 5000, "override 'steps=[[["),
    ],
)
def test_refused_overrides_name_the_field_and_the_fix(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith(message)


def test_override_below_a_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'steps' is not a section"):
        load_config(write(tmp_path, "steps: 3"), ["steps.x=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [1", "is not YAML"),
        ("steps: 1\n  loss: 2", "is not YAML"),
        ("!!python/object:os.system {}", "is not YAML"),
        ("- steps", "holds no fields"),
        ("just words", "holds no fields"),
        ("3: 4", "unknown option 3; did you mean "),
        ("loss:\n  name: 3", "loss.name is 3; it takes text"),
        ("loss:", "loss is None; it takes fields"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"steps: \xff\xfe")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml' does not exist"):
        load_config(tmp_path / "none.yaml")


# check


@pytest.mark.parametrize(
    "name",
    [
        "steps",
        "sampling.group_size",
        "sampling.batch_rows",
        "sampling.max_caption_tokens",
        "reward.batch_rows",
        "loss.updates_per_rollout",
        "data.prompts_per_step",
        "data.images_per_step",
        "data.scenes_size",
    ],
)
@pytest.mark.parametrize("value", [0, -4])
def test_counts_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is {value}; it must be at least 1"):
        load_config(None, [f"{name}={value}", "loss.name=raft"])


@pytest.mark.parametrize("loss", ["simpo", "grpo", "dpo"])
def test_a_group_of_one_compares_nothing(loss: str) -> None:
    with pytest.raises(ConfigError, match="group_size is 1; a group compares at least 2"):
        load_config(None, [f"loss.name={loss}", "sampling.group_size=1"])
    assert load_config(None, [f"loss.name={loss}", "sampling.group_size=2"]).loss.name == loss


@pytest.mark.parametrize("loss", ["simpo", "grpo", "dpo", "raft"])
def test_every_loss_needs_two_to_compare(loss: str) -> None:
    with pytest.raises(ConfigError, match="at least 2 outputs"):
        load_config(None, [f"loss.name={loss}", "sampling.group_size=1"])


def test_temperature_is_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.temperature is -0\.1; it must be at least 0"):
        load_config(None, ["sampling.temperature=-0.1"])
    with pytest.raises(ConfigError, match="every output of a group"):
        load_config(None, ["sampling.temperature=0"])


@pytest.mark.parametrize(
    ("value", "bound"),
    [
        ("0", "at least 1e-06"),
        ("-0.5", "at least 1e-06"),
        ("1.01", "at most 1"),
        (".nan", "a finite"),
    ],
)
def test_top_p_is_a_share(value: str, bound: str) -> None:
    with pytest.raises(ConfigError, match=rf"sampling\.top_p is .*; it must be {bound}"):
        load_config(None, [f"sampling.top_p={value}"])


@pytest.mark.parametrize("value", [0.01, 1.0])
def test_top_p_limits(value: float) -> None:
    assert load_config(None, [f"sampling.top_p={value}"]).sampling.top_p == value


@pytest.mark.parametrize("loss", ["simpo", "dpo", "raft"])
def test_only_grpo_reuses_a_rollout(loss: str) -> None:
    with pytest.raises(ConfigError, match=f"updates_per_rollout is 2; loss.name={loss} takes 1"):
        algorithm_of(LossConfig(name=loss, updates_per_rollout=2))
    assert algorithm_of(LossConfig(updates_per_rollout=2)).several_updates


def test_an_unknown_algorithm_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"^loss\.name is 'ppo'; choose one of simpo, grpo, dpo, raft"
    ):
        algorithm_of(LossConfig(name="ppo"))
    with pytest.raises(ConfigError, match=r"^loss\.name is 'no\.such:Loss'; it cannot be imported"):
        algorithm_of(LossConfig(name="no.such:Loss"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("version", "1"),
        ("state_dict_type", "SHARDED_STATE_DICT"),
        ("cpu_ram_efficient_loading", "true"),
    ],
)
def test_ways_of_sharding_that_cannot_work(option: str, value: str) -> None:
    asked = f"train.fsdp_config.{option}={value}"
    with pytest.raises(ConfigError, match=rf"^train\.fsdp_config\.{option} is .*; it must be"):
        load_config(None, ["model.path=made", asked, "train.fsdp=true"])
    load_config(None, ["model.path=made", asked])


def test_likelihoods_are_not_scaled_group_by_group() -> None:
    """The spread of a group would cancel the level that tells it from the others."""
    power = ["reward.likelihood_power=4"]
    with pytest.raises(ConfigError, match=r"^reward\.scale is group .* batch or none"):
        load_config(None, [*power, "reward.scale=group"])
    load_config(None, power)


# known failures: strict, so a fix in src shows up here


def test_override_that_is_not_yaml_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        load_config(None, ["steps=[1"])


@pytest.mark.parametrize(
    "override",
    [
        "sampling.temperature=.nan",
        "sampling.top_k=-3",
        "loss.clip_low=-1",
        "loss.t2i_kl=-1",
        "reward.average_decay=7",
        "eval.temperature=-1",
        "eval.specs_per_kind=-2",
    ],
)
def test_values_that_cannot_be(override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(None, [override])
