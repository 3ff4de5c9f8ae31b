"""The `viceversa` command. A wrong option or input is one clear error and exit code 2, before any
work."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from errno import ENAMETOOLONG
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from viceversa.config import (
    INF,
    Config,
    ConfigError,
    ModelConfig,
    build,
    check_file,
    check_folder,
    check_number,
    load_config,
)
from viceversa.files import StorageError

if TYPE_CHECKING:
    from viceversa.plan.gpus import Gpu

console = Console(markup=False)  # paths and prompts may look like it

Overrides = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="set")]


@dataclass(frozen=True)
class Options:
    """Options of a training run, for `train` to take and for `plan` to plan."""

    config: Path | None = None
    """A YAML file of options, or the name of a recipe that comes with the package; the others on
    this line override it."""
    model: str | None = None
    """`builtin`, a folder in Hugging Face layout, or a hub name."""
    prompts: str | None = None
    """`scenes`, a file (.txt, .jsonl, .csv, .parquet) or `hf://owner/name`."""
    images: str | None = None
    """`scenes`, a folder of pictures or shards, .tar shards or `hf://owner/name`."""
    steps: int | None = None
    """Optimizer steps."""
    seed: int | None = None
    """Seeds data order and sampling (eval.seed seeds the evaluation)."""
    output: str | None = None
    """The run folder."""
    overrides: Overrides = ()
    """section.field=value, as often as needed."""
    lora: bool = False
    """Train LoRA of rank 16 (or `lora.rank`, or the recipe's) instead of every weight."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder, with its own options."""

    def resolved(self, gpu: Gpu | None, processes: int) -> tuple[Config, str]:
        """Return the config to train with on `gpu`, and one line on what it decides, or nothing."""
        named = {
            "model.path": self.model,
            "data.prompts": self.prompts,
            "data.images": self.images,
            "steps": self.steps,
            "seed": self.seed,
            "output_dir": self.output,
        }
        given = {key: value for key, value in named.items() if value is not None}
        lines = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items()]
        if not self.resume:
            from viceversa.plan.defaults import resolve

            return resolve(self.config, [*lines, *self.overrides], self.lora, gpu, processes)
        if self.config or self.overrides or self.lora or set(given) - {"steps", "output_dir"}:
            raise ConfigError(
                "--resume goes on with the run's own options; only --steps may change"
            )
        out = self.output or Config().output_dir
        lines.append(f"output_dir={json.dumps(out)}")  # it may have been moved
        return load_config(Path(out) / "config.yaml", lines, of_run=True), ""


Run = Annotated[Options, tyro.conf.arg(name="")]


def train(options: Run = Options()) -> int:
    """Train a model on its own rewards, and report on it.

    With no arguments: the built-in model on the built-in world, about ten minutes on two cores.
    A released model (Janus-Pro, Emu3, Anole) takes the settings of its recipe, any other on a GPU
    those that fit it, where none are given.

    Try:
        viceversa train
        viceversa train --steps 20 --set loss.name=simpo --set loss.beta=2
        viceversa train --config recipe.yaml --output runs/mine
        viceversa train --model path/to/janus --prompts prompts.txt --images photos/ --lora
    """
    from viceversa.plan.gpus import own_gpu
    from viceversa.training.run import train as run_training

    config, said = options.resolved(own_gpu(), int(os.environ.get("WORLD_SIZE", "1")))
    if said and os.environ.get("RANK", "0") == "0":
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    run_training(config, console, options.resume)
    return 0


def evaluate(
    model: Annotated[str, tyro.conf.Positional] = "builtin",
    specs: int = 300,
    seed: int = 0,
    temperature: float = 1.0,
    guidance: float = 1.0,
    best_decoding: bool = False,
    ranking: bool = False,
    output: Path | None = None,
) -> int:
    """Measure a model's accuracy on the built-in world: drawing, captions, questions.

    Try:
        viceversa evaluate
        viceversa evaluate runs/latest/checkpoint-100 --specs 100
        viceversa evaluate --best-decoding --ranking

    Args:
        model: `builtin` or a folder in Hugging Face layout.
        specs: Specs of each kind.
        seed: Seeds the specs and the draws.
        temperature: Temperature of the sampled pictures and captions; 0 picks the likeliest token.
        guidance: Classifier-free guidance of the sampled pictures; 1 is none.
        best_decoding: First find the best temperature and guidance on the tuning specs.
        ranking: Also measure how often the self-reward ranks a right output above a wrong one, at
            `--temperature`.
        output: Write the figures to this JSON file.
    """
    from viceversa.models import load_adapter
    from viceversa.scenes import evaluate as evaluation
    from viceversa.training.recorder import figures_table

    if specs < 1:
        raise ConfigError(f"--specs is {specs}; it must be at least 1")
    if ranking and temperature == 0:
        raise ConfigError("--temperature is 0; --ranking compares outputs that differ: take 1")
    options = {"seed": seed, "temperature": temperature, "guidance": guidance}
    asked = settings = build({"eval": {"specs_per_kind": specs, **options}}).eval
    if output is not None:
        check_file(output, "--output")
    adapter = load_adapter(ModelConfig(path=model))
    record: dict[str, Any] = {"model": model}
    if best_decoding:
        t, w, table = evaluation.best_decoding(adapter, settings)
        console.print(f"best decoding on the tuning specs: temperature {t}, guidance {w}")
        settings = replace(settings, temperature=t, guidance=w)
        record["decoding"] = table
    record["figures"] = evaluation.evaluate_scenes(adapter, settings)
    record["settings"] = asdict(settings)
    if ranking:
        record["ranking"] = evaluation.reward_ranking(adapter, asked)
        for direction, row in record["ranking"].items():
            low, high = row["interval"]
            console.print(
                f"{direction} self-reward ranks right above wrong: {row['accuracy']:.3f} "
                f"[{low:.3f}, {high:.3f}], {row['pairs']} pairs of {row['inputs']} inputs"
            )
    console.print(figures_table({"base": record["figures"]}))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0


def pretrain(
    output: str = "runs/pretrain",
    steps: int | None = None,
    codec_steps: int | None = None,
    codec: str = "",
    drawn_per_step: int | None = None,
    drawn_weights: tuple[float, ...] = (),
    read_per_step: int | None = None,
    read_weights: tuple[float, ...] = (),
    seed: int = 0,
    bf16: bool = False,
    device: str = "cpu",
) -> int:
    """Build the bundled model from nothing; resumes where it was stopped.

    Try:
        viceversa pretrain
        viceversa pretrain --output /tmp/tiny --steps 20 --codec-steps 20
        viceversa pretrain --codec builtin --read-weights 1 2 2 1 4 3 6 --output /tmp/reader

    Args:
        output: Where checkpoints and the finished model go.
        steps: Steps of the model (default: the recipe's).
        codec_steps: Steps of the image tokenizer (default: the recipe's).
        codec: A model folder whose image tokenizer is taken, or `builtin` (default: train one).
        drawn_per_step: Pictures to draw in a step (default: the recipe's).
        drawn_weights: How often each kind is drawn, seven numbers (default: the recipe's).
        read_per_step: Pictures to caption or ask about in a step (default: the recipe's).
        read_weights: How often each kind is read, seven numbers (default: the recipe's).
        seed: Seeds weights and data.
        bf16: Mixed precision.
        device: `cpu` or `cuda`.
    """
    from viceversa.pretrain.pretrain import PretrainConfig, check_recipe
    from viceversa.pretrain.pretrain import pretrain as run_pretraining

    given = {
        "steps": steps,
        "codec_steps": codec_steps,
        "drawn_per_step": drawn_per_step,
        "drawn_weights": drawn_weights,
        "read_per_step": read_per_step,
        "read_weights": read_weights,
    }
    recipe = PretrainConfig(output, seed, codec, bf16=bf16, device=device)
    recipe = replace(recipe, **{k: v for k, v in given.items() if v not in (None, ())})
    check_recipe(recipe)
    folder = run_pretraining(recipe, console)
    console.print(f"model  {folder}", highlight=False, soft_wrap=True)
    return 0


def merge(model: Annotated[Path, tyro.conf.Positional], output: Path) -> int:
    """Add a LoRA checkpoint to its base model: a folder that transformers alone loads.

    Try:
        viceversa merge runs/latest/checkpoint-100 --output merged

    Args:
        model: A checkpoint that `viceversa train --lora` wrote.
        output: Where the whole model goes.
    """
    from viceversa.models import load_adapter
    from viceversa.models.lora import base_of, merged

    if base_of(str(model)) is None:
        raise ConfigError(f"{str(model)!r} holds no LoRA checkpoint; it may be whole already")
    check_folder(str(output), "--output")
    if output.exists():
        raise ConfigError(f"--output is {str(output)!r}; it exists: choose another")
    adapter = load_adapter(ModelConfig(path=str(model)))
    partial = output.with_name(output.name + ".partial")
    merged(adapter).save_pretrained(partial)
    adapter.processor.save_pretrained(partial)
    partial.replace(output)
    console.print(f"model  {output}", highlight=False, soft_wrap=True)
    return 0


def report(run: Annotated[Path, tyro.conf.Positional] = Path("runs/latest")) -> int:
    """Write the page of a run folder again.

    Try:
        viceversa report
        viceversa report runs/mine

    Args:
        run: A folder that `viceversa train` wrote.
    """
    from viceversa.report.page import write_report

    console.print(f"report {write_report(run)}", highlight=False, soft_wrap=True)
    return 0


def plan(
    options: Run = Options(),
    gpu: str | None = None,
    memory: float | None = None,
    processes: int = 1,
    prompt_tokens: int | None = None,
    record: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Count parameters and peak memory of a training run, before anything is downloaded.

    Takes the options of `train`, and decides what they leave open as `train` does on that GPU.
    Memory is counted by running the training step without numbers. Exit code 1 where the peak does
    not fit.

    Try:
        viceversa plan --model deepseek-community/Janus-Pro-7B --lora --gpu h100
        viceversa plan --config janus-pro-7b-full-fsdp2 --gpu h100 --processes 8
        viceversa plan --model path/to/janus --memory 24 --set loss.batch_rows=8

    Args:
        gpu: Its memory: a10, l4, l40s, rtx3090, rtx4090, a100, a100-40, h100, h200.
            This machine's if it has one, else h100.
        memory: GiB of one GPU, instead of the named one's.
        processes: GPUs, one process each; sharded where the recipe sets train.fsdp.
        prompt_tokens: Words of a prompt, in tokens (32).
        record: Write the figures to this JSON file.
    """
    from viceversa.plan import advice
    from viceversa.plan import plan as planning
    from viceversa.plan.gpus import GPUS, own_gpu

    if gpu is not None and gpu not in GPUS:
        raise ConfigError(f"--gpu is {gpu!r}; choose one of {', '.join(GPUS)}, and --memory")
    if processes < 1:
        raise ConfigError(f"--processes is {processes}; it must be at least 1")
    if memory is not None:
        check_number("--memory", memory, 0, INF)
    if prompt_tokens is not None:
        check_number("--prompt-tokens", prompt_tokens, 1, INF)
    if record is not None:
        check_file(record, "--json")
    card = GPUS[gpu] if gpu else own_gpu() or GPUS["h100"]
    card = card if memory is None else replace(card, memory=memory)
    config, said = options.resolved(card, processes)
    words = planning.PROMPT_WORDS if prompt_tokens is None else prompt_tokens
    found = planning.make_plan(config, processes, words)
    if said:
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(planning.table(found, config.model.path))
    for line in planning.summary(found, card, words):
        console.print(line, highlight=False, soft_wrap=True)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(planning.record(found), indent=1), encoding="utf-8")
    if found.fits(card.memory):
        return 0
    for line in advice.advice_lines(advice.advise(config, card, processes, words), card):
        console.print(line, highlight=False, soft_wrap=True)
    return 1


COMMANDS = {
    "train": train,
    "plan": plan,
    "evaluate": evaluate,
    "merge": merge,
    "pretrain": pretrain,
    "report": report,
}


def _parse(arguments: Sequence[str]) -> Callable[[], int]:
    """Return the command that is asked for, not yet run.

    tyro prints what is wrong with the arguments, or the help, and raises SystemExit.
    """
    return tyro.extras.subcommand_cli_from_dict(
        {name: _deferred(command) for name, command in COMMANDS.items()},
        prog="viceversa",
        description="Post-train unified multimodal models on their own rewards.",
        args=list(arguments),
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    )


def _deferred(command: Callable[..., int]) -> Callable[..., Callable[[], int]]:
    """Bind a command's arguments without running it: tyro takes its ValueErrors for its own."""

    @functools.wraps(command)
    def chosen(*args: Any, **kwargs: Any) -> Callable[[], int]:
        return functools.partial(command, *args, **kwargs)

    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    1 for a failure during work, 2 for wrong inputs, 128 and its number for a signal. Raises
    SystemExit, with code 2 for wrong options and 0 for --help.
    """
    try:
        return _parse(sys.argv[1:] if argv is None else argv)()
    except (ConfigError, OSError) as error:
        # a name too long is no file's, wherever it was asked for
        if not isinstance(error, ConfigError | FileNotFoundError) and error.errno != ENAMETOOLONG:
            raise
        print(f"viceversa: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        signum = getattr(stopped, "signum", signal.SIGINT)
        by = "" if signum == signal.SIGINT else f" by {signal.Signals(signum).name}"
        print(f"viceversa: interrupted{by}", file=sys.stderr)
        return 128 + signum
    except (FloatingPointError, MemoryError, StorageError) as error:
        print(f"viceversa: {error}", file=sys.stderr)
        return 1


def entry() -> None:
    sys.exit(main())


__all__ = ["COMMANDS", "Config", "entry", "main"]
