"""The layout that deepseek-ai/Janus-Pro is published in: loaded directly, tuned, written back.

Names, shapes and outputs come from the original's own code (janus_original/make.py); only the
files around the weights are written here, as the published ones are.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import JanusForConditionalGeneration

from builders import random_janus, save
from original_folders import (
    ABOUT,
    FOLDER,
    LAYOUT,
    know_narrow_modules,
    original_folder,
    original_weights,
    write_json,
)
from test_janus_original import IDS, close, drawing, guided
from viceversa.api import model as api
from viceversa.cli import main
from viceversa.config import Config, ConfigError, LoraConfig, ModelConfig
from viceversa.inference import logprobs as lp
from viceversa.measure.outputs import decodings
from viceversa.models import export, load_adapter, original
from viceversa.models.base import Adapter
from viceversa.models.geometry import KNOWN, meta_adapter
from viceversa.models.lora import save_lora
from viceversa.pretrain import tiny
from viceversa.types import Completion, PromptBatch


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    know_narrow_modules(monkeypatch)


@pytest.fixture(scope="module")
def kept() -> dict[str, Tensor]:
    return load_file(FOLDER / "fixture.safetensors")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return original_weights()


@pytest.fixture
def base(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    return original_folder(tmp_path / "base", weights, "pytorch_model.bin")


@pytest.fixture
def adapter(base: Path) -> Adapter:
    return load_adapter(ModelConfig(str(base)))


def exported(model: Path, base: Path, output: Path) -> dict[str, Tensor]:
    assert main(["export", str(model), "--base", str(base), "--output", str(output)]) == 0
    return load_file(output / "model.safetensors")


def check_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight), name


# --- loading ------------------------------------------------------------------------------------

KINDS = [
    "model.safetensors",
    "sharded model.safetensors",
    "pytorch_model.bin",
    "sharded pytorch_model.bin",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_placed(
    kind: str, tmp_path: Path, weights: dict[str, Tensor], kept: dict[str, Tensor]
) -> None:
    folder = original_folder(tmp_path / "base", weights, kind)
    found = load_adapter(ModelConfig(str(folder))).model.state_dict()
    assert {f"weights.{name}" for name in found} == {n for n in kept if n.startswith("weights.")}
    for name, weight in found.items():
        assert torch.equal(weight, kept[f"weights.{name}"].float()), name


@torch.no_grad()
def test_it_gives_what_the_original_gave(adapter: Any, kept: dict[str, Tensor]) -> None:
    """Its own config.json, tokenizer and picture settings, nothing of the fixture's."""
    assert torch.equal(adapter.encode_images(kept["pictures"]), kept["image_ids"])
    close(adapter.model.model.vqmodel.decode(kept["drawn_ids"]), kept["decoded"])
    close(adapter.image_features(kept["pictures"]), kept["vision_features"])
    for n in (0, 1):
        prompts, written, want = drawing(kept, n)
        close(guided(adapter, prompts, adapter.blank_prompts(prompts), written), want)
    prompts = PromptBatch(
        "i2t", kept["read.prompt_ids"], kept["read.attention_mask"].bool(), kept["pictures"]
    )
    text = kept["read.text_ids"]
    written = Completion(text, torch.ones_like(text, dtype=torch.bool))
    close(
        adapter.logits(lp.completion_hidden(adapter, prompts, written), "text"), kept["read.logits"]
    )


def test_ids_and_prompts_are_the_originals(adapter: Any) -> None:
    ids = (adapter.bos_id, adapter.stop_id, adapter.pad_id, adapter.boi_id, adapter.image_id)
    assert ids == tuple(IDS[name] for name in ("bos", "eos", "pad", "boi", "image"))
    said = {"t2i": ABOUT["prompts"]["prompt"], "i2t": ABOUT["prompts"]["instruction"]}
    for direction, text in said.items():
        picture = tiny.BOI + tiny.IMAGE * adapter.image_tokens + tiny.EOI
        want = tiny.BOS + ABOUT["prompts"][direction].replace(tiny.IMAGE, picture)
        assert adapter.prompt_text(direction, text) == want
        assert adapter.tokenizer.decode(adapter.text_ids(want)) == want
    assert adapter.model.generation_config.pad_token_id == IDS["pad"]
    assert adapter.processor.image_processor.size["height"] == adapter.image_size == 32


def test_a_hub_name_is_fetched(
    base: Path, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Tensor]
) -> None:
    """Weights in .bin alone, as published."""
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns[-1]))
        return str(base)

    monkeypatch.setattr(original, "snapshot_download", snapshot)
    monkeypatch.setattr(
        "transformers.PreTrainedConfig.get_config_dict", lambda name: (LAYOUT["config"], {})
    )
    found = load_adapter(ModelConfig("owner/Janus-Pro-Tiny")).model.lm_head.weight
    assert torch.equal(found, kept["weights.lm_head.weight"].float())
    assert {name for name, _ in asked} == {"owner/Janus-Pro-Tiny"}
    assert asked[-2:] == [("owner/Janus-Pro-Tiny", kind) for kind in ("*.safetensors", "*.bin")]


PUBLISHED = {  # of language_config; the rest of the two models' config.json follows from the width
    "janus-pro-1b": (2048, 5632, 24, 16),
    "janus-pro-7b": (4096, 11008, 30, 32),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_geometries(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width, inner, layers, heads = PUBLISHED[name]
    sizes = {"base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2}
    monkeypatch.setitem(original.CODECS, "VQ-16", {**sizes, "latent_channels": 256})
    mlp = {"depth": 2, "n_embed": width, "projector_type": "mlp_gelu"}
    codes = {"image_token_size": 16384}
    tower = {"image_size": 384, "model_name": "siglip_large_patch16_384", "select_layer": -1}
    config = {
        "aligner_config": {"cls": "MlpProjector", "params": {**mlp, "input_dim": 1024}},
        "gen_aligner_config": {"cls": "MlpProjector", "params": {**mlp, "input_dim": 8}},
        "gen_head_config": {"params": {**codes, "image_token_embed": width, "n_embed": width}},
        "gen_vision_config": {"cls": "VQ-16", "params": {**codes, "n_embed": 8}},
        "language_config": {
            "hidden_size": width,
            "intermediate_size": inner,
            "max_position_embeddings": 16384,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": heads,
            "torch_dtype": "bfloat16",
            "vocab_size": 102400,
        },
        "model_type": "multi_modality",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "cls": "CLIPVisionTower",
            "params": {**tower, "select_feature": "same"},
        },
    }
    write_json(tmp_path / "config.json", config)
    found = original.read_config(str(tmp_path), "it")
    assert found.dtype == torch.bfloat16
    ours, theirs = found.to_dict(), KNOWN[name]().to_dict()
    for tree in (ours, theirs, *(t[k] for t in (ours, theirs) for k in t if k.endswith("config"))):
        tree.pop("dtype", None)
    assert ours == theirs
    shapes = [p.shape for p in meta_adapter(ModelConfig(str(tmp_path))).model.parameters()]
    assert shapes == [p.shape for p in meta_adapter(ModelConfig(name)).model.parameters()]


def test_it_draws_at_the_originals_guidance(
    adapter: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5, as the original's code and transformers have it: loaded, saved, drawn and measured."""
    assert adapter.own_guidance == 5
    save(adapter, tmp_path / "saved")
    assert load_adapter(ModelConfig(str(tmp_path / "saved"))).own_guidance == 5
    found = decodings(adapter, "t2i", Config())
    assert (found["training"].guidance, found["use"].guidance) == (1, 5)
    drawn: list[float] = []
    honest = api.rollout

    def spy(adapter: Adapter, examples: Any, sampling: Any, *rest: Any) -> Any:
        drawn.append(sampling.guidance)
        return honest(adapter, examples, sampling, *rest)

    monkeypatch.setattr(api, "rollout", spy)
    asked = ["draw", "a ring", "--model", str(base), "--output"]
    assert main([*asked, str(tmp_path / "drawn")]) == 0
    assert main([*asked, str(tmp_path / "plain"), "--guidance=1"]) == 0
    assert drawn == [5, 1]


def test_transformers_layout_keeps_its_own_guidance(tmp_path: Path) -> None:
    """None where its generation settings name none."""
    model = random_janus()
    for guidance, found in ((None, 1), (3.0, 3)):
        model.model.generation_config.guidance_scale = guidance
        save(model, tmp_path / str(found))
        assert load_adapter(ModelConfig(str(tmp_path / str(found)))).own_guidance == found


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_untouched_model_comes_back_bit_for_bit(
    kind: str, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    """The settings' files, too; the weights as safetensors, and nothing else."""
    base, out = original_folder(tmp_path / "base", weights, kind), tmp_path / "new" / "out"
    check_same(exported(base, base, out), weights)
    copied = {file.name for file in base.iterdir()} - names_of_weights(base)
    assert {file.name for file in out.iterdir()} == copied | {"model.safetensors"}
    for name in copied:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert not list(out.parent.glob("*.partial"))


def names_of_weights(folder: Path) -> set[str]:
    found = {f.name for pattern in ("*.bin", "*.safetensors") for f in folder.glob(pattern)}
    return found | {file.name for file in folder.glob("*.index.json")}


def test_a_tuned_model_comes_back(
    adapter: Any, base: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    """In transformers' layout, as training saves it; what was tuned is rounded, the rest exact."""
    with torch.no_grad():
        for parameter in adapter.trainable_parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    save(adapter, tmp_path / "tuned")
    found = exported(tmp_path / "tuned", base, tmp_path / "out")
    moved = {name for name, weight in weights.items() if not torch.equal(found[name], weight)}
    tuned = ("language_model.", "gen_head.", "gen_aligner.", "gen_embed.")
    assert moved == {name for name in weights if name.startswith(tuned)}
    again = load_adapter(ModelConfig(str(tmp_path / "out"))).model.state_dict()
    for name, weight in adapter.model.state_dict().items():
        assert torch.equal(again[name], weight.half().float()), name


def test_lora_is_merged(base: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    adapter = load_adapter(ModelConfig(str(base)), LoraConfig(rank=2))
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_lora(adapter, tmp_path / "lora")
    found = exported(tmp_path / "lora", base, tmp_path / "out")
    moved = {name for name, weight in weights.items() if not torch.equal(found[name], weight)}
    assert moved == {n for n in weights if n.startswith("language_model.") and "_proj." in n}
    whole = adapter.lora.merge_and_unload().state_dict()
    again = load_adapter(ModelConfig(str(tmp_path / "out"))).model.state_dict()
    for name, weight in whole.items():
        assert torch.equal(again[name], weight.half().float()), name


@pytest.mark.parametrize("rank", [0, 2])
def test_training_starts_there(rank: int, base: Path, tmp_path: Path) -> None:
    """Its checkpoint is transformers' layout, is loaded again, and goes back to the original's."""
    small = ["schedule=t2i", "data.prompts_per_step=1", "data.images_per_step=1"]
    small += ["data.scenes_size=4", "sampling.group_size=2", "sampling.max_caption_tokens=4"]
    small += ["eval.specs_per_kind=0", "train.learning_rate=0.1", f"lora.rank={rank}"]
    run = ["train", "--model", str(base), "--steps", "1", "--output", str(tmp_path / "run")]
    assert main([*run, *(f"--set={option}" for option in (*small, "train.save_steps=1"))]) == 0
    (checkpoint,) = tmp_path.glob("run/checkpoint-*")
    if not rank:
        JanusForConditionalGeneration.from_pretrained(checkpoint)
    found = exported(checkpoint, base, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "official code loads this folder" in card and "1 of 1 steps" in card
    assert str(tmp_path) not in card and not list(tmp_path.glob("*.partial"))
    tuned = load_adapter(ModelConfig(str(checkpoint)))
    model = tuned.lora.merge_and_unload() if rank else tuned.model
    head = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(
        found[head], model.model.language_model.layers[0].self_attn.q_proj.weight.half()
    )


def test_large_models_come_in_shards(
    base: Path, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD", 400_000)
    out = tmp_path / "out"
    assert main(["export", str(base), "--base", str(base), "--output", str(out)]) == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    found: dict[str, Tensor] = {}
    for file in files:
        held = load_file(file)
        assert {index["weight_map"][name] for name in held} == {file.name}
        found |= held
    check_same(found, weights)
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in weights.values())
    load_adapter(ModelConfig(str(out)))


# --- what is wrong is said ----------------------------------------------------------------------


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads((folder / name).read_text())
    change(tree)
    write_json(folder / name, tree)


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "understanding alone": ("config.json", lambda t: t.pop("gen_head_config"), "gen_head_config"),
    "another tower": (
        "config.json",
        lambda t: t["vision_config"]["params"].update(model_name="sam_b"),
        "'sam_b'; supported: siglip_large",
    ),
    "another layer": (
        "config.json",
        lambda t: t["vision_config"]["params"].update(select_layer=-2),
        "select_layer in config.json is -2",
    ),
    "not an object": ("config.json", lambda t: t.update(language_config=3), "language_config"),
    "wider": (
        "config.json",
        lambda t: t["language_config"].update(intermediate_size=128),
        r"mlp.down_proj.weight is \[48, 96\] in its weights and \[48, 128\] by config.json",
    ),
    "deeper": (
        "config.json",
        lambda t: t["language_config"].update(num_hidden_layers=3),
        r"its weights lack language_model.model.layers.2\.",
    ),
    "another conversation": (
        "processor_config.json",
        lambda t: t.update(sft_format="llama-2"),
        "sft_format in processor_config.json is 'llama-2'",
    ),
    "another tag": ("processor_config.json", lambda t: t.update(image_tag="<i>"), "no <i>"),
    "no size": ("preprocessor_config.json", lambda t: t.pop("image_size"), "image_size"),
    "no end": ("tokenizer_config.json", lambda t: t.pop("eos_token"), "names no eos_token"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_settings(name: str, base: Path) -> None:
    file, change, said = BROKEN[name]
    changed(base, file, change)
    if name == "no end":
        (base / "special_tokens_map.json").unlink()
    with pytest.raises(ConfigError, match=said):
        load_adapter(ModelConfig(str(base)))


def test_weights_that_are_missing_or_unknown_are_named(
    base: Path, weights: dict[str, Tensor]
) -> None:
    name = "gen_head.vision_head.bias"
    torch.save({n: w for n, w in weights.items() if n != name}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=f"its weights lack {name}"):
        load_adapter(ModelConfig(str(base)))
    torch.save({**weights, "vision_uvit.weight": weights[name]}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"hold vision_uvit\.weight, which config\.json does not"):
        load_adapter(ModelConfig(str(base)))
    torch.save({**weights, name: weights[name] * torch.inf}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="finite"):
        load_adapter(ModelConfig(str(base)))


def test_files_that_hold_more_than_weights_are_not_read(base: Path) -> None:
    torch.save({"weights": Path}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="more than weights"):
        load_adapter(ModelConfig(str(base)))
    torch.save({"lm_head": torch.zeros(3, dtype=torch.int8)}, base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="lm_head is no weight of a model"):
        load_adapter(ModelConfig(str(base)))
    torch.save([1, 2], base / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot read pytorch_model\.bin"):
        load_adapter(ModelConfig(str(base)))


@pytest.mark.parametrize("places", [{"lm_head": "../secret.bin"}, {}, {"lm_head": 3}])
def test_an_index_names_files_of_its_folder(places: dict[str, Any], base: Path) -> None:
    (base / "pytorch_model.bin").unlink()
    write_json(base / "pytorch_model.bin.index.json", {"weight_map": places})
    with pytest.raises(ConfigError, match="names no files of its folder"):
        load_adapter(ModelConfig(str(base)))


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["export", *(str(a) for a in arguments)]) == 2
    return capsys.readouterr().err


def test_export_asks_for_a_base_that_fits(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_janus()
    save(other, tmp_path / "other")
    out = tmp_path / "out"
    said = refused([base, "--base", tmp_path / "other", "--output", out], capsys)
    assert "a 'janus' model: name one in the original's layout" in said
    said = refused([tmp_path / "other", "--base", base, "--output", out], capsys)
    assert f"--base is '{base}'; its weights lack vision_model.vision_tower.blocks.2" in said
    said = refused([base, "--base", tmp_path / "none", "--output", out], capsys)
    assert "--base: model.path is" in said
    assert not out.exists() and not list(tmp_path.glob("*.partial"))
    said = refused([base, "--base", base, "--output", base], capsys)
    assert "it exists: choose another" in said


def test_numbers_that_do_not_fit_are_refused(
    adapter: Any, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.no_grad():
        adapter.model.lm_head.weight[0, 0] = 1e6
    save(adapter, tmp_path / "tuned")
    said = refused([tmp_path / "tuned", "--base", base, "--output", tmp_path / "out"], capsys)
    assert "lm_head.weight has numbers that the base's torch.float16 cannot hold" in said
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))


def test_a_full_disk_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(weights: dict[str, Tensor], file: Path, **_: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    out = tmp_path / "out"
    assert main(["export", str(base), "--base", str(base), "--output", str(out)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]
