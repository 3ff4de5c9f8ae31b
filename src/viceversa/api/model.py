"""A loaded model: draw, caption and score with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from viceversa.config import (
    ConfigError,
    DataConfig,
    LoraConfig,
    ModelConfig,
    SamplingConfig,
    build,
)
from viceversa.data.given import pictures, prompt_rows
from viceversa.data.pictures import to_numpy
from viceversa.data.prompts import cleaned
from viceversa.inference.memory import RowBudget
from viceversa.measure.pairs import AT_ONCE, both_directions
from viceversa.models import load_adapter, usual_dtype
from viceversa.models.base import Adapter
from viceversa.models.lora import save_lora
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.types import Example, Rollout


@dataclass(frozen=True)
class Scores:
    """Likelihoods of one of a pair given the other: nats a token, averaged; [N] each.

    They are the dual rewards of the pair: `text_given_image` of a picture drawn for the prompt
    (`t2i`), `image_given_text` of a caption written for the picture (`i2t`).
    """

    text_given_image: Tensor
    image_given_text: Tensor


def load(
    model: str | Path = "builtin",
    *,
    lora: int = 0,
    dtype: Literal["float32", "bfloat16"] | None = None,
    image_size: int = 0,
    seed: int = 0,
) -> Model:
    """Load a model: `builtin`, a folder in Hugging Face layout, a checkpoint, or a hub name.

    `lora`: put new LoRA weights of this rank on it, for training; `seed` decides them. `dtype` of
    the weights; None takes float32, in which all can be trained, and bfloat16 on a GPU where `lora`
    leaves them frozen. To use a model alone bfloat16 takes half of a GPU's memory. `image_size`:
    side of the pictures in pixels, for a model that can choose; 0 is its own.

    Raises ConfigError for a path that holds no model, half of one, or one of another class.
    """
    given = {"path": str(model), "dtype": dtype or (usual_dtype() if lora > 0 else "float32")}
    asked = build({"model": {**given, "image_size": image_size}, "lora": {"rank": lora}})
    kind, settings = asked.model, asked.lora
    return Model(load_adapter(kind, settings, seed), kind, settings)


class Model:
    """A unified model: it draws, captions and scores. `adapter` is what the package works with."""

    def __init__(self, adapter: Adapter, config: ModelConfig, lora: LoraConfig | None = None):
        self.adapter, self.config, self.lora = adapter, config, lora or LoraConfig()

    def draw(
        self,
        prompts: str | Sequence[str] | Path | Any,
        n: int = 1,
        *,
        best_of: int = 0,
        temperature: float = 1.0,
        guidance: float | None = None,
        seed: int = 0,
        ids: Sequence[int] | None = None,
    ) -> list[list[Image.Image]]:
        """Draw `n` pictures for each prompt; one list of PIL pictures a prompt.

        `best_of` above `n` draws so many and keeps the `n` best by the dual reward, best first.
        `guidance` is classifier-free guidance; None takes what the model's generation settings say,
        or none. The same seed gives the same pictures: a prompt's random numbers follow from the
        seed and its number in `ids`, by default its place from 0. Raises ConfigError for a prompt
        that cannot be used, and for a model that turns no image ids into pictures.
        """
        if not self.adapter.draws_pixels:
            raise ConfigError(f"{self.config.path} cannot draw: it turns no image ids into pixels")
        if guidance is None:
            guidance = self.adapter.own_guidance
        texts = self.cleaned(prompts)
        examples = [Example(i, "t2i", text=t) for i, t in _numbered(texts, ids)]
        sampling = _sampling(max(n, best_of, 1), temperature=temperature, guidance=guidance)
        drawn = []
        for sampled, order in self._best(examples, sampling, seed, best_of > n):
            assert sampled.pixels is not None
            images = [Image.fromarray(pixels) for pixels in to_numpy(sampled.pixels)]
            drawn += [[images[k] for k in row[:n]] for row in order]
        return drawn

    def caption(
        self,
        images: Any,
        *,
        best_of: int = 1,
        temperature: float | None = None,
        max_tokens: int = 64,
        instruction: str = "",
        seed: int = 0,
        ids: Sequence[int] | None = None,
    ) -> list[str]:
        """Caption pictures: paths, PIL pictures, arrays, a folder or a `datasets.Dataset`.

        `best_of` above 1 samples so many captions a picture and returns the best by the dual
        reward. `temperature` None is 1 then, and 0, the likeliest words, for a single caption.
        `instruction` is what the picture is read with; empty takes the model's own. `seed` and
        `ids` are as `draw` takes them. Raises ConfigError, naming it, for a picture that
        cannot be used.
        """
        if temperature is None:
            temperature = 1.0 if best_of > 1 else 0.0
        pixels = pictures(images, self.adapter.image_size, DataConfig())
        examples = [Example(i, "i2t", pixels=p) for i, p in _numbered(pixels, ids)]
        sampling = _sampling(
            max(best_of, 1),
            temperature=temperature,
            max_caption_tokens=max_tokens,
            instruction=instruction,
        )
        captions = []
        for sampled, order in self._best(examples, sampling, seed, best_of > 1):
            captions += [sampled.texts[row[0]] for row in order]
        return captions

    def score(self, prompts: Any, images: Any, *, instruction: str = "") -> Scores:
        """Score pairs: how likely each prompt is given its picture, and the other way round.

        As many prompts as pictures. Raises ConfigError where they are not, or cannot be used.
        """
        texts = self.cleaned(prompts)
        pixels = pictures(images, self.adapter.image_size, DataConfig())
        if len(texts) != len(pixels):
            raise ConfigError(f"{len(texts)} prompts and {len(pixels)} pictures are not pairs")
        read, drawn = both_directions(self.adapter, texts, pixels, instruction)
        return Scores(text_given_image=read, image_given_text=drawn)

    def save(self, folder: str | Path) -> Path:
        """Save in Hugging Face layout; with LoRA, the LoRA alone, in peft's."""
        folder = Path(folder)
        if self.adapter.lora is not None:
            save_lora(self.adapter, folder)
        else:
            self.adapter.model.save_pretrained(folder)
        self.adapter.processor.save_pretrained(folder)
        return folder

    def cleaned(self, given: Any) -> list[str]:
        """Return prompts as training cleans them. Raises ConfigError, naming it, for a bad one."""
        limits = self.adapter.text_limits("")
        texts = [cleaned(row, limits) for row in prompt_rows(given, DataConfig())]
        if not texts:
            raise ConfigError("there are no prompts")
        return texts

    def _best(
        self, examples: Sequence[Example], sampling: SamplingConfig, seed: int, judge: bool
    ) -> Iterator[tuple[Rollout, list[list[int]]]]:
        """Yield rollouts of a few inputs, and each input's rows in them: as sampled, or best first.

        As many at once as `sampling.batch_rows` and memory allow.
        """
        group = sampling.group_size
        rows = RowBudget("sampling.batch_rows", sampling.batch_rows, group)
        read = RowBudget("reward.batch_rows", AT_ONCE)
        start = 0
        while start < len(examples):
            some = examples[start : start + max(1, rows.rows // group)]

            def sample(n: int, some: Sequence[Example] = some) -> Rollout:
                return rollout(self.adapter, some, replace(sampling, batch_rows=n), seed)

            sampled = rows(sample, len(some) * group)
            order = torch.arange(len(some) * group).view(-1, group)
            if judge:
                rate = partial(dual_reward, self.adapter, sampled, sampling.instruction)
                rewards = read(rate, len(sampled.completions)).cpu()
                order = order.gather(1, rewards.argsort(dim=1, descending=True, stable=True))
            yield sampled, order.tolist()
            start += len(some)


def _numbered(inputs: Any, ids: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
    """Pair inputs with their numbers. Raises ConfigError where there are not as many."""
    ids = range(len(inputs)) if ids is None else ids
    if len(ids) != len(inputs):
        raise ConfigError(f"ids has {len(ids)} numbers for {len(inputs)} inputs")
    return zip(ids, inputs, strict=True)


def _sampling(group_size: int, **options: Any) -> SamplingConfig:
    """Return checked options. Raises ConfigError, naming the option, for one out of its bounds."""
    return build({"sampling": {"group_size": group_size, **options}}).sampling
