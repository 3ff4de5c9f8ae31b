"""Models whose image tokens live in the text vocabulary: one base for Emu3 and Chameleon.

Image ids stay the codes of the image tokenizer, 0 to K - 1; here they are mapped to and from rows
of the vocabulary. The support of an image log-prob is those K rows. The support of a text log-prob
is what the model's class scores text over: `text_support` says which.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viceversa.models.base import Adapter, coding, normalisation
from viceversa.types import Direction, Modality, PromptBatch


class SingleVocabularyAdapter(Adapter):
    reads_image_ids = True
    text_support = "vocabulary"
    """`vocabulary`: every token. `text`: every token but the K image tokens."""

    bos_id: int

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor = model, processor
        self.layers = model.config.get_text_config().num_hidden_layers
        self.stop_id = processor.tokenizer.eos_token_id
        self.bos_id = processor.tokenizer.bos_token_id
        self.image_id = processor.image_token_id
        ids, rows = self.ids_of_codes(), len(model.get_input_embeddings().weight)
        if not all(0 <= i < rows for i in ids):
            raise ValueError(
                f"the codes of the image tokenizer have the ids {min(ids)} to {max(ids)}; the "
                f"vocabulary has {rows}"
            )
        self.image_vocab_size = len(ids)
        first = ids[0]
        contiguous = list(ids) == list(range(first, first + len(ids)))
        # read at every step: no copy there
        self.image_token_ids = torch.tensor(ids, device=model.device)
        """[K] vocabulary id of each code."""
        # a run of the vocabulary is a view of the head; anything else is a copy
        self._image_rows = slice(first, first + len(ids)) if contiguous else self.image_token_ids
        self._scale = processor.image_processor.rescale_factor
        self._mean, self._std = normalisation(processor.image_processor)

    def ids_of_codes(self) -> Sequence[int]:
        """Find the vocabulary id of each code: as transformers' classes map them by name.

        Raises ValueError where codes and names are not the same.
        """
        named = self.model.model.vocabulary_mapping.img2bpe
        codes = len(self.image_tokenizer.quantize.embedding.weight)  # type: ignore[attr-defined]
        if sorted(named) != list(range(codes)):
            raise ValueError(
                f"config.json's vocabulary_map names {len(named)} image tokens; the image "
                f"tokenizer has {codes} codes"
            )
        return [named[code] for code in range(codes)]

    def prompts(
        self,
        direction: Direction,
        texts: Sequence[str],
        pixels: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> PromptBatch:
        batch = super().prompts(direction, texts, pixels, image_ids)
        if direction == "t2i":
            return batch
        if image_ids is None:
            assert batch.pixels is not None
            image_ids = self.image_ids(batch.pixels)
        holders = batch.prompt_ids == self.image_id
        block = self.picture_ids(image_ids.to(self.device))
        return replace(batch, prompt_ids=batch.prompt_ids.masked_scatter(holders, block))

    def picture_ids(self, image_ids: Tensor) -> Tensor:
        """Codes [B, image_tokens] -> the vocabulary ids that stand for a picture in a prompt."""
        return self.image_token_ids.to(image_ids.device)[image_ids]

    def blank_prompts(self, prompts: PromptBatch) -> PromptBatch:
        """BOS and what begins the picture, without the prompt."""
        ids = prompts.prompt_ids
        begin = (ids == self.boi_id).long().argmax(-1, keepdim=True)
        place = torch.arange(ids.shape[1], device=ids.device)
        blanked = torch.where(place == begin - 1, self.bos_id, ids)
        return replace(prompts, prompt_ids=blanked, attention_mask=place >= begin - 1)

    def embed_prompts(self, prompts: PromptBatch) -> Tensor:
        return self.model.get_input_embeddings()(prompts.prompt_ids)

    def embed_tokens(self, ids: Tensor, modality: Modality) -> Tensor:
        if modality == "image":
            ids = self.image_token_ids.to(ids.device)[ids]
        return self.model.get_input_embeddings()(ids)

    def last_layer(self, features: Tensor, modality: Modality) -> Tensor:
        head = self.model.lm_head
        if modality == "image":
            if type(head) is nn.Linear:
                return F.linear(features, head.weight[self._image_rows])
            return head(features)[..., self._image_rows]  # LoRA's weight is the base's alone
        logits = head(features)
        if self.text_support == "text":
            image = self.image_token_ids.to(logits.device)
            logits = logits.index_fill(-1, image, torch.finfo(logits.dtype).min)
        return logits

    def scaled(self, pixels: Tensor) -> Tensor:
        """Scale pictures, uint8 [B, 3, H, W], as the image tokenizer reads them."""
        mean, std = self._mean.to(pixels.device), self._std.to(pixels.device)
        return ((pixels.float() * self._scale - mean) / std).to(self.image_tokenizer.dtype)  # type: ignore[arg-type]

    def encode_images(self, pixels: Tensor) -> Tensor:
        codec: Any = self.image_tokenizer
        with coding(codec):
            latents = self.latents(self.scaled(pixels)).flatten(2).mT.float()
            codes = codec.quantize.embedding.weight.float()
            # |z - e|^2 without |z|^2, which every code has
            squares = codes.square().sum(-1)
            flat = torch.addmm(squares, latents.flatten(0, 1), codes.T, alpha=-2).argmin(-1)
        return flat.view(len(pixels), -1)

    @abstractmethod
    def latents(self, scaled: Tensor) -> Tensor:
        """Scaled pixels [B, 3, H, W] -> [B, D, ...], a vector for each image token."""

    @property
    def image_tokenizer(self) -> nn.Module:
        return self.model.model.vqmodel

    def trainable_parameters(self) -> list[nn.Parameter]:
        frozen = {id(p) for p in self.image_tokenizer.parameters()}
        found = [*self.text_model.parameters(), *self.model.lm_head.parameters()]
        return [p for p in dict.fromkeys(found) if id(p) not in frozen]  # tied weights once
