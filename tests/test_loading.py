"""A model folder loads whole, or is refused in one line that names the file and what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import ADAPTERS, save
from viceversa.cli import main
from viceversa.config import LoraConfig, ModelConfig
from viceversa.models import load_adapter
from viceversa.models.lora import save_lora

Damage = Callable[[Path], Any]
HEAD = "lm_head.weight"


def edit(name: str, **values: Any) -> Damage:
    """Set fields of a JSON file, `section__field=value`; None removes one."""

    def do(folder: Path) -> None:
        tree = json.loads((folder / name).read_text())
        for key, value in values.items():
            *parents, leaf = key.split("__")
            node = tree
            for parent in parents:
                node = node[parent]
            if value is None:
                del node[leaf]
            else:
                node[leaf] = value
        (folder / name).write_text(json.dumps(tree))

    return do


def weights(
    change: Callable[[dict[str, torch.Tensor]], Any], name: str = "model.safetensors"
) -> Damage:
    """Change the weights in place, or give others back."""

    def do(folder: Path) -> None:
        held = load_file(folder / name)
        save_file(change(held) or held, folder / name, {"format": "pt"})

    return do


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def swap(name: str) -> Damage:
    """The file of an Emu3 in its place."""
    return lambda folder: shutil.copy(folder.parent / "emu3" / name, folder / name)


def half(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for i, (name, value) in enumerate(held.items()) if i % 2}


class Run:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


def malicious(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({HEAD: Run()}, folder / "pytorch_model.bin")


SHARD = "model-00002-of-00009.safetensors"
INDEX = "model.safetensors.index.json"
LORA = "adapter_model.safetensors"
OF_LORA = "adapter_config.json"

#: What is done to a whole folder, and what the one line has to say.
CASES: list[tuple[str, str, Damage, str]] = [
    ("janus", "half of the weights", weights(half), f"lack {HEAD}"),
    ("chameleon", "half of the weights", weights(half), f"lack {HEAD}"),
    ("janus", "NaN", weights(lambda w: w[HEAD][0, 0].fill_(torch.nan) and None), HEAD),
    ("janus", "int8", weights(lambda w: {n: v.to(torch.int8) for n, v in w.items()}), "whole"),
    ("janus", "no weights", remove("model.safetensors"), "holds no model.safetensors"),
    ("janus", "cut weights", cut("model.safetensors"), "model.safetensors is cut"),
    ("shards", "missing shard", remove(SHARD), f"{SHARD} is missing"),
    ("shards", "cut shard", cut(SHARD), f"{SHARD} is cut"),
    ("shards", "another's shard", edit(INDEX, weight_map={"a": "../b"}), "no files of its folder"),
    ("janus", "pickle", malicious, "holds more than weights"),
    ("janus", "wide", edit("config.json", text_config__hidden_size=64), "[427, 64] by config.json"),
    ("janus", "shallow", edit("config.json", text_config__num_hidden_layers=1), "left out by"),
    ("janus", "7B", edit("config.json", text_config=None), "its weights lack"),
    ("janus", "list", write("config.json", b"[]"), "config.json holds no JSON object but a list"),
    ("janus", "binary", write("config.json", b"\xff\xfe\0"), "config.json is damaged"),
    ("janus", "heads", edit("config.json", text_config__num_attention_heads=0), "config.json"),
    ("janus", "context", edit("config.json", text_config__max_position_embeddings=9), "no room"),
    ("janus", "image id", edit("config.json", image_token_id=999), "holds id 999 0 times"),
    ("janus", "quantized", edit("config.json", quantization_config={"a": 1}), "quantization_conf"),
    ("janus", "a chameleon", edit("config.json", model_type="chameleon"), "a ChameleonProcessor"),
    ("chameleon", "no codes", edit("config.json", vocabulary_map={}), "names 0 image tokens"),
    ("emu3", "no row end", edit("config.json", **{"vocabulary_map__<|extra_200|>": None}), "row"),
    ("janus", "no template", remove("chat_template.jinja"), "chat_template.jinja"),
    ("janus", "bad jinja", write("chat_template.jinja", b"{% for x %}"), "chat_template.jinja"),
    ("janus", "deaf", write("chat_template.jinja", b"hello"), "drops the words"),
    ("janus", "no tokenizer", remove("tokenizer.json"), "holds no tokenizer.json"),
    ("janus", "cut tokenizer", cut("tokenizer.json"), "tokenizer.json is damaged"),
    ("janus", "odd tokenizer", write("tokenizer.json", b"{}"), "cannot read tokenizer.json"),
    ("janus", "its tokenizer", swap("tokenizer.json"), "the tokenizer's files"),
    ("janus", "no end", edit("tokenizer_config.json", eos_token=None), "names no eos_token"),
    ("janus", "new end", edit("tokenizer_config.json", eos_token="<new>"), "gives id 427"),
    ("janus", "no processor", remove("processor_config.json"), "no processor_config.json"),
    ("janus", "its processor", swap("processor_config.json"), "processor_config.json"),
    ("janus", "no scale", edit("processor_config.json", image_processor__image_std=[0] * 3), "std"),
    ("janus", "settings", write("generation_config.json", b"[]"), "generation_config.json holds"),
    ("lora", "no LoRA", remove(LORA), f"{LORA} is missing"),
    ("lora", "cut LoRA", cut(LORA), f"{LORA} is cut"),
    ("lora", "half a LoRA", weights(half, LORA), "its weights lack"),
    ("lora", "no numbers", weights(lambda w: {n: v / 0 for n, v in w.items()}, LORA), "finite"),
    ("lora", "rank", edit(OF_LORA, r=3), f"by {OF_LORA} and the base"),
    ("lora", "modules", edit(OF_LORA, target_modules=["nothing"]), OF_LORA),
    ("lora", "fewer modules", edit(OF_LORA, target_modules=r".*language.*0\..*q_proj"), "left out"),
    ("lora", "kind", edit(OF_LORA, peft_type="IA3"), OF_LORA),
    ("lora", "nameless base", edit(OF_LORA, base_model_name_or_path=""), "names no base"),
    ("lora", "lost base", edit(OF_LORA, base_model_name_or_path="gone"), "names the base"),
    ("lora", "wrong base", edit(OF_LORA, base_model_name_or_path="emu3"), OF_LORA),
    ("lora", "itself", edit(OF_LORA, base_model_name_or_path="model"), "merge that one"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of each class, and one in shards."""
    place = tmp_path_factory.mktemp("models")
    for name, build in ADAPTERS.items():
        adapter = build()
        save(adapter, place / name)
    shutil.copytree(place / "janus", place / "shards")
    (place / "shards" / "model.safetensors").unlink()
    janus = ModelConfig(str(place / "janus"))
    load_adapter(janus).model.save_pretrained(place / "shards", max_shard_size="600KB")
    tuned = load_adapter(janus, LoraConfig(rank=2))
    save_lora(tuned, place / "lora")
    tuned.processor.save_pretrained(place / "lora")
    return place


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy to damage, `model`, beside an Emu3 of another's files."""

    def do(name: str) -> Path:
        shutil.copytree(models / "emu3", tmp_path / "emu3")
        return Path(shutil.copytree(models / name, tmp_path / "model"))

    return do


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `train` says, before it has written anything."""
    capsys.readouterr()
    out = folder.parent / "run"
    small = ["--set=model.image_size=24", "--set=schedule=t2i", "--steps", "1"]
    assert main(["train", "--model", str(folder), "--output", str(out), *small]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and not out.exists(), told.err
    assert len(told.err) < 700
    return told.err


@pytest.mark.parametrize(("name", "what", "damage", "said"), CASES)
def test_a_folder_that_is_not_whole(
    copied: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    what: str,
    damage: Damage,
    said: str,
) -> None:
    folder = copied(name)
    monkeypatch.chdir(folder.parent)
    damage(folder)
    told = refused(folder, capsys)
    assert said in told, told
    assert not (folder.parent / "unpickled").exists()


@pytest.mark.parametrize("name", [*ADAPTERS, "shards"])
def test_what_no_model_reads_may_be_there_or_not(copied: Callable[[str], Path], name: str) -> None:
    folder = copied(name)
    (folder / "generation_config.json").unlink()
    if name != "shards":
        unread = ("num_batches_tracked",)
        more = {"model.vqmodel.codebook_loss.weight": torch.ones(2)}
        weights(lambda w: {n: v for n, v in w.items() if not n.endswith(unread)} | more)(folder)
    load_adapter(ModelConfig(str(folder), image_size=24))
