"""The end of a run on the terminal: what happened in words, where things are, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from viceversa.config import Config
from viceversa.publish.outcome import held_out_sentence, more_right, outcome, outcome_table
from viceversa.publish.push import local_base
from viceversa.report.reading import section
from viceversa.report.skills import Figure, skills

#: Drawn after a run whose prompts have no file.
EXAMPLE = "a triangle and a ring"
#: Verdicts after which a model is not to be shared.
DOUBTFUL = ("suspicious", "worse")


def say_outcome(
    console: Console, figures: dict[str, Any], unmeasured: Mapping[str, str] | None = None
) -> None:
    """Print one table of what training changed, and the sentence on held-out inputs.

    Where there are no figures at all, print why: `unmeasured`, by direction.
    """
    if section(figures, "tuned"):
        console.print(figures_table(figures))
    elif (found := outcome(figures)).rows:
        console.print(outcome_table(found))
    told = [] if figures else list((unmeasured or {}).values())
    if sentence := held_out_sentence(figures):
        told = [f"held out, without labels: {sentence}"]
    for line in told:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def say_places(
    console: Console,
    config: Config,
    figures: dict[str, Any],
    checkpoint: Path | None,
    page: Path,
    draws: bool,
    interrupted: bool,
    failed: bool,
) -> None:
    """Print links to the checkpoint and the report, and the next command to type.

    `draws`: the model's pictures can be shown. A run that failed names no command: the error does.
    """
    if checkpoint is not None:
        _line(console, "model", _link(checkpoint))
    _line(console, "report", _link(page))
    if interrupted and checkpoint is not None:
        out = shlex.quote(str(page.parent))
        told = f"go on with: viceversa train --resume --output {out}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    elif interrupted:
        console.print("no checkpoint was saved, so there is nothing to resume: start again")
    elif checkpoint is not None and not failed:
        _line(console, "next", Text(_trial(config, checkpoint, draws), style="bold"))
        if section(figures, "held_out").get("verdict") not in DOUBTFUL:
            _line(console, "share", Text(_share(checkpoint), style="bold"))


def _line(console: Console, name: str, what: Text) -> None:
    console.print(Text(f"{name:<6} ").append_text(what), highlight=False, soft_wrap=True)


def _link(path: Path) -> Text:
    """Return the path, on a terminal that can as a link that opens it."""
    return Text(str(path), style=Style(link=path.resolve().as_uri()))


def _share(checkpoint: Path) -> str:
    """Return the command that shows what would be sent to the hub, or that makes it whole first."""
    name = shlex.quote(str(checkpoint))
    if local_base(checkpoint):
        return f"viceversa merge {name} --output merged"
    return f"viceversa push {name} OWNER/NAME --dry-run"


def _trial(config: Config, checkpoint: Path, draws: bool) -> str:
    """Return the command that tries the model: on the run's own inputs, where they have a name."""
    inputs = config.inputs()
    words = ["viceversa"]
    if draws and "t2i" in inputs:
        is_file = Path(inputs["t2i"]).is_file()
        words += ["draw", inputs["t2i"] if is_file else EXAMPLE, "--best-of", "8"]
    else:
        place = inputs.get("i2t", "")
        words += ["caption", place if place and Path(place).is_dir() else "photos/"]
    return shlex.join([*words, "--model", str(checkpoint)])


def figures_table(figures: dict[str, Any]) -> Table:
    """Put base beside tuned, skill by skill; changes with 95 % intervals, paired by input."""
    rows, tuned = skills(figures), "tuned" in figures
    about = "before and after" if tuned else "95 % interval over inputs"
    table = Table(title=f"accuracy, {about}")
    table.add_column("skill", no_wrap=True)
    for title in ("drawing", "captions"):
        table.add_column(title, justify="right", no_wrap=True)
    for number, row in enumerate(rows):
        cells = [row.figures.get(task) for task in ("t2i", "i2t")]
        if row.name == "questions":
            table.add_section()
        if "questions" in row.figures:  # of pictures, as captions are
            cells = [None, row.figures["questions"]]
        mean = not number or row.name == "questions"
        style, indent = ("bold", "") if mean else ("", "  ")
        texts = [_cell(c, mean) if c else "" for c in cells]
        table.add_row(indent + row.name, *texts, style=style)
    return table


def _cell(figure: Figure, mean: bool) -> str:
    text = f"{figure.before:.3f}"
    if figure.after is not None:
        text += f" → {figure.after:.3f}"
    elif figure.interval is not None:
        text += " [{:.3f}, {:.3f}]".format(*figure.interval)
    if (change := figure.change) is not None:
        text += f" ({change.value:+.2f} ± {(change.high - change.low) / 2:.2f})"
    words = more_right(figure.change) if mean and figure.change else figure.verdict
    return f"{text}\n{words}" if words else text
