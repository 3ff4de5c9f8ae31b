"""Janus and Janus-Pro, on transformers' JanusForConditionalGeneration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from viceversa.models.base import LINEAR_LAYERS, Adapter, coding, normalisation
from viceversa.types import Direction, Modality, PromptBatch


class JanusAdapter(Adapter):
    processor_class = JanusProcessor
    lora_modules = r"model\.language_model\.layers\.\d+\..*" + LINEAR_LAYERS
    default_instruction = "Describe this image in one sentence."

    def __init__(self, model: JanusForConditionalGeneration, processor: Any, image_size: int = 0):
        self.model = model
        self.processor = processor
        config: Any = model.config
        self.image_size = config.vision_config.image_size
        self.check_image_size(image_size)
        self.image_tokens = config.vq_config.num_patches**2
        self.image_vocab_size = config.vq_config.num_embeddings
        self.layers = config.text_config.num_hidden_layers
        tokenizer = processor.tokenizer
        self.stop_id = tokenizer.eos_token_id
        self.bos_id = tokenizer.bos_token_id
        self.pad_id = _pad_id(model, tokenizer)
        self.boi_id = tokenizer.convert_tokens_to_ids(processor.image_start_token)
        self.image_id = config.image_token_id
        self._mean, self._std = normalisation(processor.image_processor)

    def prompt_text(self, direction: Direction, text: str) -> str:
        content = [{"type": "text", "text": text}]
        if direction == "i2t":
            content.insert(0, {"type": "image"})
        chat = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(chat, add_generation_prompt=True)
        bos = self.tokenizer.bos_token
        # the original reads pictures with the system prompt and draws without; converted
        # checkpoints ask for it by this setting, which only the processor's __call__ obeys
        asked = direction == "i2t" and self.processor.use_default_system_prompt
        prompt = bos + (DEFAULT_SYSTEM_PROMPT if asked else "") + prompt.removeprefix(bos)
        if direction == "t2i":
            return prompt + self.processor.image_start_token
        tokens = self.processor.image_token * self.image_tokens
        picture = self.processor.image_start_token + tokens + self.processor.image_end_token
        return prompt.replace(self.processor.image_token, picture, 1)

    def blank_prompts(self, prompts: PromptBatch) -> PromptBatch:
        # as in the original: everything but BOS and begin-of-image becomes pad, and is attended to
        ids = prompts.prompt_ids
        keep = (ids == self.bos_id) | (ids == self.boi_id)
        return replace(prompts, prompt_ids=ids.masked_fill(~keep, self.pad_id))

    def embed_prompts(self, prompts: PromptBatch) -> Tensor:
        embeds = self.model.get_input_embeddings()(prompts.prompt_ids)
        if prompts.pixels is None:
            return embeds
        pictures = (prompts.prompt_ids == self.image_id).unsqueeze(-1)
        return embeds.masked_scatter(pictures, self.image_features(prompts.pixels).to(embeds.dtype))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Turn pictures, uint8 [B, 3, H, W], into what the language model reads, [B, N, D].

        Equal pictures go through the vision tower once.
        """
        different, which = pixels.unique(dim=0, return_inverse=True)
        found = self.model.model.get_image_features(self.normalised(different)).pooler_output
        return found[which]

    def normalised(self, pixels: Tensor) -> Tensor:
        """Scale pictures, uint8 [B, 3, H, W], as the vision tower reads them."""
        scaled = pixels.to(torch.float32) / 255
        normal = (scaled - self._mean.to(pixels.device)) / self._std.to(pixels.device)
        return normal.to(self.model.dtype)

    def embed_tokens(self, ids: Tensor, modality: Modality) -> Tensor:
        if modality == "image":
            return self.model.prepare_embeddings_for_image_generation(ids)
        return self.model.get_input_embeddings()(ids)

    def features(self, hidden: Tensor, modality: Modality) -> Tensor:
        if modality == "text":
            return hidden
        head = self.model.model.generation_head
        return head.activation_fn(head.proj_out(hidden))

    def last_layer(self, features: Tensor, modality: Modality) -> Tensor:
        image = modality == "image"
        head = self.model.model.generation_head.vision_head if image else self.model.lm_head
        return head(features)

    def encode_images(self, pixels: Tensor) -> Tensor:
        codec = self.model.model.vqmodel
        scaled = pixels.to(codec.dtype) / 127.5 - 1
        with coding(codec):
            return nearest_codes(codec, codec.quant_conv(codec.encoder(scaled)))

    def decode_images(self, image_ids: Tensor) -> Tensor:
        return decoded_pictures(self.model.model.vqmodel, image_ids)

    @property
    def text_model(self) -> nn.Module:
        return self.model.model.language_model

    @property
    def image_tokenizer(self) -> nn.Module:
        return self.model.model.vqmodel

    def trainable_parameters(self) -> list[nn.Parameter]:
        inner = self.model.model
        modules = (inner.language_model, inner.generation_head, inner.generation_aligner)
        found = [p for m in (*modules, self.model.lm_head) for p in m.parameters()]
        found += list(inner.generation_embeddings.parameters())
        return list(dict.fromkeys(found))  # tied weights once


def _pad_id(model: JanusForConditionalGeneration, tokenizer: Any) -> int:
    """Read the pad id, which differs between the 1B (100002) and the 7B (100015)."""
    for pad in (tokenizer.pad_token_id, model.generation_config.pad_token_id):
        if pad is not None:
            return pad
    raise ValueError("the checkpoint names no pad token: set pad_token in tokenizer_config.json")


def nearest_codes(codec: Any, latents: Tensor) -> Tensor:
    """Find the ids of a Janus codec's codes at the smallest angles, [B, D, H, W] -> [B, H * W]."""
    # transformers' own `encode` skips this normalisation, unlike the original and `decode`
    latents = F.normalize(latents.flatten(2).transpose(1, 2).float(), dim=-1)
    codes = F.normalize(codec.quantize.embedding.weight.float(), dim=-1)
    return (latents @ codes.T).argmax(-1)


def decoded_pictures(codec: Any, image_ids: Tensor) -> Tensor:
    """Decode a Janus codec's ids, [B, N] -> uint8 [B, 3, H, W]."""
    with coding(codec):
        decoded = codec.decode(image_ids).float()
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
