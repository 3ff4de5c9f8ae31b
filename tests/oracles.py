"""What each model's own class says, computed without the adapter under test."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache

from viceversa.inference.engines import Prompts
from viceversa.inference.reading import positions
from viceversa.models.base import Adapter
from viceversa.models.emu3 import Emu3Adapter
from viceversa.types import PromptBatch


class Repeated:
    """An engine by the book: the class's own attention, each row with a copy of its prompt."""

    def __init__(self, adapter: Adapter, prompts: Prompts):
        rows = torch.tensor(prompts.of)
        self.adapter, self.cache = adapter, DynamicCache()
        self.mask = prompts.mask[rows]
        self.hidden = adapter.backbone(
            prompts.embeds[rows], self.mask, positions(self.mask), self.cache
        )[:, -1]

    def read(self, embeds: Tensor) -> None:
        self.mask = torch.cat([self.mask, self.mask.new_ones(embeds.shape[:2])], dim=1)
        place = positions(self.mask)[:, -embeds.shape[1] :]
        self.hidden = self.adapter.backbone(embeds, self.mask, place, self.cache)[:, -1]

    def repeat(self, work: Any, t: int, tokens: int) -> None:
        work(t)

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.hidden, self.mask = self.hidden[rows], self.mask[rows]


class JanusOracle:
    def __init__(self, adapter: Adapter):
        self.model: Any = adapter.model
        self.tokenizer = adapter.processor.tokenizer

    @property
    def codec(self) -> Any:
        return self.model.model.vqmodel

    def labels_loss(self, prompt: PromptBatch, text_ids: Tensor) -> Tensor:
        """The class's own loss over a text; `prompt` is one unpadded row, text_ids [1, T]."""
        full, labels = _with_labels(prompt.prompt_ids, text_ids)
        assert prompt.pixels is not None
        pixel_values = prompt.pixels.float() / 127.5 - 1
        return self.model(input_ids=full, pixel_values=pixel_values, labels=labels).loss

    def image_logits(self, prompt_ids: Tensor, image_ids: Tensor) -> Tensor:
        """[T, K]: logits over the image tokens, row t for token t."""
        inner = self.model.model
        written = inner.generation_aligner(inner.generation_embeddings(image_ids))
        embeds = torch.cat([self.model.get_input_embeddings()(prompt_ids), written], dim=1)
        hidden = inner.language_model(inputs_embeds=embeds).last_hidden_state
        return inner.generation_head(hidden[:, prompt_ids.shape[1] - 1 : -1])[0]

    def blank(self, prompt_ids: Tensor) -> Tensor:
        """deepseek's own rule for the unconditional row, [1, L]."""
        ids = prompt_ids.clone()
        ids[:, 1:-1] = self.tokenizer.pad_token_id
        return ids

    def forced(self, t: int) -> list[int]:
        """Vocabulary ids that the model reads after the t-th image token, unsampled."""
        return []

    def nearest_codes(self, pixels: Tensor) -> list[int]:
        """One picture's image ids, one latent at a time: the code of largest cosine."""
        codec = self.codec
        latents = codec.quant_conv(codec.encoder(pixels.unsqueeze(0).float() / 127.5 - 1))
        codes = codec.quantize.embedding.weight
        flat = latents[0].flatten(1).T
        return [int(F.cosine_similarity(z.unsqueeze(0), codes).argmax()) for z in flat]


class SingleOracle(JanusOracle):
    """A plain causal language model over one vocabulary."""

    def __init__(self, adapter: Adapter):
        super().__init__(adapter)
        self.adapter = adapter
        self.visual = self.ids_of_codes()

    def ids_of_codes(self) -> dict[int, int]:
        return self.model.model.vocabulary_mapping.img2bpe

    def labels_loss(self, prompt: PromptBatch, text_ids: Tensor) -> Tensor:
        full, labels = _with_labels(prompt.prompt_ids, text_ids)
        return self.model(input_ids=full, labels=labels).loss

    def image_logits(self, prompt_ids: Tensor, image_ids: Tensor) -> Tensor:
        ids, at = prompt_ids[0].tolist(), []
        for t, code in enumerate(image_ids[0].tolist()):
            at.append(len(ids) - 1)
            ids += [self.visual[code], *self.forced(t)]
        logits = self._all_logits(torch.tensor([ids]))[0, at]
        return logits[:, [self.visual[code] for code in range(len(self.visual))]]

    def _all_logits(self, ids: Tensor) -> Tensor:
        # not through the class's forward, which may mask image logits
        inner = self.model.model
        text_model = getattr(inner, "text_model", inner)
        return self.model.lm_head(text_model(input_ids=ids).last_hidden_state)

    def blank(self, prompt_ids: Tensor) -> Tensor:
        begin = self.tokenizer.convert_tokens_to_ids(self.adapter.processor.image_start_token)
        ids = prompt_ids[0].tolist()
        return torch.tensor([[self.tokenizer.bos_token_id, *ids[ids.index(begin) :]]])

    def nearest_codes(self, pixels: Tensor) -> list[int]:
        images, codec = self.adapter.processor.image_processor, self.codec
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.image_mean, images.image_std))
        scaled = ((pixels.float() * images.rescale_factor - mean) / std).unsqueeze(0)
        latents = codec.quant_conv(codec.encoder(scaled))
        flat = latents[0].flatten(1).T
        codes = codec.quantize.embedding.weight
        return [int((z - codes).square().sum(-1).argmin()) for z in flat]


class Emu3Oracle(SingleOracle):
    def forced(self, t: int) -> list[int]:
        assert isinstance(self.adapter, Emu3Adapter)
        side = self.adapter.image_size // 4
        end = self.tokenizer.convert_tokens_to_ids("<|extra_200|>")
        return [end] if (t + 1) % side == 0 else []

    def nearest_codes(self, pixels: Tensor) -> list[int]:
        images, codec = self.adapter.processor.image_processor, self.codec
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.image_mean, images.image_std))
        frames = ((pixels.float() * images.rescale_factor - mean) / std).view(1, 1, *pixels.shape)
        latents = codec.quant_conv(codec.encoder(frames).permute(0, 2, 1, 3, 4))
        flat = latents[0, :, 0].flatten(1).T
        codes = codec.quantize.embedding.weight
        return [int((z - codes).square().sum(-1).argmin()) for z in flat]


class LiquidOracle(SingleOracle):
    """The model of examples/new_model.py."""

    @property
    def codec(self) -> Any:
        return self.model.vqmodel

    def ids_of_codes(self) -> dict[int, int]:
        codes = range(self.model.config.vq_config.num_embeddings)
        return {code: self.tokenizer.convert_tokens_to_ids(f"<image {code}>") for code in codes}

    def _all_logits(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids).logits

    def nearest_codes(self, pixels: Tensor) -> list[int]:
        return JanusOracle.nearest_codes(self, pixels)


def _with_labels(prompt_ids: Tensor, text_ids: Tensor) -> tuple[Tensor, Tensor]:
    full = torch.cat([prompt_ids, text_ids], dim=1)
    labels = full.clone()
    labels[:, : prompt_ids.shape[1]] = -100
    return full, labels


_ORACLES: dict[str, type[JanusOracle]] = {
    "JanusAdapter": JanusOracle,
    "Emu3Adapter": Emu3Oracle,
    "ChameleonAdapter": SingleOracle,
    "LiquidAdapter": LiquidOracle,
}


def oracle_of(adapter: Adapter) -> JanusOracle:
    return _ORACLES[type(adapter).__name__](adapter)
