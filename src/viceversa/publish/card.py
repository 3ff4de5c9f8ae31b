"""The model card beside a checkpoint: README.md, whose front matter the hub reads.

A card names no place of the machine that trained the model: of a path only its last part is said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from viceversa.config import Config, ConfigError, to_dict
from viceversa.files import write_whole
from viceversa.publish.base import README, UNREADABLE, Base, base_of
from viceversa.publish.outcome import Row, outcome

Form = Literal["full", "lora", "merged", "original"]
"""Every weight; LoRA alone; LoRA merged into its base; the layout of the original Janus."""

#: Whose versions a card names.
PACKAGES = ("viceversa", "torch", "transformers", "peft")
#: card.md, and its sections use.md and figures.md, which are also rendered alone.
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
#: Tasks by the hub's names.
TASKS = {"t2i": "text-to-image", "i2t": "image-to-text", "questions": "visual-question-answering"}
#: Inputs of each direction, as users call them.
INPUTS = {"t2i": "prompts", "i2t": "pictures"}
#: By form: the library that loads it, and how the hub calls what it is to its base.
LIBRARY: dict[Form, str | None] = {
    "full": "transformers",
    "lora": "peft",
    "merged": "transformers",
    "original": None,
}
RELATION = {"full": "finetune", "lora": "adapter", "merged": "finetune", "original": "finetune"}
#: Options of memory and of places on disk, which change no result.
LEFT_OUT = {"output_dir", "steps", "seed", "cache_dir", "batch_rows", "use_cpu", "report_to"}


def make_card(
    config: Config,
    step: int,
    inputs: Mapping[str, Mapping[str, int]],
    form: Form,
    architecture: str,
) -> str:
    """Return the card of a checkpoint after `step` steps, before anything is measured.

    `inputs` counts by direction: `inputs` trained on, `skipped`, `held_out`. `architecture` is the
    class of transformers that loads the model.
    """
    base, places = base_of(config.model.path), config.inputs()
    title = f"{base.name.rpartition('/')[2]}-viceversa"
    return TEMPLATES.get_template("card.md").render(
        front=_front_matter(config, base, form, title).to_yaml(),
        title=title,
        base=base,
        licence=base.licence.get("license_name") or base.licence["license"],
        config=config,
        step=step,
        rewards=[term.name for term in config.reward.terms()],
        form=form,
        architecture=architecture,
        found=None,
        inputs=[(INPUTS[d], _place(places[d]), count) for d, count in inputs.items()],
        options=_options(config),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
    )


def write_card(folder: Path, text: str) -> None:
    """Write a card, whole or not at all. Raises OSError."""
    write_whole(folder / README, text)


def counts(sources: Mapping[Any, Any]) -> dict[str, dict[str, int]]:
    """Count the inputs of a run's sources (data.sources.Source) by direction."""
    return {
        str(direction): {
            "inputs": source.used,
            "skipped": len(source.skipped),
            "held_out": len(source.held_out),
        }
        for direction, source in sources.items()
    }


def card_as(folder: Path, form: Form, architecture: str) -> str | None:
    """Return a checkpoint's card, changed for another form of the same model; None without a card.

    A card that is not of this package, such as a published model's own, stays as it is. Raises
    ConfigError where its front matter cannot be read.
    """
    path = folder / README
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if "<!-- use -->" not in text:
        return text
    card = _parsed(text)
    if card is None:
        raise ConfigError(f"{path} begins with lines that are no YAML: mend or remove it")
    card.data.library_name = LIBRARY[form]
    if card.data.get("base_model"):
        card.data["base_model_relation"] = RELATION[form]
    return _with_section(card, "use", form=form, architecture=architecture)


def add_figures(folder: Path, figures: dict[str, Any], elsewhere: str = "") -> None:
    """Put what was measured (eval.json) into a checkpoint's card, if there is one that can be read.

    `elsewhere`: the checkpoint that was measured, where it is another one; then its card is named.
    Replaces the section of figures alone, as people write in cards. Raises OSError where the card
    cannot be written.
    """
    path, found = folder / README, outcome(figures)
    if not path.exists() or not (found.rows or found.sentence):
        return
    card = _parsed(path.read_text(encoding="utf-8", errors="replace"))
    if card is None:
        return
    if "tuned" in figures and found.rows and not elsewhere:
        card.data.eval_results = [_accuracy(row) for row in found.rows]
    write_card(folder, _with_section(card, "figures", found=found, elsewhere=elsewhere))


def _accuracy(row: Row) -> EvalResult:
    """Return the accuracy after training as the hub lists it."""
    return EvalResult(
        task_type=TASKS[row.task],
        dataset_type="viceversa-scenes",
        dataset_name="the built-in world of viceversa",
        metric_type="accuracy",
        metric_name=f"accuracy, {row.name}",
        metric_value=round(row.after, 4),
    )


def _parsed(text: str) -> Any:
    """Return the card, or None where its front matter cannot be read."""
    try:
        return ModelCard(text)
    except UNREADABLE:
        return None


def _with_section(card: ModelCard, name: str, **values: Any) -> str:
    """Return the card's text with a section rendered anew, if its marks are still there."""
    body = TEMPLATES.get_template(f"{name}.md").render(values)
    marks = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    card.text = re.sub(marks, lambda m: m[1] + body + m[2], card.text, flags=re.DOTALL)
    return str(card)


def _front_matter(config: Config, base: Base, form: Form, title: str) -> ModelCardData:
    sets = [_hub_set(place) for place in config.inputs().values()]
    more: dict[str, Any] = dict(base.licence)
    if base.hub:
        more |= {"base_model": base.hub, "base_model_relation": RELATION[form]}
    return ModelCardData(
        datasets=list(dict.fromkeys(s for s in sets if s)) or None,
        library_name=LIBRARY[form],
        model_name=title,
        pipeline_tag="any-to-any",
        tags=["viceversa", "reinforcement-learning", "arxiv:2506.07963"],
        **more,
    )


def _hub_set(place: str) -> str | None:
    """Return the name of a dataset on the hub, `owner/name`; None for other places."""
    match = re.match(r"hf://(?!/)([^/:]+/[^/:]+)", place)
    return match[1] if match else None


def _place(place: str) -> str:
    if place == "scenes":
        return "the built-in world"
    return f"`{_bare(place).replace('|', '¦')}`"


def _options(config: Config) -> str:
    """Return the options that differ from their defaults, as YAML."""
    changed = _changed(to_dict(config), to_dict(Config()))
    changed.pop("model", None)  # said above, with the inputs
    changed.get("data", {}).pop("prompts", None)
    changed.get("data", {}).pop("images", None)
    changed = {key: value for key, value in changed.items() if value != {}}
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).rstrip()


def _changed(tree: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        usual = default.get(key)
        if key in LEFT_OUT or value == usual:
            continue
        if isinstance(value, dict):
            found[key] = _changed(value, usual if isinstance(usual, dict) else {})
        else:
            found[key] = _bare(value)
    return found


def _bare(value: Any) -> Any:
    """Return a value with paths cut to their last part."""
    if isinstance(value, list):
        return [_bare(v) for v in value]
    if isinstance(value, dict):
        return {key: _bare(v) for key, v in value.items()}
    if not isinstance(value, str):
        return value
    path = value.removeprefix("hf://")  # hf:///folder is one of this machine's
    there = "/" in value and os.path.exists(value)  # noqa: PTH110  # long text: Path raises
    if there or path.startswith(("/", "~/", "./", "../")):
        return Path(path).name
    return value
