"""Every option, one dataclass per concern. Loads YAML, takes overrides, names unknown fields."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import operator
import os
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from viceversa.files import write_whole

#: Of a file that a run wrote. YAML that is cut is YAML still, so its end is marked.
FIRST_LINE = "# All options of a run. The last line is three dots.\n"
LAST_LINE = "\n..."


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-5 as a number, as people mean it."""


class _Dumper(yaml.SafeDumper):
    """YAML that quotes the text 1e-5, so that it is read as text again."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


class ConfigError(ValueError):
    """An option that cannot be: the message names the field, the value and the fix."""


@dataclass
class ModelConfig:
    path: str = "builtin"
    """`builtin`, a folder in Hugging Face layout, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. Trained in bfloat16, most small updates are lost to rounding."""
    image_size: int = 0
    """Side of the pictures in pixels, for a model that can choose (Emu3); 0 is the model's own."""


@dataclass
class LoraConfig:
    rank: int = 0
    """0 trains every weight of the language model and its heads; more trains LoRA of this rank."""
    alpha: int = 32
    """LoRA weights act times alpha / rank."""
    dropout: float = 0.0
    """In the backward pass alone: what is sampled and scored is the whole model."""
    modules: str = ""
    """A regular expression of module names; empty: the linear layers of the language model."""


@dataclass
class DataConfig:
    prompts: str = "scenes"
    """`scenes`, a file (.txt, one a line; .jsonl, .csv, .parquet), or a dataset: `hf://owner/name`,
    `hf://owner/name/config:split` or `hf:///folder:split`; the split is `train` if unnamed."""
    prompt_column: str = ""
    """Empty: the first there is of prompt, text, caption."""
    images: str = "scenes"
    """`scenes`, a folder tree of pictures and webdataset shards (.tar), shards by name
    (`a-{000..007}.tar`, `a-*.tar`), or a dataset as above."""
    image_column: str = ""
    """Of a dataset; empty: its first column of pictures."""
    crop: Literal["center", "pad"] = "center"
    """How a picture becomes square. `pad` keeps all of it, and spends image tokens, and so part of
    the reward, on white bars."""
    streaming: bool = False
    """For sets larger than memory: read in order through a shuffle buffer, each picture checked
    when its turn comes instead of before training."""
    cache_dir: str = "~/.cache/viceversa"
    """Of verdicts on pictures, and of the image tokens of pictures."""
    prompts_per_step: int = 16
    """t2i groups in one optimizer step, over all processes."""
    images_per_step: int = 16
    """i2t groups in one optimizer step, over all processes."""
    scenes_size: int = 4096
    """Prompts, and pictures, drawn from the built-in world."""


@dataclass
class SamplingConfig:
    group_size: int = 8
    temperature: float = 1.0
    """Of the distribution that is sampled and optimised; evaluation also takes 0, the likeliest."""
    top_k: int = 0
    """0 keeps every token. Top-k and top-p shape what is sampled, not what is optimised."""
    top_p: float = 1.0
    guidance: float = 1.0
    """Classifier-free guidance while drawing; 1 is none, and costs half."""
    max_caption_tokens: int = 32
    instruction: str = ""
    """What an image is captioned with; empty takes the model's own."""
    batch_rows: int = 512
    """Rows decoded at once; never changes the result."""


@dataclass
class RewardTerm:
    name: str = "dual"
    """`dual`; `verifier` (labels) or `random`, baselines to compare with; or a function of your
    own by its import path: `mypackage.rewards:redness`. A class is called with `options` first."""
    weight: float = 1.0
    """Several rewards add up: what each is turned into, times its weight."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of a class."""
    scale: Literal["group", "batch", "none"] = "batch"
    """What advantages are divided by: the standard deviation of the rewards in their group (as
    published), that of the whole step, per direction, about the groups' means, or nothing."""
    likelihood_power: float = 0.0
    """Above 0, outputs are compared by the likelihood per token to this power, not by its
    logarithm, the reward: what is half right counts for little beside what is right. Inputs are
    compared, too: one that is unlikely however well drawn counts for less."""


@dataclass
class RewardConfig(RewardTerm):
    scorer: Literal["live", "frozen", "average"] = "live"
    """Who reads the outputs back: the policy, the model it started from, or a slow average."""
    average_decay: float = 0.99
    """Of the slow average, per optimizer step."""
    t2i_own: float = 0.0
    """Weight of the dual reward's second term: how likely the scorer finds the output itself, given
    its input, in nats summed over its tokens and divided as the first term is. For a scorer that is
    `frozen`: a live one feeds on itself."""
    i2t_own: float = 0.0
    """The same for captions."""
    batch_rows: int = 256
    """Rows scored at once; never changes the result."""
    add: list[RewardTerm] = field(default_factory=list)
    """More rewards: a name, a weight and, if need be, scale, likelihood_power and options."""

    def own(self, direction: str) -> float:
        return self.t2i_own if direction == "t2i" else self.i2t_own

    def terms(self) -> list[RewardTerm]:
        """This reward and those added to it."""
        return [self, *self.add]


@dataclass
class LossConfig:
    name: str = "grpo"
    """`simpo`, `grpo`, `dpo`, `raft`, or a class of your own: `mypackage.losses:MyLoss`."""
    beta: float = 5.0
    """SimPO's scale of differences of mean log-probs."""
    dpo_beta: float = 0.1
    """DPO's scale of differences of summed log-probs."""
    gamma: float = 0.25
    """SimPO's target margin, in reward units (after beta)."""
    min_gap: float = 0.0
    """Pairs whose rewards differ by less (nats per token) are left out, and counted."""
    group_share: float = 1.0
    """Of a step's groups of one direction, those that are learned from: the ones whose rewards lie
    furthest apart. The others are counted; they have the least to teach, and cost as much."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    t2i_kl: float = 0.0
    """Weight of the KL to the starting model, nats per token of the rows learned from, within the
    loss of `t2i`. An estimate from samples of the policy: biased for rows picked by reward."""
    i2t_kl: float = 0.0
    """The same within the loss of `i2t`: `i2t_weight` weighs it, too."""
    updates_per_rollout: int = 1
    """Optimizer steps taken on one rollout (GRPO)."""
    logprob_policy: Literal["conditional", "guided"] = "conditional"
    """With guidance other than 1, the distribution that is optimised."""
    t2i_weight: float = 1.0
    """Balances the directions, whose gradients may differ by far (see `t2i/grad_norm`)."""
    i2t_weight: float = 1.0
    batch_rows: int = 0
    """Rows of one backward pass; 0 is all at once. Never changes the result."""
    direction_norms_every: int = 10
    """Steps between logs of each direction's gradient norm (one more backward pass); 0 is never."""

    def weight(self, direction: str) -> float:
        return self.t2i_weight if direction == "t2i" else self.i2t_weight

    def kl(self, direction: str) -> float:
        return self.t2i_kl if direction == "t2i" else self.i2t_kl


@dataclass
class EvalConfig:
    specs_per_kind: int = 100
    """Built-in world only; 0 skips the evaluation."""
    held_out_per_kind: int = 50
    split: Literal["tune", "test"] = "test"
    seed: int = 0
    temperature: float = 1.0
    guidance: float = 1.0


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    schedule: Literal["joint", "alternate", "t2i", "i2t"] = "joint"
    """Which directions one optimizer step trains."""
    steps: int = 100
    seed: int = 0
    output_dir: str = "runs/latest"
    train: dict[str, Any] = field(default_factory=dict)
    """Any field of transformers.TrainingArguments."""

    def inputs(self) -> dict[str, str]:
        """Where the inputs come from, by direction: those that the schedule needs."""
        used = {"t2i": self.data.prompts, "i2t": self.data.images}
        return {self.schedule: used[self.schedule]} if self.schedule in used else used


#: Bytes of a file's name: less than the 255 of most file systems, for what is added to it.
LONGEST_NAME = 200

#: Recipes that come with the package; a config's path may be the bare name of one.
RECIPES = Path(__file__).parent / "recipes"


def load_config(
    path: str | Path | None, overrides: typing.Sequence[str] = (), of_run: bool = False
) -> Config:
    """A Config from a YAML file and `section.field=value` overrides.

    `path` may be the bare name of a packaged recipe. None is the defaults; for the built-in model,
    whose learning rate no large one would survive, the recipe `builtin`. Raises ConfigError for an
    unreadable file, an unknown field (with the nearest name), a value of the wrong type or outside
    its choices; where the file is `of_run`, written by a run, also for one that is cut.
    """
    tree = read_options(path, overrides, of_run)
    if path is None and build(tree).model.path == "builtin":
        tree = merged(_read_yaml(RECIPES / "builtin.yaml"), tree)
    config = build(tree)
    check(config)
    return config


def read_options(
    path: str | Path | None, overrides: typing.Sequence[str] = (), of_run: bool = False
) -> dict[str, Any]:
    """The options that a YAML file and overrides name, by section; errors as of `load_config`."""
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(file_of(Path(path)), of_run)
    for override in overrides:
        key, sep, text = override.partition("=")
        if not sep:
            raise ConfigError(f"override {override!r} has no '='; write section.field=value")
        *parents, leaf = key.strip().split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is not a section")
        node[leaf] = _parse(text, f"override {override!r}")
    return tree


def build(tree: dict[str, Any]) -> Config:
    """Raises ConfigError for unknown fields and values of the wrong type; see also `check`."""
    return _build(Config, tree, "")


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the leaves of `over` in place of its own."""
    found = dict(tree)
    for key, value in over.items():
        mine = found.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            value = merged(mine, value)
        found[key] = value
    return found


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def file_of(path: Path) -> Path:
    """A file as it is named; a bare name that is no file is a packaged recipe's."""
    if path.parent != Path() or path.suffix or len(os.fsencode(path)) > LONGEST_NAME:
        return path
    if path.is_file():
        return path
    if path.name not in recipe_names():
        known = ", ".join(recipe_names())
        raise ConfigError(f"config {str(path)!r} is no file, and no recipe; recipes: {known}")
    return RECIPES / f"{path.name}.yaml"


def _read_yaml(path: Path, of_run: bool = False) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"config file {str(path)!r} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {str(path)!r} is not YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    if (of_run or text.startswith(FIRST_LINE)) and LAST_LINE not in text:
        raise ConfigError(f"config file {str(path)!r} is cut: its last line, ..., is missing")
    tree = _parse(text, f"config file {str(path)!r}") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {str(path)!r} holds no fields")
    return tree


def _parse(text: str, what: str) -> Any:
    """YAML of sections, lists, text and numbers. Raises ConfigError, naming `what`, for other."""
    try:
        found = yaml.load(text, _Loader)
        json.dumps(found)  # no dates, no sets, nothing that holds itself
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{what} is not YAML of text and numbers: {error}") from error
    return found


def _build(kind: Any, tree: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ConfigError(f"unknown option {prefix}{key}; did you mean {prefix}{near[0]}?")
    return kind(**{k: _value(hints[k], v, prefix + k) for k, v in tree.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{name} is {value!r}; it is a section of fields")
        return _build(hint, value, name + ".")
    origin = typing.get_origin(hint)
    if origin is list and isinstance(value, list):
        (kind,) = typing.get_args(hint)
        return [_value(kind, item, f"{name}[{i}]") for i, item in enumerate(value)]
    if origin is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = origin or hint
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r}; it takes a {wanted.__name__}")
    return value


INF = math.inf

#: field -> smallest value, largest value; all are finite
_BOUNDS: dict[str, tuple[float, float]] = {
    "steps": (1, INF),
    "seed": (0, 2**32 - 1),
    "model.image_size": (0, INF),
    "lora.rank": (0, INF),
    "lora.alpha": (0, INF),
    "lora.dropout": (0, 1),
    "loss.batch_rows": (0, INF),
    "eval.seed": (0, 2**32 - 2),
    "data.prompts_per_step": (1, INF),
    "data.images_per_step": (1, INF),
    "data.scenes_size": (1, 1_000_000),
    "sampling.group_size": (1, INF),
    "sampling.temperature": (0, INF),
    "sampling.top_k": (0, INF),
    "sampling.top_p": (1e-6, 1),
    "sampling.guidance": (-INF, INF),
    "sampling.max_caption_tokens": (1, INF),
    "sampling.batch_rows": (1, INF),
    "reward.average_decay": (0, 1),
    "reward.likelihood_power": (0, 100),
    "reward.t2i_own": (0, INF),
    "reward.i2t_own": (0, INF),
    "reward.batch_rows": (1, INF),
    "loss.beta": (0, INF),
    "loss.gamma": (-INF, INF),
    "loss.min_gap": (0, INF),
    "loss.group_share": (1e-6, 1),
    "loss.clip_low": (0, 1),
    "loss.clip_high": (0, INF),
    "loss.t2i_kl": (0, INF),
    "loss.i2t_kl": (0, INF),
    "loss.updates_per_rollout": (1, INF),
    "loss.t2i_weight": (0, INF),
    "loss.direction_norms_every": (0, INF),
    "loss.dpo_beta": (0, INF),
    "loss.i2t_weight": (0, INF),
    "eval.specs_per_kind": (0, INF),
    "eval.held_out_per_kind": (0, INF),
    "eval.temperature": (0, INF),
    "eval.guidance": (-INF, INF),
}


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Raise ConfigError for a value outside its bounds, for NaN and for infinities."""
    if low <= value <= high and abs(value) < INF:
        return
    span = f"from {low} to {high}" if high < INF else f"at least {low}" if low > -INF else ""
    raise ConfigError(f"{name} is {value}; it must be {span or 'a finite number'}")


def check(config: Config) -> None:
    """Raise ConfigError for values that cannot work, together or at all."""
    for name, bounds in _BOUNDS.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        check_number(name, value, *bounds)
    if config.sampling.temperature == 0:
        raise ConfigError("sampling.temperature is 0; every output of a group would be the same")
    if config.sampling.group_size < 2:
        raise ConfigError("sampling.group_size is 1; a group compares at least 2 outputs")
    if config.steps % config.loss.updates_per_rollout:
        raise ConfigError(
            f"steps is {config.steps}; it must be a multiple of loss.updates_per_rollout "
            f"({config.loss.updates_per_rollout})"
        )
    for term in config.reward.terms():
        if term.likelihood_power and term.scale == "group":
            raise ConfigError(
                f"reward.scale is group for {term.name}; with likelihood_power it must be batch or "
                "none"
            )
    if config.train.get("fsdp"):
        _check_sharded(config)


def _check_sharded(config: Config) -> None:
    """Raise ConfigError for ways of FSDP that cannot work here."""
    options = config.train.get("fsdp_config") or {}
    works = {
        "version": ("2",),
        "state_dict_type": ("FULL_STATE_DICT",),  # others save no weights in Hugging Face layout
        "cpu_ram_efficient_loading": ("False",),  # the image tokenizer stays whole, and loaded
    }
    for name, values in works.items():
        if name in options and str(options[name]) not in values:
            raise ConfigError(
                f"train.fsdp_config.{name} is {options[name]}; it must be {values[0]}, or left out"
            )


def load_object(name: str, path: str, known: typing.Iterable[str] = ()) -> Any:
    """Import what `package.module:object` names, also from the current folder.

    Raises ConfigError, naming the option, where there is no such thing.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ConfigError(
            f"{name} is {path!r}; choose one of {', '.join(known)}, or package.module:object"
        )
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as `python -m` has it
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{name} is {path!r}; it cannot be imported: {error}") from error


def to_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write every option, and an end without which the file is refused as cut."""
    text = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, explicit_end=True)
    write_whole(path, FIRST_LINE + text)


def check_folder(text: str, name: str) -> Path:
    """The folder called `text`. Raises ConfigError, naming the option, where none can be made or
    written."""
    path = _usable_path(text, name)
    there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        raise ConfigError(f"{name} is {text!r}; {str(there)!r} is a file: choose a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} is {text!r}; {str(there)!r} cannot be written")
    return path


def check_file(path: Path, name: str) -> None:
    """Raise ConfigError, naming the option, where no file of that name can be written."""
    if path.is_dir():
        raise ConfigError(f"{name} is {str(path)!r}, a folder; name a file")
    check_folder(str(path.parent), name)
    _usable_path(str(path), name)


def _usable_path(text: str, name: str) -> Path:
    """Raises ConfigError for what no file system, or no text file, takes as a name."""
    path = Path(text)
    if not text.strip():
        raise ConfigError(f"{name} is {text!r}; it takes a name")
    if "\0" in text or text.encode(errors="replace").decode() != text:
        raise ConfigError(f"{name} is {text!r}; it holds characters that no name can have")
    if any(len(part.encode()) > LONGEST_NAME for part in path.parts):
        raise ConfigError(f"{name} is {text!r}; choose a name of at most {LONGEST_NAME} bytes")
    return path
