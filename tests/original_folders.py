"""A tiny folder in the layout that deepseek-ai/Janus-Pro is published in.

Names and shapes come from the original's own code (models/janus_original/make.py); only the files
around the weights are written here, as the published ones are.
"""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models
from torch import Tensor

from viceversa.models import original
from viceversa.pretrain import tiny

sys.path.append(str(Path(__file__).parent / "models"))
from janus_original import make  # pyright: ignore[reportMissingImports]

FOLDER = Path(make.__file__).parent
ABOUT = json.loads((FOLDER / "fixture.json").read_text(encoding="utf-8"))
LAYOUT = json.loads((FOLDER / "layout.json").read_text(encoding="utf-8"))
SPECIAL = [tiny.BOS, tiny.EOS, tiny.PAD, tiny.USER, tiny.ASSISTANT, tiny.BOI, tiny.EOI, tiny.IMAGE]
LETTERS = string.ascii_letters + string.digits + " \n.,:?!'-|<>_"


def know_narrow_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the narrow modules that make.py gives the original's code known by its names."""
    shapes = ABOUT["shapes"]
    tower = {
        "hidden_size": shapes["width"],
        "num_hidden_layers": 2,
        "num_attention_heads": shapes["heads"],
        "patch_size": shapes["patch_size"],
        "mlp_ratio": 4.0,
    }
    names = ("base_channels", "channel_multiplier", "num_res_blocks", "latent_channels")
    monkeypatch.setitem(original.TOWERS, "siglip_tiny", tower)
    monkeypatch.setitem(original.CODECS, "VQ-16", {name: shapes[name] for name in names})


def original_weights() -> dict[str, Tensor]:
    """Return every weight under the original's name; those that are never read are random."""
    kept, found = load_file(FOLDER / "fixture.safetensors"), {}
    for name, shape in LAYOUT["weights"].items():
        place = f"weights.{make.new_name(name)}"
        if ".attn.qkv." in name:
            parts = (place.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv")
            found[name] = torch.cat([kept[part] for part in parts])
        elif place in kept:
            found[name] = kept[place].reshape(shape)
        else:
            found[name] = torch.rand(shape).half()
        assert list(found[name].shape) == shape
    return found


def tokenizer_file(folder: Path) -> None:
    """A letter is a token, and the special ones have the fixture's ids."""
    words = [*SPECIAL, *LETTERS]
    assert len(words) <= ABOUT["shapes"]["vocabulary"]
    bpe = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    bpe.decoder = decoders.Fuse()
    bpe.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    bpe.save(str(folder / "tokenizer.json"))


def write_json(file: Path, tree: dict[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2), encoding="utf-8")


def settings_files(folder: Path) -> None:
    """All but the weights, as published."""
    config = json.loads(json.dumps(LAYOUT["config"]))
    config |= {"architectures": ["MultiModalityCausalLM"], "torch_dtype": "float16"}
    text = {
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "_attn_implementation": "flash_attention_2",
    }
    config["language_config"] |= text
    config["language_config"]["max_position_embeddings"] = 1024  # the system prompt is long
    write_json(folder / "config.json", config)
    processor = {
        "add_special_token": False,
        "ignore_id": -100,
        "image_tag": tiny.IMAGE,
        "mask_prompt": True,
        "num_image_tokens": 64,
        "processor_class": "VLChatProcessor",
        "sft_format": "deepseek",
    }
    write_json(folder / "processor_config.json", processor)
    pictures = {
        "background_color": [127, 127, 127],
        "do_normalize": True,
        "image_mean": ABOUT["image_mean"],
        "image_processor_type": "VLMImageProcessor",
        "image_size": 32,
        "image_std": ABOUT["image_std"],
        "min_size": 14,
        "processor_class": "VLChatProcessor",
        "rescale_factor": 0.00392156862745098,
    }
    write_json(folder / "preprocessor_config.json", pictures)
    tokenizer = {
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": [tiny.IMAGE, tiny.BOI, tiny.EOI, "<|User|>"],
        "bos_token": {"__type": "AddedToken", "content": tiny.BOS, "lstrip": False},
        "clean_up_tokenization_spaces": False,
        "eos_token": tiny.EOS,
        "legacy": True,
        "model_max_length": 16384,
        "pad_token": None,
        "processor_class": "VLChatProcessor",
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": None,
        "use_default_system_prompt": True,
    }
    write_json(folder / "tokenizer_config.json", tokenizer)
    tokens = {"bos_token": tiny.BOS, "eos_token": tiny.EOS, "pad_token": tiny.PAD}
    special = {"additional_special_tokens": [tiny.IMAGE, tiny.BOI, tiny.EOI, "<|User|>"]}
    write_json(folder / "special_tokens_map.json", tokens | special)
    tokenizer_file(folder)


def in_two(weights: dict[str, Tensor], folder: Path, kind: str, save: Callable[..., None]) -> None:
    """Two shards and their index."""
    stem, _, suffix = kind.partition(".")
    names = sorted(weights)
    places = {name: f"{stem}-{1 + (i % 2):05d}-of-00002.{suffix}" for i, name in enumerate(names)}
    for file in set(places.values()):
        save({n: weights[n] for n in names if places[n] == file}, folder / file)
    write_json(folder / f"{kind}.index.json", {"metadata": {}, "weight_map": places})


def original_folder(folder: Path, weights: dict[str, Tensor], kind: str) -> Path:
    folder.mkdir()
    settings_files(folder)
    name = kind.removeprefix("sharded ")
    save = save_file if name.endswith(".safetensors") else torch.save
    if kind.startswith("sharded"):
        in_two(weights, folder, name, save)
    else:
        save(weights, folder / name)
    return folder
