"""The layout of the original Janus, deepseek-ai/Janus-Pro as published: loaded, and written back.

Its config.json has the model_type `multi_modality`, its weights names of their own. Both are turned
into transformers' in memory; export.py writes tuned weights back.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Size, Tensor
from transformers import (
    JanusConfig,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from viceversa.models.base import Adapter
from viceversa.models.janus import JanusAdapter
from viceversa.models.loading import (
    AGAIN,
    check_finite,
    check_safetensors,
    fault,
    is_folder,
    listed,
    read_object,
    reading,
    weight_files,
)

#: model_type of the original's config.json.
TYPE = "multi_modality"

#: `vision_config.params.model_name` -> what the original's code knows of that vision tower.
TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
        "mlp_ratio": 4.0,
    }
}

#: `gen_vision_config.cls` -> what the original's code knows of that image tokenizer.
CODECS: dict[str, dict[str, Any]] = {
    "VQ-16": {
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "latent_channels": 256,
    }
}

#: What is taken from `language_config`, where it is there.
LANGUAGE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias", "mlp_bias"),
)

#: Settings with one value that transformers' Janus can be built with.
ONLY = {
    "vision_config.cls": "CLIPVisionTower",
    "vision_config.params.select_layer": -1,
    "aligner_config.params.projector_type": "mlp_gelu",
    "gen_aligner_config.params.projector_type": "mlp_gelu",
}

#: The names that the original's processor takes by default, and transformers' names for them.
TAGS = {
    "image_tag": ("image_token", "<image_placeholder>"),
    "image_start_tag": ("boi_token", "<begin_of_image>"),
    "image_end_tag": ("eoi_token", "<end_of_image>"),
    "pad_tag": ("pad_token", "<｜▁pad▁｜>"),
}

#: Guidance that the original's code draws with; its folder holds no generation settings.
GUIDANCE = 5.0

#: The original's processor's defaults.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

#: Janus-Pro's conversation layout (`sft_format` deepseek), without the system prompt.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|User|>: {% else %}<|Assistant|>: {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image_placeholder>\\n' }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)

#: (transformers' name, the original's), each a regular expression and what takes its place.
NAMES = [
    (r"^lm_head\.", r"language_model.lm_head."),
    (r"^model\.language_model\.", r"language_model.model."),
    (r"^model\.vision_model\.embeddings\.patch_embedding\.", r"vision_tower.patch_embed.proj."),
    (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", r"vision_tower.pos_embed"),
    (r"^model\.vision_model\.post_layernorm\.", r"vision_tower.norm."),
    (r"^model\.vision_model\.encoder\.layers\.", r"vision_tower.blocks."),
    (r"^(vision_tower\.blocks\.\d+)\.layer_norm(\d)", r"\1.norm\2"),
    (r"^(vision_tower\.blocks\.\d+)\.self_attn\.projection_layer", r"\1.attn.proj"),
    (r"^(vision_tower\.blocks\.\d+)\.self_attn\.[qkv]_proj", r"\1.attn.qkv"),
    (r"^vision_tower\.", r"vision_model.vision_tower."),
    (r"^model\.aligner\.", r"aligner."),
    (r"^model\.generation_aligner\.", r"gen_aligner."),
    (r"^((?:gen_)?aligner)\.fc1\.", r"\1.layers.0."),
    (r"^model\.generation_embeddings\.", r"gen_embed."),
    (r"^model\.generation_head\.proj_out\.", r"gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", r"gen_head.vision_head."),
    (r"^model\.vqmodel\.", r"gen_vision_model."),
    (r"^(gen_vision_model\.)(encoder\.down|decoder\.up)\.(\d+)\.block\.", r"\1\2.\3.res."),
    (r"^(gen_vision_model\.)(encoder|decoder)\.(?:down|up)\.", r"\1\2.conv_blocks."),
    (r"^(gen_vision_model\.\w+\.mid)\.block_1\.", r"\1.0."),
    (r"^(gen_vision_model\.\w+\.mid)\.attn_1\.", r"\1.1."),
    (r"^(gen_vision_model\.\w+\.mid)\.block_2\.", r"\1.2."),
]

#: Weights that the original never uses to draw or read; `export` keeps them as the base has them.
UNREAD = re.compile(
    r"vision_model\.vision_tower\.attn_pool\.|gen_vision_model\.quantize\.codebook_used$"
)


# --- reading ------------------------------------------------------------------------------------


def fetched(path: str, shown: str, weights: bool = False) -> Path:
    """Return the folder at `path`, brought from the hub first where it is a name there."""
    if is_folder(path):
        return Path(path)
    settings = ["*.json", "*.txt", "*.model"]
    with reading(shown, "its files"):
        wanted = [*settings, "*.safetensors"] if weights else settings
        folder = Path(snapshot_download(path, allow_patterns=wanted))
        if weights and not any(folder.glob("*.safetensors")):  # as published: .bin alone
            folder = Path(snapshot_download(path, allow_patterns=[*settings, "*.bin"]))
    return folder


def read_config(path: str, shown: str) -> JanusConfig:
    """Return transformers' geometry of the original's config.json.

    Raises ConfigError for a setting that is missing, or that transformers' Janus cannot have.
    """
    folder = fetched(path, shown)
    held = read_object(folder / "config.json", shown)

    def get(name: str) -> Any:
        found: Any = held
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        if found is None:
            raise fault(shown, f"config.json has no {name}: is it a Janus or Janus-Pro?")
        return found

    for name, value in ONLY.items():
        if get(name) != value:
            raise fault(shown, f"{name} in config.json is {get(name)!r}; supported: {value!r}")
    language, width = get("language_config"), get("gen_aligner_config.params.n_embed")
    if not isinstance(language, dict) or language.get("tie_word_embeddings"):
        raise fault(
            shown, "language_config in config.json is not of a model with a head of its own"
        )
    if width != get("gen_head_config.params.image_token_embed"):
        raise fault(shown, "the image head and gen_aligner in its config.json differ in width")
    text: dict[str, Any] = {k: language[k] for k in LANGUAGE if k in language}
    text_ids, image_id = _token_ids(folder, shown)
    with reading(shown, "config.json"):
        return JanusConfig(
            text_config=LlamaConfig(**text, **text_ids),
            vision_config=JanusVisionConfig(
                **_known(TOWERS, get("vision_config.params.model_name"), shown),
                image_size=get("vision_config.params.image_size"),
                projection_dim=get("aligner_config.params.n_embed"),
                depth=get("aligner_config.params.depth"),
            ),
            vq_config=JanusVQVAEConfig(
                **_known(CODECS, get("gen_vision_config.cls"), shown),
                embed_dim=get("gen_vision_config.params.n_embed"),
                num_embeddings=get("gen_vision_config.params.image_token_size"),
                projection_dim=width,
                image_token_embed_dim=get("gen_head_config.params.n_embed"),
                num_hidden_layers=get("gen_aligner_config.params.depth"),
            ),
            tie_word_embeddings=False,
            dtype=held.get("torch_dtype") or language.get("torch_dtype"),
            **image_id,
        )


def _known(table: Mapping[str, dict[str, Any]], name: str, shown: str) -> dict[str, Any]:
    """Return the sizes that go by that name. Raises ConfigError for another name."""
    if name not in table:
        raise fault(shown, f"config.json names {name!r}; supported: {', '.join(table)}")
    return table[name]


def _token_ids(folder: Path, shown: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the ids that a geometry holds: of words, of pictures; none without a tokenizer."""
    if not (folder / "tokenizer.json").is_file():
        return {}, {}
    processor = load_processor(JanusAdapter, str(folder), shown)
    tokenizer = processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(processor.image_token)
    words = {f"{k}_token_id": getattr(tokenizer, f"{k}_token_id") for k in ("bos", "eos", "pad")}
    return words, {"image_token_id": image}


def load_processor(adapter_class: type[Adapter], path: str, shown: str) -> JanusProcessor:
    """Return transformers' processor of the original's tokenizer and picture settings.

    The tokenizer is tokenizer.json's, whatever class tokenizer_config.json names. Raises
    ConfigError for tokens that it does not have, and for another layout of conversations.
    """
    folder = fetched(path, shown)
    pictures = read_object(folder / "preprocessor_config.json", shown)
    file = folder / "processor_config.json"
    settings = read_object(file, shown) if file.exists() else {}
    if (sft := settings.get("sft_format", "deepseek")) != "deepseek":
        raise fault(shown, f"sft_format in {file.name} is {sft!r}; supported: 'deepseek'")
    tokens = {ours: settings.get(tag, default) for tag, (ours, default) in TAGS.items()}
    with reading(shown, "tokenizer.json or tokenizer_config.json"):
        known = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        if lacking := [token for token in tokens.values() if token not in known]:
            raise fault(shown, f"its tokenizer.json has no {listed(lacking)}: {AGAIN}")
        pad = tokens.pop("pad_token")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            folder, pad_token=pad, extra_special_tokens=tokens, padding_side="left"
        )
    for name in ("bos_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise fault(shown, f"its tokenizer_config.json names no {name}: add it")
    with reading(shown, "preprocessor_config.json"):
        side = pictures["image_size"]
        images = JanusImageProcessorPil(
            size={"height": side, "width": side},
            image_mean=pictures.get("image_mean", MEAN),
            image_std=pictures.get("image_std", STD),
            **{k: pictures[k] for k in ("min_size", "rescale_factor") if k in pictures},
        )
    return JanusProcessor(
        images,
        tokenizer,
        chat_template=CHAT_TEMPLATE.replace(TAGS["image_tag"][1], tokens["image_token"]),
        use_default_system_prompt=True,
        num_image_tokens=settings.get("num_image_tokens", 576),
    )


def read_weights(folder: Path, shown: str) -> dict[str, Tensor]:
    """Return the weights under the names that the files give them, left on the disk where it can.

    Nothing but weights is read of a .bin file.
    """
    found: dict[str, Tensor] = {}
    files = weight_files(folder, shown, ["model.safetensors", "pytorch_model.bin"])
    if not files:
        raise fault(shown, "the folder holds no model.safetensors or pytorch_model.bin")
    for file in files:
        if not file.is_file():
            raise fault(shown, f"{file.name} is missing: {AGAIN}")
        with reading(shown, file.name):
            if file.suffix == ".safetensors":
                check_safetensors(file, shown)
                found |= load_file(file)
            else:
                zipped = zipfile.is_zipfile(file)
                found |= torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    for name, weight in found.items():
        if not (isinstance(weight, Tensor) and weight.is_floating_point()):
            raise fault(shown, f"{name} is no weight of a model that was never quantized: {AGAIN}")
    return found


def load_model(model_class: Any, config: Any, path: str, shown: str, dtype: torch.dtype) -> Any:
    """Return transformers' model with the original's weights, every one placed and finite."""
    held = read_weights(fetched(path, shown, weights=True), shown)
    with torch.device("meta"), reading(shown, "config.json"):
        asked = model_class._from_config(config).state_dict()
    if trouble := layout_trouble(held, asked, "config.json"):
        raise fault(shown, f"{trouble}: take the files of one model")
    state = {name: _taken(held, name) for name in asked}
    with reading(shown, "its weights"):
        model = model_class.from_pretrained(None, config=config, state_dict=state, dtype=dtype)
    check_finite(model.state_dict().items(), shown)
    for name in ("bos", "eos", "pad"):
        given = getattr(config.text_config, f"{name}_token_id")
        setattr(model.generation_config, f"{name}_token_id", given)
    model.generation_config.guidance_scale = GUIDANCE
    return model


# --- names --------------------------------------------------------------------------------------


def original_name(name: str) -> str:
    """Return the original's name of a weight, by its name in transformers."""
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    later = re.match(r"((?:gen_)?aligner)\.hidden_layers\.(\d+)\.(\w+)$", name)
    # linear layers stand at 0, 2, 4, ...; between them is an activation
    return f"{later[1]}.layers.{2 * int(later[2]) + 2}.{later[3]}" if later else name


def _taken(held: Mapping[str, Tensor], name: str) -> Tensor:
    """Return transformers' weight of that name, out of the original's."""
    weight = held[original_name(name)]
    if part := re.search(r"vision_model\..*\.self_attn\.([qkv])_proj", name):
        return weight.chunk(3)["qkv".index(part[1])]
    return weight.squeeze(0) if name.endswith(".position_embedding.weight") else weight


def sources(names: Collection[str]) -> dict[str, list[str]]:
    """Return for each of the original's names the ones in transformers: q, k and v, or one."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda n: n.replace(".q_proj", ".a").replace(".k_proj", ".b")):
        found.setdefault(original_name(name), []).append(name)
    return found


def _shape(sources: list[str], asked: Mapping[str, Tensor]) -> Size:
    """Return the shape of the original's weight that is made of these."""
    first, *rest = asked[sources[0]].shape
    if sources[0].endswith(".position_embedding.weight"):
        return Size((1, first, *rest))
    return Size((len(sources) * first, *rest))


def layout_trouble(held: Mapping[str, Tensor], asked: Mapping[str, Tensor], by: str) -> str:
    """Say how the original's weights are not those of transformers' model; empty where they are.

    `held` goes by the original's names, `asked` by transformers'; `by` names who asks.
    """
    wanted = {name: _shape(them, asked) for name, them in sources(asked).items()}
    if missing := wanted.keys() - held.keys():
        return f"its weights lack {listed(sorted(missing))}"
    if extra := [n for n in held.keys() - wanted.keys() if not UNREAD.match(n)]:
        return f"its weights hold {listed(extra)}, which {by} does not ask for"
    for name, shape in wanted.items():
        if held[name].shape != shape:
            return f"{name} is {list(held[name].shape)} in its weights and {list(shape)} by {by}"
    return ""
