"""The plan against real tiny models: counts exact, bytes near, advice tried."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from builders import ADAPTERS, save
from viceversa.cli import main
from viceversa.config import (
    Config,
    ConfigError,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    load_config,
    with_options,
)
from viceversa.data.sources import load_sources
from viceversa.data.stream import Stream
from viceversa.inference.engines import Plain
from viceversa.inference.logprobs import policy_logprobs
from viceversa.inference.sampler import DrawKeys, _Decoder
from viceversa.models import geometry, load_adapter
from viceversa.models.base import Adapter
from viceversa.models.geometry import KNOWN, meta_adapter
from viceversa.plan.advice import _changes, advise
from viceversa.plan.gpus import GPUS
from viceversa.plan.ledger import BLOCK, Ledger
from viceversa.plan.plan import GIB, make_plan
from viceversa.plan.simulate import (
    Geometry,
    completions_of,
    drawing,
    prompts_of,
    run_sampling,
)
from viceversa.rl.rollout import input_prompts
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.training.arguments import training_arguments
from viceversa.training.trainer import DualRewardTrainer
from viceversa.types import Completion

CARD = GPUS["h100"]

ENGINE = "viceversa.inference.sampler.engine_of"


def saved(name: str, place: Path) -> Path:
    adapter = ADAPTERS[name]()
    save(adapter, place / "model")
    return place / "model"


@pytest.fixture(params=list(ADAPTERS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny random model of each class."""
    return saved(request.param, tmp_path)


@pytest.fixture
def janus(tmp_path: Path) -> Path:
    return saved("janus", tmp_path)


def counts(adapter: Adapter) -> dict[str, tuple[int, bool]]:
    return {n: (p.numel(), p.requires_grad) for n, p in adapter.model.named_parameters()}


@pytest.mark.parametrize("rank", [0, 4])
def test_the_same_parameters_are_trained(folder: Path, rank: int) -> None:
    config, lora = ModelConfig(str(folder), image_size=24), LoraConfig(rank=rank)
    planned, real = meta_adapter(config, lora), load_adapter(config, lora)
    assert counts(planned) == counts(real)
    assert all(p.is_meta for p in planned.model.parameters())
    if rank:
        real.lora.save_pretrained(folder.parent / "lora")
        again = meta_adapter(ModelConfig(str(folder.parent / "lora"), image_size=24))
        assert counts(again) == counts(real)
        trained = sum(n for n, grad in counts(planned).values() if grad)
        assert trained == real.lora.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("name", "side", "tokens", "billions"),
    [
        ("deepseek-community/Janus-Pro-1B", 0, 576, 2.077),
        ("deepseek-community/Janus-Pro-7B", 0, 576, 7.408),
        ("BAAI/Emu3-Stage1", 512, 4096, 8.763),
        ("leloy/Anole-7b-v0.1-hf", 0, 1024, 7.043),
    ],
)
def test_known_geometries_need_no_download(
    name: str, side: int, tokens: int, billions: float
) -> None:
    adapter = meta_adapter(ModelConfig(name, image_size=side))
    assert adapter.image_tokens == tokens
    assert round(sum(n for n, _ in counts(adapter).values()) / 1e9, 3) == billions
    assert any(part in name.lower() for part in KNOWN)


def test_a_name_that_goes_on_is_another_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(path: str, shown: str) -> str:
        raise ConfigError(f"the hub is asked for {shown}")

    monkeypatch.setattr(geometry, "supported_type", asked)
    for name in ("BAAI/Emu3.5", "me/tiny-emu3-test", "me/janus-pro-1b2"):
        with pytest.raises(ConfigError, match=f"asked for {name}"):
            geometry.geometry_of(name)
    assert geometry.geometry_of("me/Janus-Pro-1B-aligned").model_type == "janus"


def cache_bytes(cache: Any) -> int:
    names = ("prompt_keys", "prompt_values", "keys", "values")
    kept = (getattr(layer, name) for layer in cache.layers for name in names)
    return sum(x.untyped_storage().nbytes() for x in kept)


def rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def test_the_cache_is_counted_exactly(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "viceversa.inference.sampler.engine_of", lambda adapter: Plain
    )  # as planned
    save(adapter, tmp_path)
    prompts = input_prompts(adapter, examples_of("t2i", draw_specs(0, 1, "train"))[:1], "")
    prompts = prompts.select(torch.zeros(3, dtype=torch.long))
    blank = len(adapter.text_ids(adapter.prompt_text("t2i", "")))
    words = prompts.prompt_ids.shape[1] - blank
    for guidance, autocast in ((1.0, False), (2.0, True)):
        geometry = Geometry(str(tmp_path), "float32", 24, autocast=autocast)
        book, planned = run_sampling(geometry, "t2i", 3, 2, words, guidance)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            keys = DrawKeys(0, 0, tuple((p, g) for p in range(3) for g in range(2)))
            real: Any = _Decoder(adapter, prompts, keys, SamplingConfig(guidance=guidance))
            cache = real.engine.cache
        held = cache_bytes(cache)
        assert cache_bytes(planned.engine.cache) == held
        assert book.peak["KV cache"] >= held


@pytest.mark.parametrize(
    ("lora", "autocast"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_saved_activations_are_those_of_a_real_step(
    folder: Path, lora: bool, autocast: bool
) -> None:
    """What is alive after the forward pass: distinct storages that autograd really keeps."""
    settings = (4 if lora else 0, 32, 0.0, "")
    geometry = Geometry(str(folder), "float32", 24, settings)
    planned, rows = geometry.adapter(), 3
    book = Ledger(lambda tensor: "activations", autocast=autocast)
    book.ignore([*planned.model.parameters(), *planned.model.buffers()])
    planned.model.train()
    with book.open():
        batch = [
            (prompts_of(planned, d, rows, 5), completions_of(planned, d, rows, 7))
            for d in ("t2i", "i2t")
        ]
        ids = book.alive.total()
        held = policy_logprobs(planned, batch)
        kept = book.alive.total() - ids
    assert all(x.requires_grad for x in held)

    real = load_adapter(ModelConfig(str(folder), image_size=24), LoraConfig(*settings))
    own = {t.untyped_storage().data_ptr() for t in real.model.state_dict().values()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    real.model.train()
    low = torch.autocast("cpu", torch.bfloat16, enabled=autocast)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), low:
        outputs = policy_logprobs(real, [(_real(p), _real(c)) for p, c in batch])
    assert all(x.requires_grad for x in outputs)
    bytes_of = {k: rounded(t.untyped_storage().nbytes()) for k, t in saved.items() if k not in own}
    assert kept == pytest.approx(sum(bytes_of.values()), rel=0.05)


def _real(meta: Any) -> Any:
    """The same rows on the CPU, all zeros."""
    fields = {
        k: torch.zeros(v.shape, dtype=v.dtype) if isinstance(v, Tensor) else v
        for k, v in vars(meta).items()
    }
    for mask in ("attention_mask", "completion_mask"):
        if mask in fields:
            fields[mask] = torch.ones_like(fields[mask])
    if isinstance(meta, Completion):
        return Completion(**fields)
    return type(meta)(**fields)


def config_of(folder: Path, *overrides: str) -> Config:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a red ring\na blue ring\na red star\na blue star\n")
    return load_config(
        None,
        [
            f"model.path={folder}",
            f"data.prompts={prompts}",
            "model.image_size=24",
            "data.prompts_per_step=4",
            "data.images_per_step=4",
            "sampling.group_size=4",
            "sampling.max_caption_tokens=8",
            "loss.direction_norms_every=0",
            "train.use_cpu=true",
            "train.save_strategy=no",
            f"output_dir={folder.parent / 'run'}",
            "steps=2",
            *overrides,
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("janus", []),
        ("emu3", []),
        ("chameleon", []),
        ("janus", ["schedule=t2i", "loss.t2i_kl=0.01", "loss.batch_rows=4"]),
        ("janus", ["loss.group_share=0.5"]),
        ("janus", ["train.bf16=true"]),
        ("emu3", ["lora.rank=4", "train.activation_checkpointing=true", "loss.name=simpo"]),
    ],
    ids=[
        "janus",
        "emu3",
        "chameleon",
        "parts and a reference",
        "half the groups",
        "autocast",
        "LoRA and checkpointing",
    ],
)
def test_the_peak_is_that_of_real_steps(name: str, overrides: list[str], tmp_path: Path) -> None:
    """Two optimizer steps on the CPU, every allocation of every phase counted by its own ledger.

    Tiny rows are of unequal lengths, whose masks the plan leaves out: 20 % are allowed.
    """
    folder = saved(name, tmp_path)
    config = config_of(folder, *overrides)
    adapter = load_adapter(config.model, config.lora)
    stream = Stream(config, load_sources(config, adapter.image_size), 1)
    args = training_arguments(config)
    book = Ledger(lambda tensor: "", device="cpu")
    weights = [*adapter.model.parameters(), *adapter.model.buffers()]
    book.ignore(weights)
    trainer = DualRewardTrainer(adapter, config, stream, args)
    with book:
        trainer.train()
    measured = book.peak.total() + sum(t.untyped_storage().nbytes() for t in weights)
    if (kept := trainer.step.reference) is not None:
        measured += sum(t.untyped_storage().nbytes() for t in kept.weights.values())
    blank, whole = (
        len(adapter.text_ids(adapter.prompt_text("t2i", t))) for t in ("", "a red ring")
    )
    planned = make_plan(config, words=whole - blank).peak.bytes
    assert planned == pytest.approx(measured, rel=0.2)


def test_optimizer_state_is_two_numbers_a_weight(janus: Path) -> None:
    config = config_of(janus)
    phase = make_plan(config).phases[0]
    adapter = load_adapter(config.model)
    trained = [p for p in adapter.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    states = sum(v.nbytes for s in optimizer.state.values() for k, v in s.items() if k != "step")
    assert phase.memory["optimizer"] == states


def test_pictures_are_decoded_a_few_at_a_time() -> None:
    """Of Janus-Pro at 384 pixels, 64 at once would take 6.8 GB; of Emu3 at 512, 324."""
    for name, side in (("janus-pro-1b", 0), ("emu3", 512)):
        geometry = Geometry(name, "bfloat16", side)
        few = geometry.adapter().pictures_at_once
        assert drawing(geometry, few)["activations"] < 11 * GIB
        assert drawing(geometry, 64)["activations"] > 6 * GIB


def test_sharding_and_kept_weights_are_counted(janus: Path) -> None:
    full = config_of(janus, "train.bf16=true")
    alone = make_plan(full)
    sharded = make_plan(config_of(janus, "train.bf16=true", "train.fsdp=true"), 4)
    assert sharded.phases[0].bytes >= 4 * (alone.frozen + alone.trainable)  # whole, while loading
    assert sharded.phases[1].memory["optimizer"] == alone.phases[0].memory["optimizer"] // 4
    adapter = load_adapter(full.model)
    codec = sum(p.numel() for p in adapter.image_tokenizer.parameters())
    others = alone.frozen + alone.trainable - codec
    whole = 4 * codec + others + 2 * others  # float32: whole, a fourth; gathered in bfloat16
    buffers = sum(b.nbytes for b in adapter.model.buffers())
    assert 0 <= sharded.phases[1].memory["weights"] - whole <= buffers
    doubled = make_plan(full, 4).phases[-1].memory["gradients"]
    assert doubled > make_plan(config_of(janus)).trainable * 4  # gradients and DDP's buckets
    one = make_plan(config_of(janus, "reward.scorer=frozen", "loss.t2i_kl=0.1"))
    assert {p.memory["snapshots"] for p in one.phases} == {4 * one.trainable}  # they share it
    watched = make_plan(config_of(janus, "steps=20"))
    assert {p.memory["snapshots"] for p in watched.phases} == {4 * watched.trainable}
    kept = ("reward.scorer=average", "loss.t2i_kl=0.1")
    two = make_plan(config_of(janus, *kept))
    assert {p.memory["snapshots"] for p in two.phases} == {2 * 4 * two.trainable}
    two = make_plan(config_of(janus, *kept, "train.fsdp=true"), 4)
    assert {p.memory["snapshots"] for p in two.phases[1:]} == {2 * two.trainable}


def test_replay_and_the_second_term_are_counted(janus: Path) -> None:
    plain = make_plan(config_of(janus))
    replay = ["replay.questions=scenes", "replay.max_answer_tokens=8"]
    held = make_plan(config_of(janus, *replay))
    assert {p.memory["snapshots"] for p in held.phases} == {4 * held.trainable}  # who answers
    few, many = (
        make_plan(config_of(janus, *replay, f"replay.per_step={n}")).phases[-1].bytes
        for n in (64, 256)
    )
    assert plain.phases[-1].bytes < few < many
    assert make_plan(config_of(janus, *replay, "schedule=t2i")).phases == (
        make_plan(config_of(janus, "schedule=t2i")).phases
    )
    own = make_plan(config_of(janus, "reward.i2t_own=1"))
    names = [p.name for p in own.phases]
    assert [n for n in names if n not in {p.name for p in plain.phases}] == [
        "i2t reward, second term"
    ]


@pytest.mark.parametrize("share", [0.9, pytest.param(0.3, marks=pytest.mark.slow)])
def test_advice_lowers_the_peak(janus: Path, share: float) -> None:
    """Each step was planned again; together they make it fit."""
    config = config_of(janus, "data.prompts_per_step=16", "data.images_per_step=16")
    now = make_plan(config)
    assert now.peak.name == "backward"
    card = replace(CARD, memory=share * now.peak.bytes / GIB)
    steps = advise(config, card, 1)
    peaks = [now.peak.bytes, *(s.plan.peak.bytes for s in steps)]
    assert steps and peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)
    assert steps[0].change.startswith("--set loss.batch_rows=")
    assert steps[-1].plan.fits(card.memory)


@pytest.mark.parametrize("kl", [0, 0.1])
def test_no_advice_is_refused_by_train(janus: Path, kl: float) -> None:
    """Sharding goes with a KL term too: the reference is kept in shards like the live weights."""
    config = config_of(janus, f"loss.t2i_kl={kl}")
    tried = list(_changes(config, make_plan(config), CARD))
    sharded = ["train.fsdp=true", "train.bf16=true"]
    assert tried[-1] == (sharded, 8)
    changed = [with_options(config, settings) for settings, _ in tried]  # which raises for refused
    assert config not in changed


def test_advice_names_the_rows_of_the_second_term(janus: Path) -> None:
    config = config_of(janus, "reward.scorer=frozen", "reward.i2t_own=1")
    plan = make_plan(config)
    second = [p for p in plan.phases if p.name == "i2t reward, second term"]
    settings, _ = next(_changes(config, replace(plan, phases=second), CARD))
    assert settings[0].startswith("reward.batch_rows=")


@pytest.mark.slow
def test_a_sharded_recipe_is_first_told_to_take_its_processes() -> None:
    steps = advise(load_config("janus-pro-7b-full-fsdp2"), CARD, 1)
    assert [s.change for s in steps] == ["--processes 8"]
    assert steps[0].plan.processes == 8


@pytest.mark.slow
def test_a_peak_in_the_codec_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Few pictures at once already: what is left is a larger GPU, and how large."""
    assert main(["plan", "--config", "emu3-lora", "--memory", "26"]) == 1
    text = capsys.readouterr().out
    assert "peak 29.0 GiB in t2i pixels" in text
    assert "the image tokenizer's, 2 at once" in text and "wants 32 GiB" in text
    assert main(["plan", "--config", "emu3-lora", "--memory", "32"]) == 0
    assert "image tokenizer's" not in capsys.readouterr().out


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "plan.json"
    assert main(["plan", "--gpu", "l4", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "fits" in text and "first steps tell the time" in text and "0.5 M trained" in text
    assert json.loads(out.read_text())["peak_phase"] == "backward"
    assert main(["plan", "--memory", "0.3"]) == 1
    text = capsys.readouterr().out
    assert "does not fit" in text and "first change: --set loss.batch_rows=" in text
    assert main(["plan", "--json", str(tmp_path)]) == 2
    assert "--json" in capsys.readouterr().err
    assert main(["plan", "--gpu", "toaster"]) == 2
    assert "h100" in capsys.readouterr().err
    assert main(["plan", "--model", "nobody/knows"]) == 2
    assert "out of reach" in capsys.readouterr().err
