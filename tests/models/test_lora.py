"""LoRA on every adapter: what moves, what is saved, what a merge gives back."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    JanusForConditionalGeneration,
)

from builders import ADAPTERS, save
from viceversa.cli import main
from viceversa.config import ConfigError, LoraConfig, ModelConfig
from viceversa.inference.logprobs import completion_logprobs
from viceversa.inference.snapshot import Snapshot
from viceversa.models import load_adapter, make_adapter
from viceversa.models.base import Adapter
from viceversa.models.geometry import meta_adapter
from viceversa.models.lora import add_lora, base_of, save_lora
from viceversa.rl.rollout import input_prompts
from viceversa.scenes.examples import examples_of
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import DIRECTIONS


def saved(adapter: Adapter, folder: Path) -> Path:
    save(adapter, folder)
    return folder


@torch.no_grad()
def logprobs_of(adapter: Adapter) -> list[torch.Tensor]:
    found = []
    for direction in ("t2i", "i2t"):
        examples = examples_of(direction, draw_specs(0, 1, "train"))[:3]
        prompts = input_prompts(adapter, examples, "")
        if direction == "t2i":
            ids = torch.arange(3 * adapter.image_tokens).view(3, -1) % adapter.image_vocab_size
            completions = adapter.image_completion(ids)
        else:
            completions = adapter.text_completion(["a red ring", "two", "a blue star and a ring"])
        found.append(completion_logprobs(adapter, prompts, completions))
    return found


def exact_logprobs(adapter: Adapter) -> list[torch.Tensor]:
    """In float64, so that what differs is the weights and not how a processor adds."""
    adapter.model.double()
    return logprobs_of(adapter)


@dataclass
class Watched:
    """Whole models around every real training, by reference and by value."""

    adapters: list[Adapter] = field(default_factory=list)
    before: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def check(self) -> None:
        """All that trains has moved, all that is frozen is the same to the bit, buffers too."""
        (adapter,), (before,) = self.adapters, self.before
        after = adapter.model.state_dict()
        trained = {n for n, p in adapter.model.named_parameters() if p.requires_grad}
        assert trained == {n for n in after if "lora_" in n}
        assert len(trained) == 2 * 7 * 2  # A and B on every linear layer of two layers
        assert after.keys() == before.keys() and len(after) > 3 * len(trained)
        for name, value in after.items():
            assert torch.equal(value, before[name]) == (name not in trained), name


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found, honest = Watched(), DualRewardTrainer.train

    def train(self: DualRewardTrainer, *args: Any, **kwargs: Any) -> Any:
        found.adapters.append(self.adapter)
        found.before.append({n: v.clone() for n, v in self.adapter.model.state_dict().items()})
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(DualRewardTrainer, "train", train)
    return found


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_train_lora_merge_and_load(name: str, tmp_path: Path, watched: Watched) -> None:
    """A user's whole way: every LoRA weight moves, nothing else, and the merge is the model."""
    base = saved(ADAPTERS[name](), tmp_path / "base")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ring\na blue star\ntwo green circles\na ring above a star\n")
    (tmp_path / "photos").mkdir()
    for i, spec in enumerate(draw_specs(0, 1, "train")[:4]):
        Image.fromarray(render(spec)).save(tmp_path / "photos" / f"{i}.png")
    run = tmp_path / "run"
    command = ["train", "--model", str(base), "--prompts", str(prompts), "--output", str(run)]
    command += ["--images", str(tmp_path / "photos"), "--lora", "--steps", "3"]
    small = ["data.prompts_per_step=2", "data.images_per_step=2", "sampling.group_size=4"]
    small += ["sampling.max_caption_tokens=6", "train.learning_rate=1e-2", "model.image_size=24"]
    small += ["train.use_cpu=true", "train.warmup_steps=0", f"data.cache_dir={tmp_path / 'cache'}"]
    assert main([*command, *(x for s in small for x in ("--set", s))]) == 0
    watched.check()
    checkpoint = run / "checkpoint-3"
    assert not (checkpoint / "model.safetensors").exists()
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 2e6

    want = exact_logprobs(watched.adapters[0])  # of the model as it was trained, never saved
    tuned = load_adapter(ModelConfig(str(checkpoint), image_size=24))
    for a, b in zip(exact_logprobs(tuned), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    merged = tmp_path / "merged"
    assert main(["merge", str(checkpoint), "--output", str(merged)]) == 0
    kind = JanusForConditionalGeneration if name == "janus" else AutoModelForImageTextToText
    plain: Any = kind.from_pretrained(merged)
    got = exact_logprobs(make_adapter(plain, AutoProcessor.from_pretrained(merged), 24))
    start = exact_logprobs(load_adapter(ModelConfig(str(base), image_size=24)))
    for a, b, before in zip(got, want, start, strict=True):
        # the sum of base and LoRA was rounded to float32
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
        assert (b - before).abs().max() > 1e-3


def lora_checkpoint(base: Path, folder: Path) -> Path:
    """A LoRA that changes the model, saved."""
    adapter = load_adapter(ModelConfig(str(base)), LoraConfig(rank=4))
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapter.lora.save_pretrained(folder)
    adapter.processor.save_pretrained(folder)
    return folder


def test_the_start_depends_on_the_seed_alone(tmp_path: Path) -> None:
    """Whatever was drawn before; and drawing it moves no generator that others use."""
    base = ModelConfig(str(saved(ADAPTERS["janus"](), tmp_path / "base")))

    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(3)
        return dict(load_adapter(base, LoraConfig(rank=4), seed).model.named_parameters())

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    moved = [n for n, value in first.items() if not torch.equal(other[n], value)]
    assert moved and all("lora_A" in name for name in moved)
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    adapter = ADAPTERS["janus"]()
    torch.manual_seed(0)
    add_lora(adapter, LoraConfig(rank=4), "base")
    assert torch.equal(torch.rand(1), want)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("lora_alpha", 16.5, None), ("r", "four", r"cannot read adapter_config\.json")],
)
def test_settings_of_a_checkpoint_that_only_peft_takes(
    tmp_path: Path, key: str, value: object, message: str | None
) -> None:
    base = saved(ADAPTERS["janus"](), tmp_path / "base")
    file = lora_checkpoint(base, tmp_path / "lora") / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refused = pytest.raises(ConfigError, match=message) if message else nullcontext()
    with refused:
        assert meta_adapter(ModelConfig(str(tmp_path / "lora"))).lora is not None


def test_a_checkpoint_finds_its_base_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(ADAPTERS["janus"](), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    lora_checkpoint(Path("base"), Path("lora"))
    assert base_of("lora") == str(tmp_path / "base")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["merge", "../lora", "--output", "merged"]) == 0


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_checkpoint_asks_the_hub_for_nothing(tmp_path: Path) -> None:
    """The name of a base that is no folder, such as `builtin`, could be one of the hub."""
    adapter = load_adapter(ModelConfig(path="builtin"), LoraConfig(rank=2), seed=0)
    save_lora(adapter, tmp_path)
    assert load_file(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_keeps_the_dtype_of_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    """Added in float32, then rounded once."""
    adapter = ADAPTERS["janus"]()
    adapter.model.to(dtype)
    checkpoint = lora_checkpoint(saved(adapter, tmp_path / "base"), tmp_path / "lora")
    assert main(["merge", str(checkpoint), "--output", str(tmp_path / "merged")]) == 0
    weights = load_file(tmp_path / "merged" / "model.safetensors")
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {dtype}
    tuned = load_adapter(ModelConfig(str(checkpoint)))
    whole = tuned.lora.merge_and_unload().state_dict()
    for name, weight in weights.items():
        assert torch.equal(weight, whole[name].to(dtype)), name
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] in str(dtype)


def test_an_original_layout_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "Emu3"}))
    with pytest.raises(ConfigError, match=r"'Emu3' model: .*convert"):
        load_adapter(ModelConfig(str(tmp_path)))


def test_every_lora_weight_moves(adapter: Adapter) -> None:
    """Two steps of plain gradient on both directions move A and B everywhere."""
    adapter.model.requires_grad_(False)
    add_lora(adapter, LoraConfig(rank=4), "base")
    before = {n: p.detach().clone() for n, p in adapter.model.named_parameters()}
    trained = [p for p in adapter.model.parameters() if p.requires_grad]
    for _ in range(2):
        optimizer = torch.optim.SGD(trained, lr=0.1)
        examples = examples_of("t2i", draw_specs(0, 1, "train"))[:2]
        ids = torch.zeros(2, adapter.image_tokens, dtype=torch.long)
        rows = [(input_prompts(adapter, examples, ""), adapter.image_completion(ids))]
        examples = examples_of("i2t", draw_specs(0, 1, "train"))[:2]
        text = adapter.text_completion(["a red ring", "a star"])
        rows.append((input_prompts(adapter, examples, ""), text))
        loss = -torch.stack([completion_logprobs(adapter, *r).mean() for r in rows]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in adapter.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name), name


def test_lora_on_the_last_layer_changes_both_modalities(adapter: Adapter) -> None:
    """What is sampled and learned is what the merged model does."""
    add_lora(adapter, LoraConfig(rank=4, modules=r".*lm_head"), "base")
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    ids = torch.arange(2 * adapter.image_tokens).view(2, -1) % 4
    drawn, written = adapter.image_completion(ids), adapter.text_completion(["a red ring", "a"])
    rows = []
    for direction, completions in zip(DIRECTIONS, (drawn, written), strict=True):
        examples = examples_of(direction, draw_specs(0, 1, "train"))[:2]
        rows.append((input_prompts(adapter, examples, ""), completions))
    found = [completion_logprobs(adapter, *row) for row in rows]
    adapter.model = adapter.lora.merge_and_unload()
    for row, logprobs in zip(rows, found, strict=True):
        want = completion_logprobs(adapter, *row)
        torch.testing.assert_close(logprobs, want, atol=1e-4, rtol=1e-4)


def test_a_snapshot_keeps_lora_alone_and_gives_the_base_back(adapter: Adapter) -> None:
    adapter.model.requires_grad_(False)
    base = logprobs_of(adapter)
    add_lora(adapter, LoraConfig(rank=4), "base")
    snapshot = Snapshot(adapter.model)
    assert all("lora_" in name for name in snapshot.weights)
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05)
    tuned = logprobs_of(adapter)
    assert (tuned[0] - base[0]).abs().max() > 1e-3
    with snapshot.restored():
        for a, b in zip(logprobs_of(adapter), base, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(logprobs_of(adapter), tuned, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)
