"""Rewards of models that were trained with people's data, to compare the dual reward with.

    viceversa train ... --set reward.name=clip_score
    viceversa train ... --set reward.name=pick_score

They rate both directions alike: how well a text and a picture go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from viceversa.config import ConfigError
from viceversa.data.pictures import to_numpy
from viceversa.types import Rollout

PICK_SCORE = "yuvalkirstain/PickScore_v1"
#: Whose tokenizer and image processor PickScore uses; its own repository holds none.
PICK_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class Clip:
    """Rates pairs by the cosine of a CLIP model's two embeddings, times the scale it learned.

    `model` is a hub name or a folder of a transformers model with CLIP's interface, `processor`
    where its tokenizer and image processor are, if elsewhere. It is loaded when first asked. Texts
    longer than its context are cut. Source: arXiv:2104.08718 (CLIPScore, without its offset).
    """

    def __init__(
        self,
        model: str = "openai/clip-vit-base-patch32",
        processor: str = "",
        batch_rows: int = 64,
    ):
        self.name, self.processor_name, self.batch_rows = model, processor or model, batch_rows
        self.loaded: tuple[Any, Any, Any] | None = None

    def __call__(self, rollout: Rollout) -> Tensor:
        """Rate every output of a rollout, [P, G]."""
        group = rollout.group_size
        if rollout.direction == "t2i":
            if rollout.pixels is None:
                raise ConfigError(
                    f"reward {self.name} looks at pictures, and this model draws image ids alone: "
                    "use schedule i2t, or another reward"
                )
            pixels, which = rollout.pixels, list(range(len(rollout.pixels)))
        else:
            pixels = torch.stack([e.pixels for e in rollout.examples if e.pixels is not None])
            which = [row // group for row in range(len(rollout.texts))]
        device = rollout.completions.completion_ids.device
        return self.rate(rollout.row_texts, pixels, which, device).view(-1, group)

    @torch.no_grad()
    def rate(
        self, texts: Sequence[str], pixels: Tensor, which: Sequence[int], device: Any = "cpu"
    ) -> Tensor:
        """Rate text i with picture `which[i]` of `pixels` [N, 3, H, W] uint8, [B] float32."""
        model, tokenizer, images = self.load(device)
        pictures = [Image.fromarray(p) for p in to_numpy(pixels)]
        seen = [
            model.get_image_features(**images(some, return_tensors="pt").to(device))
            for some in _cut(pictures, self.batch_rows)
        ]
        longest = model.config.text_config.max_position_embeddings
        settings = {"padding": True, "truncation": True, "max_length": longest}
        different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        read = [
            model.get_text_features(**tokenizer(some, return_tensors="pt", **settings).to(device))
            for some in _cut(list(different), self.batch_rows)
        ]
        image = torch.cat([_unit(x) for x in seen])[torch.tensor(list(which), device=device)]
        rows = torch.tensor([different[text] for text in texts], device=device)
        text = torch.cat([_unit(x) for x in read])[rows]
        return (model.logit_scale.float().exp() * (image * text).sum(-1)).cpu()

    def load(self, device: Any) -> tuple[Any, Any, Any]:
        """Load model, tokenizer and image processor once. Raises ConfigError where it cannot."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        if self.loaded is None:
            try:
                model = AutoModel.from_pretrained(self.name, trust_remote_code=False)
                place = self.processor_name
                tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
                images = AutoImageProcessor.from_pretrained(place, trust_remote_code=False)
            except (OSError, ValueError) as error:
                line = str(error).partition("\n")[0]
                raise ConfigError(f"reward model {self.name!r} cannot be loaded: {line}") from error
            if not hasattr(model, "logit_scale"):
                raise ConfigError(
                    f"reward model {self.name!r} is a {type(model).__name__}; it must have CLIP's "
                    "interface, with a logit_scale"
                )
            self.loaded = (model.to(device).eval().requires_grad_(False), tokenizer, images)
        return self.loaded


class PickScore(Clip):
    """PickScore (arXiv:2305.01569): a CLIP model trained on people's choices among pictures."""

    def __init__(self, model: str = PICK_SCORE, processor: str = PICK_PROCESSOR, **options: Any):
        # a folder holds its own processor
        super().__init__(model, model if Path(model).is_dir() else processor, **options)


def _cut(items: Sequence[Any], size: int) -> list[Any]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def _unit(features: Any) -> Tensor:
    """Return embeddings of length 1; newer transformers wrap them in an output."""
    found = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(found.float(), dim=-1)
