"""The captioning reward in the real TRL, on a tiny random model of a class that only reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import viceversa as vv
from builders import vision_tokenizer
from viceversa.api import trl
from viceversa.scenes.language import caption
from viceversa.scenes.render import render_image
from viceversa.scenes.spec import draw_specs

EXAMPLE = Path(__file__).parents[2] / "examples" / "trl_captions.py"


def tiny_llava() -> tuple[Any, Any]:
    torch.manual_seed(0)
    tokenizer = vision_tokenizer()
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(
            "{% for m in messages %}{% for part in m['content'] %}"
            "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
            "{% endfor %}{% endfor %}"
        ),
    )
    small: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in names}
    text = LlamaConfig(vocab_size=len(tokenizer), **ids, **small)
    given: dict[str, Any] = {
        "vision_config": CLIPVisionConfig(image_size=24, patch_size=8, **small),
        "text_config": text,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
    }
    config = LlavaConfig(**given)
    return LlavaForConditionalGeneration(config), processor


def example() -> Any:
    spec = importlib.util.spec_from_file_location("trl_captions", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_example_trains_with_trl(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, spec in enumerate(draw_specs(0, 1, "train")[:4]):
        render_image(spec).save(photos / f"{i}.png")
    model, processor = tiny_llava()
    trainer = example().main(
        str(photos),
        model,
        processor,
        judge="builtin",
        use_cpu=True,
        bf16=False,
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
    )
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    assert all(row["rewards/dual_reward_i2t/mean"] < 0 for row in logged)
    assert any(row["reward_std"] > 0 for row in logged)


def test_rewards_are_those_of_the_pairs() -> None:
    specs = draw_specs(0, 1, "train")[:3]
    pictures = [render_image(spec) for spec in specs]
    model, texts = vv.load(), [caption(spec) for spec in specs]
    rewards = vv.trl_reward(model)(prompts=texts, completions=texts, image=pictures)
    assert rewards == pytest.approx(model.score(texts, pictures).image_given_text.tolist())
    talked = [[{"role": "assistant", "content": text}] for text in texts]
    assert vv.trl_reward(model, "images")(
        prompts=texts, completions=talked, images=[[p] for p in pictures]
    ) == pytest.approx(rewards)
    # saying nothing pays least
    said_nothing: Any = vv.trl_reward(model)(
        prompts=texts, completions=[*texts[:2], " "], image=pictures
    )
    assert said_nothing[2] < min(said_nothing[:2])
    with pytest.raises(vv.ConfigError, match="no column 'image'"):
        vv.trl_reward(model)(prompts=texts, completions=texts)


def test_scarce_memory_halves_the_rows_and_not_the_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call begins with the rows that the first one ended with."""
    specs = draw_specs(0, 1, "train")[:4]
    given: dict[str, Any] = {"image": [render_image(spec) for spec in specs]}
    given["completions"] = [caption(spec) for spec in specs]
    model, tried = vv.load(), []
    rewards = vv.trl_reward(model)(**given)
    honest = trl.pair_rewards

    def scarce(*args: Any, batch_rows: int = 256) -> torch.Tensor:
        tried.append(batch_rows)
        if batch_rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return honest(*args, batch_rows=batch_rows)

    monkeypatch.setattr(trl, "pair_rewards", scarce)
    reward = vv.trl_reward(model)
    with pytest.warns(UserWarning, match=r"reward.batch_rows is now 2"):
        assert reward(**given) == pytest.approx(rewards, rel=1e-5)
    assert reward(**given) == pytest.approx(rewards, rel=1e-5)
    assert tried == [4, 2, 2]
