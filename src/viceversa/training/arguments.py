"""`train.*` as transformers' TrainingArguments: our defaults, and what cannot be is refused now.

TrainingArguments and the Trainer check many fields late, by using them, or never.
"""

from __future__ import annotations

import types
import typing
from typing import Any, cast

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from viceversa.config import INF, Config, ConfigError, check_number

#: What the Config's own fields say.
FIXED = {"max_steps", "num_train_epochs", "per_device_train_batch_size", "output_dir", "seed"}

#: Of losses, inputs and evaluations that are not ours.
MEANINGLESS = {
    "eval_strategy",
    "eval_on_start",
    "include_num_input_tokens_seen",
    "label_smoothing_factor",
    "load_best_model_at_end",
    "neftune_noise_alpha",
    "use_liger_kernel",
}

#: field -> smallest value, largest value
BOUNDS = {
    "learning_rate": (0, INF),
    "weight_decay": (0, INF),
    "adam_beta1": (0, 0.999999),
    "adam_beta2": (0, 0.999999),
    "adam_epsilon": (1e-30, INF),
    "max_grad_norm": (0, INF),
    "warmup_steps": (0, INF),
    "gradient_accumulation_steps": (1, INF),
    "logging_steps": (0, INF),
    "save_steps": (0, INF),
    "save_total_limit": (0, INF),
    "dataloader_num_workers": (0, 64),
}


def training_arguments(config: Config) -> TrainingArguments:
    """TrainingArguments with our defaults, every field of which `config.train` may set.

    Raises ConfigError for a field that is unknown or set elsewhere, a value of another type or
    outside its bounds, and an optimizer, schedule or tracker that cannot be made.
    """
    defaults: dict[str, Any] = {
        "learning_rate": 3e-5,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 5,
        "weight_decay": 0.0,
        "adam_beta2": 0.99,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": _save_every(config),
        "save_total_limit": 2,
        "report_to": "none",
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }
    given = _checked(config.train)
    try:
        args = TrainingArguments(
            output_dir=config.output_dir,
            max_steps=config.steps,
            per_device_train_batch_size=1,
            seed=config.seed,
            **{**defaults, **given},
        )
        _try(args)
    except Exception as error:  # fields are checked by using them
        raise ConfigError(f"train: {first_line(error)}") from error
    if args.fsdp and args.world_size == 1:
        raise ConfigError(
            "train.fsdp is True in one process; start several, one a GPU: "
            "torchrun --nproc-per-node 8 -m viceversa train ..."
        )
    _check_reports(args.report_to)
    if args.save_strategy == "steps" and args.save_steps % config.loss.updates_per_rollout:
        raise ConfigError(
            f"train.save_steps is {args.save_steps}; it must be a multiple of "
            f"loss.updates_per_rollout ({config.loss.updates_per_rollout}) to resume exactly"
        )
    args._n_gpu = min(1, args.n_gpu)  # several GPUs want several processes, not DataParallel
    return args


def first_line(error: Exception) -> str:
    """Return the first line of an error, with its type where that says little."""
    text = (str(error).splitlines() or [""])[0]
    plain = isinstance(error, (ValueError, ImportError)) and text
    return text if plain else f"{type(error).__name__}: {text}"


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Check that options are fields of TrainingArguments, each of its type; or a ConfigError."""
    kinds = typing.get_type_hints(TrainingArguments)
    found = dict(options)
    for name, value in options.items():
        if name in FIXED:
            raise ConfigError(f"train.{name} is set by viceversa; see steps, data.*_per_step")
        if name not in TrainingArguments.__dataclass_fields__:
            raise ConfigError(f"unknown option train.{name}: it is no TrainingArguments field")
        if name in MEANINGLESS and value not in (None, False, "no", 0):
            raise ConfigError(f"train.{name} is {value!r}; it has no meaning here: leave it out")
        kind = kinds[name]
        if value is False and name.endswith("_strategy"):
            found[name] = "no"  # YAML reads a bare no as False
        elif not _fits(value, kind) and not (name == "fsdp" and isinstance(value, bool)):
            wanted = getattr(kind, "__name__", str(kind).replace("typing.", ""))
            raise ConfigError(f"train.{name} is {value!r}; it takes a {wanted}")
        if name in BOUNDS and value is not None:
            check_number(f"train.{name}", cast(float, value), *BOUNDS[name])
        if kind is float and not name.endswith("_steps"):
            found[name] = float(cast(Any, value))  # torch's Adam refuses a whole number
    return found


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value has the type that a field of TrainingArguments declares."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    plain = typing.get_origin(kind) or kind
    if isinstance(value, bool):
        return plain is bool
    return isinstance(value, (int, float) if plain is float else plain)


def _try(args: TrainingArguments) -> None:
    """Make the optimizer and the schedule of one weight: many want a package, or more options."""
    args.get_process_log_level()
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(args.max_steps),
        args.max_steps,
        args.lr_scheduler_kwargs,  # type: ignore[arg-type]
    )


def _check_reports(names: Any) -> None:
    """Raise ConfigError for a tracker that there is not; the Trainer finds out later."""
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise ConfigError(f"train.report_to is {name!r}; choose one of none, {known}")
        if name not in installed and name != "flyte":  # which that list leaves out
            raise ConfigError(f"train.report_to is {name!r}; it is not installed: pip install it")


def _save_every(config: Config) -> int:
    """Five checkpoints a run, each at the end of a rollout's updates."""
    updates = config.loss.updates_per_rollout
    return updates * max(1, config.steps // updates // 5)
