"""Draw, caption and score from Python, with inputs as people have them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import viceversa as vv
from builders import random_chameleon
from viceversa.api import model as api_model
from viceversa.config import ModelConfig, SamplingConfig
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import caption
from viceversa.scenes.render import render_image
from viceversa.scenes.spec import draw_specs

SPECS = draw_specs(0, 1, "train")[:4]
TEXTS = [caption(spec) for spec in SPECS]
PICTURES = [render_image(spec) for spec in SPECS]


@pytest.fixture(scope="module")
def model() -> vv.Model:
    return vv.load("builtin")


def arrays(pictures: list[list[Image.Image]]) -> np.ndarray:
    return np.stack([[np.asarray(picture) for picture in row] for row in pictures])


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, viceversa; assert viceversa.__version__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_public_name_is_there_and_none_is_a_module() -> None:
    import viceversa.cli
    import viceversa.training.run  # noqa: F401  # submodules become attributes of the package

    assert sorted(vv.__all__) == dir(vv)
    for name in vv.__all__:
        assert (
            isinstance(vv.__version__, str)
            if name == "__version__"
            else callable(getattr(vv, name))
        )
    with pytest.raises(AttributeError, match="no attribute 'drawing'"):
        _ = vv.drawing  # type: ignore[attr-defined]


def test_draw_gives_n_pictures_a_prompt_and_the_same_for_a_seed(model: vv.Model) -> None:
    drawn = model.draw(TEXTS[:2], n=3)
    assert [len(row) for row in drawn] == [3, 3]
    assert drawn[0][0].size == (24, 24)
    assert np.array_equal(arrays(drawn), arrays(model.draw(TEXTS[:2], n=3)))
    assert not np.array_equal(arrays(drawn), arrays(model.draw(TEXTS[:2], n=3, seed=1)))
    (alone,) = model.draw(TEXTS[0])
    assert np.array_equal(np.asarray(alone[0]), np.asarray(drawn[0][0]))


def test_draw_keeps_the_best_by_the_dual_reward(model: vv.Model) -> None:
    best = model.draw(TEXTS[:2], n=2, best_of=6)
    examples = [vv.Example(i, "t2i", text=text) for i, text in enumerate(TEXTS[:2])]
    rollout = vv.rollout(model.adapter, examples, SamplingConfig(group_size=6))
    rewards = vv.dual_reward(model.adapter, rollout)
    assert rollout.pixels is not None
    for row, order in enumerate(rewards.argsort(dim=1, descending=True)[:, :2]):
        wanted = rollout.pixels.view(2, 6, 3, 24, 24)[row, order].permute(0, 2, 3, 1)
        assert np.array_equal(arrays([best[row]])[0], wanted.numpy())


def test_a_few_inputs_at_once_or_all_give_the_same(
    model: vv.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = model.draw(TEXTS, n=2, best_of=4)
    few = partial(SamplingConfig, batch_rows=4)
    monkeypatch.setattr("viceversa.api.model.SamplingConfig", few)
    assert np.array_equal(arrays(together), arrays(model.draw(TEXTS, n=2, best_of=4)))


def test_captions_of_pictures_however_they_are_given(model: vv.Model, tmp_path: Path) -> None:
    captions = model.caption(PICTURES)
    assert len(captions) == 4
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    data = datasets.Dataset.from_dict({"photo": [str(p) for p in paths]})
    data = data.cast_column("photo", datasets.Image())
    tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in PICTURES]
    for given in (paths, [str(p) for p in paths], tmp_path, str(tmp_path), data, tensors):
        assert model.caption(given) == captions
    assert model.caption([np.array(p) for p in PICTURES]) == captions
    assert model.caption(PICTURES[0]) == model.caption(paths[0]) == captions[:1]


def test_the_best_caption_is_the_likeliest_to_be_drawn(model: vv.Model) -> None:
    best = model.caption(PICTURES, best_of=6, max_tokens=32)
    rollout = vv.rollout(
        model.adapter,
        [vv.Example(i, "i2t", pixels=e.pixels) for i, e in enumerate(examples_of("i2t", SPECS))],
        SamplingConfig(group_size=6, max_caption_tokens=32),
    )
    rewards = vv.dual_reward(model.adapter, rollout)
    rows = torch.arange(4) * 6 + rewards.argmax(1)
    assert best == [rollout.texts[row] for row in rows]


def test_scores_are_the_dual_rewards_of_the_pairs(model: vv.Model) -> None:
    scores = model.score(TEXTS, PICTURES)
    pixels = [e.pixels for e in examples_of("i2t", SPECS)]
    examples = tuple(vv.Example(i, "t2i", text=text) for i, text in enumerate(TEXTS))
    drawn = vv.rollout(model.adapter, examples, SamplingConfig(group_size=1))
    as_if_drawn = vv.Rollout(
        "t2i",
        examples,
        1,
        drawn.prompts,
        drawn.completions,
        drawn.drawn_logprobs,
        pixels=torch.stack([p for p in pixels if p is not None]),
    )
    wanted = vv.dual_reward(model.adapter, as_if_drawn).flatten()
    assert torch.allclose(scores.text_given_image, wanted, atol=1e-4)
    captioned = vv.Rollout(
        "i2t",
        tuple(vv.Example(i, "i2t", pixels=p) for i, p in enumerate(pixels)),
        1,
        drawn.prompts,
        model.adapter.text_completion(TEXTS),
        drawn.drawn_logprobs,
        texts=tuple(TEXTS),
    )
    wanted = vv.dual_reward(model.adapter, captioned).flatten()
    assert torch.allclose(scores.image_given_text, wanted, atol=1e-4)
    swapped = model.score(TEXTS, PICTURES[::-1])
    assert (scores.text_given_image > swapped.text_given_image).all()


def test_a_saved_model_loads_again(model: vv.Model, tmp_path: Path) -> None:
    again = vv.load(model.save(tmp_path / "whole"))
    assert again.caption(PICTURES) == model.caption(PICTURES)
    small = vv.load("builtin", lora=4, seed=3)
    tuned = vv.load(small.save(tmp_path / "lora"))
    assert tuned.adapter.lora is not None
    assert tuned.caption(PICTURES) == small.caption(PICTURES)


def test_what_cannot_be_used_is_named(model: vv.Model, tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(vv.ConfigError, match=r"cut\.png: not a picture"):
        model.caption(tmp_path / "cut.png")
    with pytest.raises(vv.ConfigError, match="a picture is a int; give a path"):
        model.caption([3])
    with pytest.raises(vv.ConfigError, match=r"a picture is float32 \[24, 24, 3\]"):
        model.caption(np.zeros((24, 24, 3), np.float32))
    with pytest.raises(vv.ConfigError, match="no such folder"):
        model.caption(tmp_path / "nowhere")
    with pytest.raises(vv.ConfigError, match="there are no pictures"):
        model.caption([])
    with pytest.raises(vv.ConfigError, match="there are no prompts"):
        model.draw([])
    with pytest.raises(vv.ConfigError, match="prompt 2 is '  ': empty"):
        model.draw(["a red circle", "  "])
    with pytest.raises(vv.ConfigError, match="prompts are a int"):
        model.draw(7)
    with pytest.raises(vv.ConfigError, match="1 prompts and 4 pictures are not pairs"):
        model.score(TEXTS[:1], PICTURES)
    blind = vv.Model(random_chameleon(), ModelConfig("made"))
    with pytest.raises(vv.ConfigError, match="made cannot draw"):
        blind.draw("a red circle")
    assert blind.score(TEXTS[:1], PICTURES[:1]).text_given_image.isfinite().all()


@pytest.mark.parametrize(
    ("gpu", "asked", "wanted"),
    [
        (True, {}, "float32"),  # every weight can be trained
        (True, {"lora": 4}, "bfloat16"),
        (True, {"dtype": "bfloat16"}, "bfloat16"),
        (True, {"lora": 4, "dtype": "float32"}, "float32"),
        (False, {"lora": 4}, "float32"),
    ],
)
def test_the_number_format_of_weights(
    gpu: bool, asked: dict[str, Any], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(api_model, "load_adapter", lambda *_: None)
    assert vv.load("builtin", **asked).config.dtype == wanted


def test_inputs_have_the_numbers_that_are_given(model: vv.Model) -> None:
    drawn = model.draw(TEXTS)
    some = model.draw([TEXTS[3], TEXTS[1]], ids=[3, 1])
    assert np.array_equal(arrays(some), arrays([drawn[3], drawn[1]]))
    with pytest.raises(vv.ConfigError, match="ids has 1 numbers for 2 inputs"):
        model.caption(PICTURES[:2], ids=[0])


def test_options_out_of_bounds_are_named(model: vv.Model) -> None:
    with pytest.raises(vv.ConfigError, match=r"lora\.rank is -1; it must be at least 0"):
        vv.load(lora=-1)
    with pytest.raises(vv.ConfigError, match=r"sampling\.temperature is -1"):
        model.draw("a ring", temperature=-1)


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
def test_the_best_is_found_in_fewer_rows_where_memory_does_not_suffice(
    model: vv.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.draw("a ring", best_of=4)
    honest = api_model.dual_reward

    def tight(adapter: Any, sampled: Any, instruction: str, rows: int) -> Any:
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return honest(adapter, sampled, instruction, rows)

    monkeypatch.setattr(api_model, "dual_reward", tight)
    assert np.array_equal(arrays(model.draw("a ring", best_of=4)), arrays(whole))
