"""The built-in model's geometry, tokenizer and processor: a Janus for two CPU cores."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from viceversa.models.janus import JanusAdapter
from viceversa.models.original import CHAT_TEMPLATE
from viceversa.scenes import language
from viceversa.scenes.render import SIZE

PATCH = 4
IMAGE_TOKENS = (SIZE // PATCH) ** 2
CODES = 256

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
BOI, EOI, IMAGE = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE: every word of the world is one token, any other text still encodes."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [BOS, EOS, PAD, USER, ASSISTANT, BOI, EOI, IMAGE]
    lines = [*language.grammar_corpus(), JanusAdapter.default_instruction]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([*lines, *(f" {line}" for line in lines), ": \n\n"], trainer)
    bpe.add_special_tokens([AddedToken(t, special=True) for t in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return tokenizer


def build_processor() -> JanusProcessor:
    images = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        min_size=PATCH,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return JanusProcessor(
        images, build_tokenizer(), chat_template=CHAT_TEMPLATE, num_image_tokens=IMAGE_TOKENS
    )


def build_config(processor: JanusProcessor, width: int = 96, layers: int = 3) -> JanusConfig:
    tokenizer = processor.tokenizer
    vision = JanusVisionConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        mlp_ratio=3.0,
        projection_dim=width,
        num_image_tokens=IMAGE_TOKENS,
    )
    codec = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=32,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=codec,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
    )


def build_model(config: JanusConfig) -> JanusForConditionalGeneration:
    """Make a random model of this geometry, its generation settings filled in."""
    model = JanusForConditionalGeneration(config)
    text: Any = config.text_config
    settings = model.generation_config
    settings.bos_token_id = text.bos_token_id
    settings.eos_token_id = text.eos_token_id
    settings.pad_token_id = text.pad_token_id
    return model
