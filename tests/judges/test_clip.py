"""Rewards of CLIP models: the model's own numbers, for both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from builders import random_janus, save
from small_runs import SMALL
from viceversa.config import ConfigError, SamplingConfig, load_config
from viceversa.judges.clip import Clip, PickScore
from viceversa.models.loading import builtin_path
from viceversa.rl.rollout import rollout
from viceversa.scenes.clip import ScenesClip, train_clip
from viceversa.scenes.examples import examples_of, picture
from viceversa.scenes.language import caption
from viceversa.scenes.spec import draw_specs
from viceversa.training.run import train
from viceversa.types import DIRECTIONS, Direction


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP with its tokenizer and image processor."""
    out = tmp_path_factory.mktemp("clip") / "model"
    train_clip(out, steps=3)
    return out


def test_a_pair_is_rated_as_the_model_does(folder: Path) -> None:
    specs = draw_specs(0, 1, "test")
    texts, pixels = [caption(s) for s in specs], torch.stack([picture(s) for s in specs])
    found = Clip(str(folder), batch_rows=2).rate(texts, pixels, range(len(texts)))
    model: Any = CLIPModel.from_pretrained(folder).eval()
    tokenizer, images = (
        kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoImageProcessor)
    )
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
    words = tokenizer(texts, padding=True, return_tensors="pt")
    words.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model(**words, **images(pictures, return_tensors="pt")).logits_per_image
    torch.testing.assert_close(found, logits.diagonal(), atol=1e-4, rtol=0)
    assert found.std() > 0.01  # they differ
    again = PickScore(str(folder), batch_rows=64).rate(texts, pixels, range(len(texts)))
    torch.testing.assert_close(found, again, atol=1e-4, rtol=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outputs_are_rated_with_their_own_input(folder: Path, direction: Direction) -> None:
    examples = examples_of(direction, draw_specs(1, 1, "train")[:3])
    found = rollout(random_janus(), examples, SamplingConfig(group_size=2, max_caption_tokens=40))
    clip = Clip(str(folder))  # captions of a random model are longer than it reads: they are cut
    rated = clip(found)
    assert rated.shape == (3, 2)
    texts = (
        [e.text for e in examples]
        if direction == "t2i"
        else [found.texts[2 * p + 1] for p in range(3)]
    )
    if direction == "t2i":
        assert found.pixels is not None
        pixels = found.pixels[1::2]
    else:
        pixels = torch.stack([e.pixels for e in examples if e.pixels is not None])
    wanted = clip.rate([t or "" for t in texts], pixels, range(3))
    torch.testing.assert_close(rated[:, 1], wanted, atol=1e-4, rtol=0)


def test_a_run_with_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once, though its name is checked before the step is there."""
    made, make = [], Clip.__init__
    monkeypatch.setattr(Clip, "__init__", lambda *a, **k: (made.append(k), make(*a, **k))[1])
    model = random_janus()
    save(model, tmp_path / "model")
    options = json.dumps({"model": str(folder)})
    sets = [f"model.path={tmp_path / 'model'}", f"output_dir={tmp_path / 'run'}", *SMALL]
    sets += ["steps=1", "eval.specs_per_kind=0", f"reward.options={options}"]
    train(load_config(None, [*sets, "reward.name=clip_score"]), Console(quiet=True))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["t2i/reward_std"] > 0 and row["i2t/reward_std"] > 0
    assert made == [{"model": str(folder)}]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/at-all", r"^reward model '.*at-all' cannot be loaded: "),
        (str(builtin_path()), r"is a JanusModel; it must have CLIP's interface"),
    ],
)
def test_a_model_that_cannot_rate(name: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match=message):
        Clip(name).load("cpu")


def test_the_worlds_judge_is_trained_once(tmp_path: Path, monkeypatch: Any) -> None:
    specs = draw_specs(0, 1, "test")
    texts, pixels = [caption(s) for s in specs], torch.stack([picture(s) for s in specs])
    first = ScenesClip(str(tmp_path), steps=2).rate(texts, pixels, range(len(texts)))
    monkeypatch.setattr("viceversa.scenes.clip.train_clip", None)  # kept: not called again
    second = ScenesClip(str(tmp_path), steps=2).rate(texts, pixels, range(len(texts)))
    assert torch.equal(first, second)
    assert [p.name for p in tmp_path.iterdir()] == ["scenes-clip-2"]
