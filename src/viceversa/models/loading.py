"""Read a model's files: whole, or a ConfigError that names what is wrong and what to do about it.

Everything here happens before any work. Nothing in the files is run: no code of a model's own, and
no pickle that holds more than weights.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from viceversa.config import ConfigError
from viceversa.models.base import Adapter
from viceversa.types import Direction

AGAIN = "copy or download it again"

#: Characters of a library's error that are shown.
LONGEST = 240

#: What is read of a folder where it is there; each holds one JSON object.
OBJECTS = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "chat_template.json",
)

#: Of each group a folder holds one file at least; the first is what to look for.
NEEDED = (
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    ("tokenizer.json", "tokenizer.model", "vocab.json"),
    ("processor_config.json", "preprocessor_config.json"),
)

#: Weights that no model here reads: the counters of batch norm.
UNUSED = re.compile(r"num_batches_tracked$")


def fault(shown: str, text: str) -> ConfigError:
    """Make the error of a model that the user calls `shown`."""
    return ConfigError(f"model.path is {shown!r}; {text}")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep tables, bars and warnings off the screen: what they report is judged here."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def reading(shown: str, what: str) -> Iterator[None]:
    """Turn whatever fails while `what` is read into one ConfigError, and keep all else silent.

    Each library has errors of its own for broken files, tokenizers a bare Exception; memory that
    ends is no fault of the files and passes.
    """
    try:
        with quiet():
            yield
    except (ConfigError, MemoryError, torch.OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise fault(
            shown,
            "a .bin file there holds more than weights, or is damaged, "
            "and is not read: take the model as .safetensors",
        ) from error
    except Exception as error:
        raise fault(shown, f"cannot read {what} ({_said(error)}): {AGAIN}") from error


def _said(error: Exception) -> str:
    """Say an error in one line; with its type, where its text alone says little."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) < LONGEST else text[:LONGEST] + "…"
    plain = isinstance(error, (OSError, ValueError, RuntimeError)) and text
    return text if plain else f"{type(error).__name__}: {text}"


def is_folder(path: str) -> bool:
    """Tell whether there is a folder of that name; a name too long for one is none."""
    try:
        return Path(path).is_dir()
    except OSError:
        return False


def read_object(file: Path, shown: str) -> dict[str, Any]:
    """Read the JSON object in `file`. Raises ConfigError for one that is cut, or holds another."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise fault(
            shown, f"{file.name} is damaged or no JSON ({_said(error)}): {AGAIN}"
        ) from error
    if not isinstance(found, dict):
        raise fault(
            shown, f"{file.name} holds no JSON object but a {type(found).__name__}: {AGAIN}"
        )
    return found


def model_type(path: str, shown: str) -> str:
    """Read the model_type in the config.json at `path`. Raises ConfigError where there is none."""
    if is_folder(path):
        file = Path(path) / "config.json"
        if not file.exists():
            raise fault(shown, "the folder holds no config.json")
        return str(read_object(file, shown).get("model_type"))
    try:
        # not AutoConfig, which refuses a model with code of its own
        return str(PreTrainedConfig.get_config_dict(path)[0].get("model_type"))
    except (OSError, ValueError) as error:
        raise fault(
            shown,
            "no such folder, and the hub lacks it or is out of reach; LoRA weights "
            "there are first fetched: hf download NAME --local-dir FOLDER",
        ) from error


def check_files(folder: Path, shown: str) -> None:
    """Raise ConfigError for a model's folder in which a file is missing, cut or damaged."""
    for names in NEEDED:
        if not any((folder / name).is_file() for name in names):
            raise fault(
                shown, f"the folder holds no {names[0]}: copy it from where the model comes from"
            )
    held = {name: read_object(folder / name, shown) for name in OBJECTS if (folder / name).exists()}
    if held.get("config.json", {}).get("quantization_config"):
        raise fault(
            shown,
            "config.json has a quantization_config: take the model as it "
            "was before it was quantized",
        )
    for file in weight_files(folder, shown, ["model.safetensors"]):
        check_safetensors(file, shown)


def weight_files(folder: Path, shown: str, kinds: Sequence[str]) -> list[Path]:
    """List the files that hold the weights: one of the first kind there, or its index's shards."""
    for kind in kinds:
        if (folder / kind).is_file():
            return [folder / kind]
        index = folder / f"{kind}.index.json"
        if index.is_file():
            places = read_object(index, shown).get("weight_map")
            names = set(places.values()) if isinstance(places, dict) else set()
            if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
                raise fault(shown, f"{index.name} names no files of its folder: {AGAIN}")
            return [folder / name for name in sorted(names)]
    return []


def check_safetensors(file: Path, shown: str) -> None:
    """Raise ConfigError for a file of weights that is missing, cut, or holds whole numbers."""
    if not file.is_file():
        raise fault(shown, f"{file.name} is missing: {AGAIN}")
    try:
        with safe_open(file, "pt") as held:
            kinds = {name: held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise fault(shown, f"{file.name} is cut or damaged ({_said(error)}): {AGAIN}") from error
    whole = [n for n, kind in kinds.items() if kind[0] in "IU" and not UNUSED.search(n)]
    if whole:
        raise fault(
            shown,
            f"{file.name} holds whole numbers for {listed(whole)}: take "
            "the model as it was before it was quantized",
        )


def read_config(path: str, shown: str) -> Any:
    """Read the model's geometry."""
    with reading(shown, "config.json"):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def load_model(model_class: Any, config: Any, path: str, shown: str, dtype: torch.dtype) -> Any:
    """Load the model at `path`, on the CPU: every weight from its files, and finite.

    Raises ConfigError for weights that are missing, of another shape than config.json asks for,
    left out by it, or not finite.
    """
    given: dict[str, Any] = {"config": config, "dtype": dtype, "trust_remote_code": False}
    with reading(shown, "its weights"):
        # shapes alone first: a wrong config.json may ask for more memory than there is
        sketch, report = model_class.from_pretrained(
            path,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **given,
        )
        _judge(report, set(sketch.state_dict()), shown, "config.json")
        model = model_class.from_pretrained(path, **given)
    check_finite(model.state_dict().items(), shown)
    return model


def check_names(
    held: Mapping[str, Tensor], asked: Mapping[str, Tensor], shown: str, by: str
) -> None:
    """Raise ConfigError where the weights `held` are not those that `asked` are, by name and shape.

    `by` names the files that ask.
    """
    both = held.keys() & asked.keys()
    report = {
        "missing_keys": asked.keys() - held.keys(),
        "unexpected_keys": held.keys() - asked.keys(),
        "mismatched_keys": {
            (n, held[n].shape, asked[n].shape) for n in both if held[n].shape != asked[n].shape
        },
    }
    _judge(report, set(asked), shown, by)


def _judge(report: Mapping[str, Any], asked: set[str], shown: str, by: str) -> None:
    """Raise ConfigError for transformers' report of a loading that was not whole.

    Weights of parts that the model does not have may be there, other layers of its parts not.
    """
    missing = [name for name in report["missing_keys"] if not UNUSED.search(name)]
    wrong = sorted(report["mismatched_keys"])
    known = {_numberless(name) for name in asked}
    extra = [name for name in report["unexpected_keys"] if _numberless(name) in known]
    if missing:
        raise fault(shown, f"its weights lack {listed(missing)}: {AGAIN}")
    if wrong:
        name, held, wanted = wrong[0]
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        trouble = f"{name} is {list(held)} in its weights and {list(wanted)} by {by}{more}"
    elif extra:
        trouble = f"{listed(extra)} are in its weights and left out by {by}"
    else:
        return
    raise fault(shown, f"{trouble}: take the files of one model")


def _numberless(name: str) -> str:
    """Return a weight's name, the same for every layer."""
    return re.sub(r"\d+", "*", name)


def check_finite(weights: Iterable[tuple[str, Tensor]], shown: str) -> None:
    """Raise ConfigError for weights that are NaN or infinite, naming them."""
    sick = not_finite(weights)
    if sick:
        raise fault(
            shown,
            f"not every number in {listed(sick)} is finite: take a checkpoint from before "
            "training went wrong",
        )


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of those that hold a NaN or an infinity; waits for a GPU once."""
    named = [(name, weight) for name, weight in weights if weight.numel()]  # a shard may be empty
    if not named:
        return []
    # the ends carry a NaN and an infinity, and need no copy of the weight
    ends = [torch.stack(weight.detach().aminmax()).isfinite().all() for _, weight in named]
    good = torch.stack(ends).tolist()
    return [name for (name, _), fine in zip(named, good, strict=True) if not fine]


def listed(names: Sequence[str]) -> str:
    """Three of the names, and how many more there are."""
    shown = ", ".join(sorted(names)[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def load_processor(adapter_class: type[Adapter], path: str, shown: str) -> Any:
    """Load the tokenizer and the picture settings at `path`. Raises ConfigError for another
    class's, and for a tokenizer that leaves a token unnamed.
    """
    files = "tokenizer.json, tokenizer_config.json or processor_config.json"
    with reading(shown, files):
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    wanted = adapter_class.processor_class
    if not isinstance(processor, wanted):
        raise fault(
            shown,
            f"its processor is a {type(processor).__name__}, where its "
            f"model_type takes a {wanted.__name__}: take config.json and the processor's files "
            "from one model",
        )
    for name in adapter_class.special_names:
        if getattr(processor.tokenizer, name, None) is None:
            raise fault(shown, f"its tokenizer_config.json names no {name}: add it")
    return processor


def check_prompts(adapter: Adapter, shown: str) -> None:
    """Raise ConfigError where what the processor writes is not what the model reads."""
    rows = len(adapter.model.get_input_embeddings().weight)
    pictures = adapter.image_tokens + adapter.row_ends
    asked: dict[Direction, tuple[int, int]]
    asked = {"t2i": (adapter.boi_id, 1), "i2t": (adapter.image_id, pictures)}
    for direction, (token, times) in asked.items():
        with reading(shown, "its chat template, chat_template.jinja"):
            prompt = adapter.prompt_text(direction, "word")
            ids = adapter.text_ids(prompt)
        outside = [i for i in (*ids, adapter.stop_id) if not 0 <= i < rows]
        if outside:
            trouble = f"its tokenizer gives id {outside[0]}, and the model has {rows} rows"
        elif "word" not in prompt:
            trouble = "its chat template drops the words of a prompt"
        elif ids.count(token) != times:
            found = ids.count(token)
            trouble = f"its {direction} prompt holds id {token} {found} times, not {times}"
        else:
            continue
        raise fault(
            shown,
            f"{trouble}: take config.json, the tokenizer's files and the "
            "chat template from one model",
        )


def builtin_path() -> Path:
    """Return the folder of the bundled weights, in Hugging Face layout."""
    return Path(__file__).resolve().parent.parent / "assets" / "tiny-janus"
