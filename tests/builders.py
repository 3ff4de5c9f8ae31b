"""Tiny random models of each supported class, small enough for a test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil
from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

from viceversa.config import SamplingConfig
from viceversa.inference.logprobs import completion_hidden
from viceversa.models.base import Adapter
from viceversa.models.chameleon import ChameleonAdapter
from viceversa.models.emu3 import Emu3Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.pretrain import tiny
from viceversa.rl.rollout import rollout
from viceversa.scenes import language
from viceversa.scenes.examples import examples_of
from viceversa.scenes.render import SIZE
from viceversa.scenes.spec import draw_specs

CODES = 16
AnyAdapter = TypeVar("AnyAdapter", bound=Adapter)
Given = ParamSpec("Given")


#: An image tokenizer with 4-pixel tokens.
SMALL_CODEC: dict[str, Any] = {
    "embed_dim": 8,
    "num_embeddings": CODES,
    "latent_channels": 32,
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1],
    "num_res_blocks": 1,
}


def built_once(build: Callable[Given, AnyAdapter]) -> Callable[Given, AnyAdapter]:
    """Build once a process and hand out copies: hundreds of tests ask for a model.

    Copies share the processor, which no test changes.
    """

    @cache
    def built(*args: Any, **kwargs: Any) -> tuple[AnyAdapter, torch.Tensor]:
        return build(*args, **kwargs), torch.get_rng_state()

    @wraps(build)
    def copied(*args: Given.args, **kwargs: Given.kwargs) -> AnyAdapter:
        adapter, state = built(*args, **kwargs)
        torch.set_rng_state(state)  # as building leaves it
        return copy.deepcopy(adapter, {id(adapter.processor): adapter.processor})

    return copied


@built_once
def random_janus(seed: int = 0) -> JanusAdapter:
    """Random weights with sharp heads and codebook rows of unequal norms."""
    torch.manual_seed(seed)
    processor = tiny.build_processor()
    model = tiny.build_model(tiny.build_config(processor, width=32, layers=2)).eval()
    with torch.no_grad():
        codes = model.model.vqmodel.quantize.embedding.weight
        codes.normal_().mul_(torch.rand(len(codes), 1) * 3 + 0.1)
    return _sharpened(JanusAdapter(model, processor))


def save(adapter: Adapter, folder: Path) -> None:
    adapter.model.save_pretrained(folder)
    adapter.processor.save_pretrained(folder)


@built_once
def random_emu3(seed: int = 0, image_size: int = SIZE) -> Emu3Adapter:
    """Emu3 with 4-pixel tokens; visual tokens are a run in the middle of the vocabulary."""
    torch.manual_seed(seed)
    visual = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    named = {
        "bos_token": "<|extra_203|>",
        "eos_token": "<|extra_204|>",
        "pad_token": "<|endoftext|>",
    }
    extra = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
        "eol_token": "<|extra_200|>",
    }
    tokenizer = _tokenizer(named, extra, visual)
    processor = Emu3Processor(Emu3ImageProcessor(), tokenizer)
    text = {
        "vocab_size": len(tokenizer),
        **_small(tokenizer),
        "max_position_embeddings": 512,
    }
    codec = {
        "codebook_size": CODES,
        "embed_dim": 4,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [2],
        "hidden_size": 32,
        "temporal_downsample_factor": 1,
    }
    config = Emu3Config(
        text_config=text, vq_config=codec, vocabulary_map=dict(tokenizer.get_vocab())
    )
    model = Emu3ForConditionalGeneration(config).eval()
    _without_dropout(model)
    return _sharpened(Emu3Adapter(model, processor, image_size))


@built_once
def random_chameleon(seed: int = 0) -> ChameleonAdapter:
    """Chameleon with 4-pixel tokens; it cannot decode pictures."""
    torch.manual_seed(seed)
    # the class spells the code in letters: A is 0, B is 1, ..., and ends the name in Z
    visual = [
        "IMGIMG" + "".join(chr(ord("A") + int(d)) for d in str(code)) + "Z" for code in range(CODES)
    ]
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "sep_token": "<reserved08706>",
    }
    extra = {"image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>"}
    tokenizer = _tokenizer(named, extra, visual)
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor = ChameleonProcessor(images, tokenizer, image_seq_length=(SIZE // 4) ** 2)
    codec = {**SMALL_CODEC, "resolution": SIZE}
    config = ChameleonConfig(
        vocab_size=len(tokenizer),
        **_small(tokenizer),
        max_position_embeddings=512,
        vq_config=codec,
        vocabulary_map=dict(tokenizer.get_vocab()),
    )
    model = ChameleonForConditionalGeneration(config).eval()
    return _sharpened(ChameleonAdapter(model, processor))


def random_liquid(example: Any, seed: int = 0) -> Adapter:
    """The model of examples/new_model.py, with 4-pixel tokens and codes of unequal norms."""
    torch.manual_seed(seed)
    visual = [f"<image {code}>" for code in range(CODES)]
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    extra = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer = _tokenizer(named, extra, visual)
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        rescale_factor=1 / 127.5,
    )
    codec = {**SMALL_CODEC, "num_patches": SIZE // 4}
    config = example.LiquidConfig(
        vocab_size=len(tokenizer),
        **_small(tokenizer),
        max_position_embeddings=512,
        vq_config=codec,
        first_code=tokenizer.convert_tokens_to_ids(visual[0]),
    )
    model = example.LiquidForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.vqmodel.quantize.embedding.weight.mul_(torch.rand(CODES, 1) * 3 + 0.1)
    return _sharpened(example.LiquidAdapter(model, ChameleonProcessor(images, tokenizer)))


def _small(tokenizer: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _tokenizer(
    named: dict[str, str], extra: dict[str, str], visual: list[str]
) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the world's language, with a single vocabulary's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [*named.values(), *visual, *extra.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([f" {line}" for line in language.grammar_corpus()], trainer)
    bpe.add_special_tokens([AddedToken(t, special=True) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        extra_special_tokens=extra,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **named,
    )


def vision_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of a model that only reads pictures, as LLaVA."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return _tokenizer(named, {"image_token": "<image>"}, [])


def _without_dropout(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _sharpened(adapter: AnyAdapter) -> AnyAdapter:
    """At the default scale every distribution is almost flat; and captions should end."""
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if parameter.ndim > 1 and "vqmodel" not in name:
                parameter.mul_(4.0)
    _let_it_stop(adapter)
    return adapter


@torch.no_grad()
def _let_it_stop(adapter: Adapter) -> None:
    """Fit the stop token's row so that it takes about a third of the mass everywhere."""
    if adapter.image_size != SIZE:
        return
    examples = examples_of("i2t", draw_specs(0, 1, "train"))
    config = SamplingConfig(group_size=4, max_caption_tokens=8)
    sampled = rollout(adapter, examples, config, seed=0, step=0)
    prompts = sampled.prompts.repeat_interleave(4)
    hidden = completion_hidden(adapter, prompts, sampled.completions)
    hidden = hidden[sampled.completions.completion_mask]
    logits = adapter.logits(hidden, "text")
    logits[:, adapter.stop_id] = -torch.inf
    wanted = logits.logsumexp(-1, keepdim=True) - 0.7
    fitted = torch.linalg.lstsq(hidden, wanted).solution
    adapter.model.lm_head.weight[adapter.stop_id] = fitted[:, 0]


ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "janus": random_janus,
    "emu3": random_emu3,
    "chameleon": random_chameleon,
}
