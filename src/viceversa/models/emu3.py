"""Emu3, on transformers' Emu3ForConditionalGeneration.

Emu3-Stage1 is the joint base: Chat only reads and Gen only draws, so a dual reward on either asks a
question of a model that was not trained to answer it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from viceversa.models.base import LINEAR_LAYERS, coding
from viceversa.models.single import SingleVocabularyAdapter
from viceversa.types import Direction


class Emu3Adapter(SingleVocabularyAdapter):
    processor_class = Emu3Processor
    lora_modules = r"model\.text_model\.layers\.\d+\..*" + LINEAR_LAYERS
    default_instruction = "Please describe the image."
    conversation = "You are a helpful assistant. USER: {content}. ASSISTANT:"
    """Of the original's processor; used where the checkpoint brings no chat template."""

    def __init__(self, model: Emu3ForConditionalGeneration, processor: Any, image_size: int = 0):
        inner: Any = model.model
        super().__init__(model, processor)
        factor = inner.vqmodel.vision_spatial_factor
        self.image_size = image_size or round(processor.image_area**0.5)
        if self.image_size % factor:
            raise ValueError(f"image_size is {self.image_size}; choose a multiple of {factor}")
        self.row_tokens = self.image_size // factor
        self.image_tokens = self.row_tokens**2
        tokenizer = processor.tokenizer
        self.boi_id = tokenizer.convert_tokens_to_ids(processor.image_start_token)
        self.row_end_id = inner.vocabulary_mapping.eol_token_id
        if self.row_end_id is None:
            raise ValueError("config.json's vocabulary_map names no <|extra_200|>, the row end")

    def prompt_text(self, direction: Direction, text: str) -> str:
        processor, side = self.processor, self.row_tokens
        begin = f"{processor.image_start_token}{side}*{side}{processor.fake_token_around_image}"
        if direction == "t2i":
            return f"{processor.bos_token}{text}{begin}"
        holders = processor.image_token * (side * (side + 1))
        picture = f"{begin}{holders}{processor.eof_token}{processor.image_end_token}"
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = [{"role": "user", "content": content}]
        prompt = ""
        if processor.chat_template:
            prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        if processor.image_token not in prompt:  # transformers' conversion script writes a "TODO"
            content = processor.image_token + text.rstrip(".")
            prompt = self.conversation.format(content=content)
        return processor.bos_token + prompt.replace(processor.image_token, picture, 1)

    def picture_ids(self, image_ids: Tensor) -> Tensor:
        """Row by row, each with its end: [B, side * (side + 1)]."""
        rows = super().picture_ids(image_ids).unflatten(1, (self.row_tokens, self.row_tokens))
        ends = rows.new_full((*rows.shape[:2], 1), self.row_end_id)
        return torch.cat([rows, ends], dim=-1).flatten(1)

    @property
    def text_model(self) -> nn.Module:
        return self.model.model.text_model

    def embed_row_end(self) -> Tensor:
        end = torch.tensor([self.row_end_id], device=self.device)
        return self.model.get_input_embeddings()(end)[0]

    def latents(self, scaled: Tensor) -> Tensor:
        codec: Any = self.image_tokenizer  # of videos: a picture is repeated to its shortest one
        frames = scaled.unsqueeze(1).repeat(1, codec.config.temporal_downsample_factor, 1, 1, 1)
        return codec.quant_conv(codec.encoder(frames).transpose(1, 2))

    def decode_images(self, image_ids: Tensor) -> Tensor:
        codec: Any = self.image_tokenizer
        rows = image_ids.unflatten(1, (self.row_tokens, self.row_tokens))
        with coding(codec):
            decoded = codec.decode(rows).float()
        mean, std = self._mean.to(decoded.device), self._std.to(decoded.device)
        pixels = (decoded * std + mean) / self._scale
        return pixels.clamp(0, 255).round().to(torch.uint8)
