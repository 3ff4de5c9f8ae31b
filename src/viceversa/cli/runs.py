"""The commands `train`, `plan` and `report`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from viceversa.cli.console import console
from viceversa.config import (
    INF,
    Config,
    ConfigError,
    check_file,
    check_number,
    load_config,
)

if TYPE_CHECKING:
    from viceversa.plan.gpus import Gpu

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
    stop_on_collapse: bool = False
    """Stop where outputs collapse, and end with the best checkpoint (watch.stop_on_collapse)."""
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
            "watch.stop_on_collapse": self.stop_on_collapse or None,
        }
        given = {key: value for key, value in named.items() if value is not None}
        if not self.resume:
            from viceversa.plan.defaults import resolve

            overrides = [*given.items(), *self.overrides]
            return resolve(self.config, overrides, self.lora, gpu, processes)
        if self.config or self.overrides or self.lora or set(given) - {"steps", "output_dir"}:
            raise ConfigError(
                "--resume goes on with the run's own options; only --steps may change"
            )
        given["output_dir"] = out = self.output or Config().output_dir  # it may have been moved
        return load_config(Path(out) / "config.yaml", given.items(), of_run=True), ""


Run = Annotated[Options, tyro.conf.arg(name="")]


def train(options: Run = Options()) -> int:
    """Train a model on its own rewards, and report on it.

    With no arguments: the built-in model on the built-in world, 4 to 12 minutes on two cores.
    A released model (Janus-Pro, Emu3, Anole) takes the settings of its recipe, any other on a GPU
    those that fit it, where none are given.

    Try:
        viceversa train
        viceversa train --steps 20 --set loss.name=simpo --set loss.beta=2
        viceversa train --config recipe.yaml --output runs/mine
        viceversa train --model path/to/janus --prompts prompts.txt --images photos/ --lora
        viceversa train --set train.learning_rate=1e-3 --stop-on-collapse
    """
    from viceversa.plan.gpus import own_gpu
    from viceversa.training.run import train as run_training

    config, said = options.resolved(own_gpu(), int(os.environ.get("WORLD_SIZE", "1")))
    if said and os.environ.get("RANK", "0") == "0":
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    run_training(config, console, options.resume)
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
        if not memory:
            raise ConfigError("--memory is 0; give the GPU's memory in GiB")
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


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("runs/latest"),),
    single_file: bool = False,
    output: Path | None = None,
) -> int:
    """Write the page of a run folder again, or one page that compares several.

    The page links the pictures in the run folders, and loads them as they are scrolled to. To send
    it to somebody, put them inside.

    Try:
        viceversa report
        viceversa report runs/mine --single-file
        viceversa report runs/grpo runs/simpo --output compared.html

    Args:
        runs: Folders that `viceversa train` wrote.
        single_file: Put the pictures into the page, small: one file to send.
        output: Where to write it. Left out: report.html in the run folder, or comparison.html
            beside the first of several; report-single.html and comparison-single.html for one file.
    """
    from viceversa.report.comparison import write_comparison
    from viceversa.report.page import write_report

    if output is not None:
        check_file(output, "--output")
    folders = {run.resolve(): run for run in runs}
    if len(folders) < len(runs):
        raise ConfigError(
            f"report is given {' '.join(map(str, runs))}; one of these folders comes twice: name "
            "each once"
        )
    with console.status("writing the page"):  # thousands of pictures inside it take a while
        if len(runs) == 1:
            page = write_report(runs[0], single_file, output)
        else:
            page = write_comparison(runs, single_file, output)
    console.print(f"report {page}", highlight=False, markup=False, soft_wrap=True)
    return 0
