"""Chameleon and Anole, on transformers' ChameleonForConditionalGeneration.

The class masks image logits inside `forward` and ships no decoder from image ids to pixels. So
logits are taken from the head, before that mask, and everything happens in token space: the model
trains and scores in both directions, and its pictures cannot be looked at. Chameleon's own weights
were released with drawing disabled; Anole's were tuned to draw again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

from viceversa.models.base import LINEAR_LAYERS
from viceversa.models.single import SingleVocabularyAdapter
from viceversa.types import Direction


class ChameleonAdapter(SingleVocabularyAdapter):
    processor_class = ChameleonProcessor
    special_names = ("bos_token", "eos_token", "sep_token")
    lora_modules = r"model\.layers\.\d+\..*" + LINEAR_LAYERS
    default_instruction = "Describe this image in one sentence."
    answer_prefix = ""  # the model answers right after the separator
    text_support = "text"
    draws_pixels = False

    def __init__(
        self, model: ChameleonForConditionalGeneration, processor: Any, image_size: int = 0
    ):
        super().__init__(model, processor)
        codec: Any = model.config.vq_config
        self.image_size = codec.resolution
        self.check_image_size(image_size)
        self.image_tokens = (codec.resolution // 2 ** (len(codec.channel_multiplier) - 1)) ** 2
        self.boi_id = processor.image_start_token_id

    def prompt_text(self, direction: Direction, text: str) -> str:
        tokenizer, processor = self.tokenizer, self.processor
        if direction == "t2i":
            start = processor.image_start_token
            return f"{tokenizer.bos_token}{text}{tokenizer.sep_token}{start}"
        holders = processor.image_token * self.image_tokens
        picture = f"{processor.image_start_token}{holders}{processor.image_end_token}"
        return f"{tokenizer.bos_token}{picture}{text}{tokenizer.sep_token}"

    @property
    def text_model(self) -> nn.Module:
        return self.model.model

    def latents(self, scaled: Tensor) -> Tensor:
        codec: Any = self.image_tokenizer
        return codec.quant_conv(codec.encoder(scaled))
