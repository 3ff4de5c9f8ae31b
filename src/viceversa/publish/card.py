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

from viceversa.config import Config, ConfigError, to_dict
from viceversa.files import write_whole
from viceversa.publish.base import README, Base, base_of
from viceversa.publish.outcome import Outcome, outcome

Form = Literal["full", "lora", "merged", "original"]
"""Every weight; LoRA alone; LoRA merged into its base; the layout of the original Janus."""

#: Whose versions a card names.
PACKAGES = ("viceversa", "torch", "transformers", "peft")
TEMPLATE = Path(__file__).with_name("card.md")
NOT_MEASURED = "Nothing was measured of this checkpoint."
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
    """Return the card of a checkpoint after `step` steps.

    `inputs` counts by direction: `inputs` trained on, `skipped`, `held_out`. `architecture` is the
    class of transformers that loads the model.
    """
    base = base_of(config.model.path)
    rewards = ", ".join(f"`{term.name}`" for term in config.reward.terms())
    card = ModelCard.from_template(
        _data(config, base, form),
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        name=f"{base.name.rpartition('/')[2]}-viceversa",
        base=_named(base),
        step=step,
        steps=config.steps,
        schedule=config.schedule,
        reward=_rewarded(rewards),
        use=_use(form, architecture),
        figures=NOT_MEASURED,
        data=_inputs(config, inputs),
        loss=config.loss.name,
        trained=_trained(config, form),
        seed=config.seed,
        options=_options(config),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        licence=_licence(base),
    )
    return f"{card}\n"


def write_card(folder: Path, text: str) -> None:
    """Write a card, whole or not at all. Raises OSError."""
    write_whole(folder / README, text)


def read_card(folder: Path) -> str | None:
    """Return the card of a checkpoint; None where it has none."""
    try:
        return (folder / README).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


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
    text = read_card(folder)
    if text is None or "<!-- use -->" not in text:
        return text
    card = _parsed(text)
    if card is None:
        raise ConfigError(
            f"{folder / README} begins with lines that are no YAML: mend or remove it"
        )
    card.data.library_name = LIBRARY[form]
    if card.data.get("base_model"):
        card.data["base_model_relation"] = RELATION[form]
    card.text = _with_section(card.text, "use", _use(form, architecture))
    return _joined(card)


def add_figures(folder: Path, figures: dict[str, Any]) -> None:
    """Put what was measured (eval.json) into the card of a checkpoint, if it has one.

    Raises OSError where it cannot be written.
    """
    card, found = _card_in(folder), outcome(figures)
    if card is None or not (found.rows or found.sentence):
        return
    if "tuned" in figures and found.rows:
        card.data.model_name = _title(card.text)
        card.data.eval_results = [
            EvalResult(
                task_type=TASKS[row.task],
                dataset_type="viceversa-scenes",
                dataset_name="the built-in world of viceversa",
                metric_type="accuracy",
                metric_name=f"accuracy, {row.name}",
                metric_value=round(row.after, 4),
            )
            for row in found.rows
        ]
    _write_figures(folder, card, _measured(found))


def say_measured_elsewhere(folder: Path, measured: str) -> None:
    """Say in the card of a run's best checkpoint that the run's figures are those of `measured`.

    Raises OSError where it cannot be written.
    """
    said = (
        "The base's own judgement found this checkpoint the best of its run. The figures of the "
        f"run are in the card of `{measured}`, the last checkpoint, and are not those of this one."
    )
    if (card := _card_in(folder)) is not None:
        _write_figures(folder, card, said)


def _write_figures(folder: Path, card: Any, said: str) -> None:
    card.text = _with_section(card.text, "figures", said)
    write_card(folder, _joined(card))


def _card_in(folder: Path) -> Any:
    """Return the card of a folder, or None where there is none that can be read."""
    text = read_card(folder)
    return None if text is None else _parsed(text)


def _parsed(text: str) -> Any:
    """Return the card, or None where its front matter cannot be read."""
    try:
        return ModelCard(text)
    except (ValueError, TypeError, yaml.YAMLError):
        return None


def _data(config: Config, base: Base, form: Form) -> ModelCardData:
    sets = [_hub_set(place) for place in config.inputs().values()]
    more: dict[str, Any] = dict(base.licence)
    if base.hub:
        more |= {"base_model": base.hub, "base_model_relation": RELATION[form]}
    return ModelCardData(
        datasets=list(dict.fromkeys(s for s in sets if s)) or None,
        library_name=LIBRARY[form],
        pipeline_tag="any-to-any",
        tags=["viceversa", "reinforcement-learning", "arxiv:2506.07963"],
        **more,
    )


def _hub_set(place: str) -> str | None:
    """Return the name of a dataset on the hub, `owner/name`; None for other places."""
    match = re.match(r"hf://(?!/)([^/:]+/[^/:]+)", place)
    return match[1] if match else None


def _named(base: Base) -> str:
    if base.name == "builtin":
        return "The bundled model of viceversa"
    if not base.hub:
        return f"`{base.name}`"
    link = f"[{base.hub}](https://huggingface.co/{base.hub})"
    return link if base.name == base.hub else f"`{base.name}` (made from {link})"


def _rewarded(rewards: str) -> str:
    if rewards == "`dual`":
        return (
            "It rewarded itself: an output counted as good where the model could tell the input "
            "from it. No labels and no reward model took part."
        )
    return f"The reward was {rewards}."


def _trained(config: Config, form: Form) -> str:
    if form == "full":
        return "every weight of the language model"
    return f"LoRA of rank {config.lora.rank}" if config.lora.rank else "LoRA"


def _use(form: Form, architecture: str) -> str:
    if form == "original":
        return (
            "The files have the layout of the original Janus: its official code loads this folder "
            "as it loads the published models. So does viceversa, by "
            '`viceversa.load("path/to/this/folder")`.'
        )
    lines = [
        "```python",
        "import viceversa as vv",
        "",
        'model = vv.load("path/to/this/folder")',
        "```",
    ]
    if form == "lora":
        lines += [
            "",
            "The folder holds LoRA weights alone, and `adapter_config.json` names the base. "
            "`viceversa merge path/to/this/folder --output merged` makes a whole model of them.",
        ]
    else:
        lines += ["", f"Or in transformers: `{architecture}.from_pretrained(...)`."]
    return "\n".join(lines)


def _inputs(config: Config, inputs: Mapping[str, Mapping[str, int]]) -> str:
    rows = ["| | from | trained on | skipped | held out |", "|---|---|---|---|---|"]
    places = config.inputs()
    for direction, counts in inputs.items():
        numbers = " | ".join(f"{counts[n]:,}" for n in ("inputs", "skipped", "held_out"))
        rows.append(f"| {INPUTS[direction]} | {_place(places[direction])} | {numbers} |")
    return "\n".join(rows)


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


def _licence(base: Base) -> str:
    if not base.licence_known:
        return "That of the base, which is not known here: see the base."
    name = base.licence.get("license_name") or base.licence["license"]
    link = base.licence.get("license_link")
    shown = f"[{name}]({link})" if link and link.startswith("http") else f"`{name}`"
    return f"That of the base: {shown}."


def _measured(found: Outcome) -> str:
    parts: list[str] = []
    if found.rows:
        rows = [f"| {found.title} | before | after | change | |", "|---|---|---|---|---|"]
        rows += [
            f"| {row.name} | {row.before:.3f} | {row.after:.3f} | {row.change} | {row.words} |"
            for row in found.rows
        ]
        parts.append("\n".join(rows))
        parts.append("A change is given with half of its 95 % interval over inputs.")
    if found.sentence:
        parts.append(f"On held-out inputs, without labels: {found.sentence}")
    return "\n\n".join(parts)


def _with_section(text: str, name: str, body: str) -> str:
    """Return the text with what stands between the marks of a section replaced, if it has any."""
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
    return re.sub(pattern, lambda m: m[1] + body + m[2], text, flags=re.DOTALL)


def _title(text: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else "viceversa"


def _joined(card: Any) -> str:
    return f"---\n{card.data.to_yaml()}\n---\n{card.text}"
