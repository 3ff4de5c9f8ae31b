"""Run the original Janus (github.com/deepseek-ai/Janus) on tiny random weights; keep what it says.

    git clone https://github.com/deepseek-ai/Janus
    pip install 'transformers==4.48.3' torchvision timm einops attrdict
    python tests/models/janus_original/make.py Janus

Only the widths are ours: every output below is computed by the original's own modules. It wants
transformers 4, so it runs in an environment of its own; nothing of viceversa is imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

SEED = 0
IMAGE, PATCH, CODES, CODE_WIDTH = 32, 4, 128, 8
WIDTH, LAYERS, HEADS, VOCAB = 48, 2, 4, 96
CHANNELS, MULTIPLIERS, LATENT = 32, [1, 1, 2], 32  # GroupNorm(32) wants multiples of 32
TOKENS = (IMAGE // PATCH) ** 2
GUIDANCE = 5.0
STEPS = 6
IDS = {"bos": 0, "eos": 1, "pad": 2, "boi": 5, "eoi": 6, "image": 7}
#: The original's defaults. Unequal channels, so that a swap shows.
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
INSTRUCTION, PROMPT = "Describe this image in one sentence.", "A red circle above a blue square."

DESCRIPTIONS = {
    "weights.*": "float16 (exact: rounded before the original ran), under transformers' names",
    "pictures": "uint8 [2, 3, H, W], read by the encoder and by the vision tower",
    "image_ids": "[2, tokens] VQModel.encode of pictures / 127.5 - 1",
    "vision_features": "[2, tokens, D] aligner(vision_model(VLMImageProcessor(pictures)))",
    "decoded": "[2, 3, H, W] VQModel.decode_code of drawn_ids",
    "decoded_uint8": "[2, 3, H, W] decoded, as generation_inference.py turns it into a picture",
    "drawn_ids": "[2, tokens] random image ids",
    "draw.N.prompt_ids": "[L_N] prompt of a drawing",
    "draw.N.forced_ids": "[2, steps] image ids written so far, in place of sampled ones",
    "draw.N.guided_logits": "[2, steps, codes] guided logits that precede each of forced_ids",
    "read.prompt_ids": "[2, L] left-padded with pad by VLChatProcessor.batchify",
    "read.attention_mask": "[2, L]",
    "read.text_ids": "[2, steps] what language_model.generate wrote, greedy",
    "read.logits": "[2, steps, vocabulary] the text logits of those steps",
}


def build_original() -> Any:
    """MultiModalityCausalLM with tiny widths, random weights and codes of unequal norms."""
    siglip: Any = importlib.import_module("janus.models.siglip_vit")
    codec: Any = importlib.import_module("janus.models.vq_model")
    vlm = importlib.import_module("janus.models.modeling_vlm")
    siglip.SigLIP_MODEL_CONFIG["siglip_tiny"] = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": 2,
        "heads": HEADS,
        "mlp_ratio": 4,
        "global_pool": "map",
    }
    # VQModel leaves the width and depth of both halves at the defaults of their signatures
    codec.Encoder = partial(codec.Encoder, ch=CHANNELS, num_res_blocks=1)
    codec.Decoder = partial(codec.Decoder, ch=CHANNELS, num_res_blocks=1)
    codec.VQ_models["VQ-16"] = lambda: codec.VQModel(
        codec.ModelArgs(
            codebook_size=CODES,
            codebook_embed_dim=CODE_WIDTH,
            encoder_ch_mult=MULTIPLIERS,
            decoder_ch_mult=MULTIPLIERS,
            z_channels=LATENT,
        )
    )
    tower = {"model_name": "siglip_tiny", "image_size": IMAGE, "select_layer": -1}
    mlp = {"projector_type": "mlp_gelu", "depth": 2, "n_embed": WIDTH}
    config = vlm.MultiModalityConfig(
        vision_config={"cls": "CLIPVisionTower", "params": tower},
        aligner_config={"cls": "MlpProjector", "params": {**mlp, "input_dim": WIDTH}},
        gen_vision_config={
            "cls": "VQ-16",
            "params": {"image_token_size": CODES, "n_embed": CODE_WIDTH},
        },
        gen_aligner_config={"cls": "MlpProjector", "params": {**mlp, "input_dim": CODE_WIDTH}},
        gen_head_config={
            "cls": "vision_head",
            "params": {"n_embed": WIDTH, "image_token_embed": WIDTH, "image_token_size": CODES},
        },
        language_config={
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 256,
            "bos_token_id": IDS["bos"],
            "eos_token_id": IDS["eos"],
            "pad_token_id": IDS["pad"],
        },
    )
    model = vlm.MultiModalityCausalLM(config).eval()
    fill(model)
    return model


def fill(model: torch.nn.Module) -> None:
    """Every parameter random, none left at 0 or 1, so that no misplaced one can hide."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if name == "gen_vision_model.quantize.embedding.weight":
            drawn *= torch.rand(CODES, 1, generator=generator) * 3 + 0.1
        elif "embed" in name:
            drawn *= 0.7
        elif parameter.ndim > 1:
            # weak image heads: guidance multiplies float error as well
            gain = 0.7 if name.startswith("gen_head") else 1.5
            drawn *= gain / parameter[0].numel() ** 0.5
        else:
            drawn = drawn * 0.2 + (1.0 if name.endswith("weight") else 0.0)
        if name.startswith("gen_vision_model.decoder.conv_out"):
            drawn *= 0.5  # most pixels inside [-1, 1]
        parameter.data = drawn.half().float()


#: (original's name, transformers' name), applied in this order.
RENAMES = [
    (r"^language_model\.lm_head", "lm_head"),
    (r"^language_model\.model", "model.language_model"),
    (r"^vision_model\.vision_tower", "model.vision_model"),
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"pos_embed", "embeddings.position_embedding.weight"),
    (r"vision_model\.norm", "vision_model.post_layernorm"),
    (r"vision_model\.blocks", "vision_model.encoder.layers"),
    (r"(vision_model\..*)\.norm(\d)", r"\1.layer_norm\2"),
    (r"\.attn\.proj", ".self_attn.projection_layer"),
    (r"^aligner\.layers\.0", "model.aligner.fc1"),
    (r"^aligner\.layers\.2", "model.aligner.hidden_layers.0"),
    (r"^gen_aligner\.layers\.0", "model.generation_aligner.fc1"),
    (r"^gen_aligner\.layers\.2", "model.generation_aligner.hidden_layers.0"),
    (r"^gen_embed", "model.generation_embeddings"),
    (r"^gen_head\.output_mlp_projector", "model.generation_head.proj_out"),
    (r"^gen_head\.vision_head", "model.generation_head.vision_head"),
    (r"^gen_vision_model", "model.vqmodel"),
    (r"encoder\.conv_blocks", "encoder.down"),
    (r"decoder\.conv_blocks", "decoder.up"),
    (r"\.res\.", ".block."),
    (r"coder\.mid\.0", "coder.mid.block_1"),
    (r"coder\.mid\.1", "coder.mid.attn_1"),
    (r"coder\.mid\.2", "coder.mid.block_2"),
]


def new_name(name: str) -> str:
    """transformers' name of a weight; of a merged q, k and v, with `attn.qkv` still in it."""
    own = "gen_vision_model" if name.startswith("gen_vision_model") else ""
    for pattern, new in RENAMES:
        # the codec has names of its own: none of the vision tower's rules may touch it
        if own and not ("vqmodel" in new or "coder" in pattern or r"\.res\." in pattern):
            continue
        name = re.sub(pattern, new, name)
    return name


def renamed(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights under transformers' names."""
    weights: dict[str, Tensor] = {}
    for old, tensor in model.named_parameters():
        if ".attn_pool." in old or old.endswith("codebook_used"):
            continue  # a pooling head that Janus never runs; a usage counter
        name = new_name(old)
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                weights[name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = piece
        else:
            weights[name] = tensor.squeeze(0) if "position_embedding" in name else tensor
    return {name: tensor.detach().half().contiguous() for name, tensor in weights.items()}


def layout(model: Any) -> str:
    """The original's config.json, and the names and shapes of all its weights, one a line."""
    held = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    lines = (f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in held.items())
    config = public(json.loads(model.config.to_json_string()))
    return (
        f'{{\n "config": {json.dumps(config)},\n "weights": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    )


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what transformers notes for itself."""
    kept = {k: v for k, v in config.items() if not k.startswith("_")}
    return {k: public(v) if isinstance(v, dict) else v for k, v in kept.items()}


def image_ids(model: Any, pictures: Tensor) -> tuple[Tensor, float]:
    """The original's ids, and by how much the nearest code beats the next."""
    codec = model.gen_vision_model
    scaled = pictures.float() / 127.5 - 1
    ids = codec.encode(scaled)[2][2].view(len(pictures), TOKENS)
    latents = codec.quant_conv(codec.encoder(scaled)).flatten(2).transpose(1, 2)
    codes = torch.nn.functional.normalize(codec.quantize.embedding.weight, dim=-1)
    best = (torch.nn.functional.normalize(latents, dim=-1) @ codes.T).topk(2).values
    return ids, float((best[..., 0] - best[..., 1]).min())


def draw_pictures(model: Any) -> tuple[Tensor, Tensor, float]:
    """Coarse coloured noise, drawn again until no id is a near tie."""
    generator = torch.Generator().manual_seed(SEED + 1)
    for _ in range(200):
        coarse = torch.rand(2, 3, 8, 8, generator=generator)
        fine = torch.rand(2, 3, IMAGE, IMAGE, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=IMAGE, mode="bilinear")
        pictures = ((0.8 * smooth + 0.2 * fine) * 255).round().to(torch.uint8)
        ids, margin = image_ids(model, pictures)
        if margin > 5e-4:
            return pictures, ids, margin
    raise SystemExit("no pictures without near ties; change the seed")


def guided_logits(model: Any, prompt: Tensor, forced: Tensor) -> Tensor:
    """The loop of generation_inference.py, its sampled tokens replaced by `forced`."""
    n = len(forced)
    tokens = torch.zeros((n * 2, len(prompt)), dtype=torch.int)
    for i in range(n * 2):
        tokens[i, :] = prompt
        if i % 2 != 0:
            tokens[i, 1:-1] = IDS["pad"]
    embeds = model.language_model.get_input_embeddings()(tokens)
    cache, kept = None, []
    for step in range(forced.shape[1]):
        outputs = model.language_model.model(
            inputs_embeds=embeds, use_cache=True, past_key_values=cache
        )
        cache = outputs.past_key_values
        logits = model.gen_head(outputs.last_hidden_state[:, -1, :])
        conditional, unconditional = logits[0::2, :], logits[1::2, :]
        kept.append(unconditional + GUIDANCE * (conditional - unconditional))
        token = forced[:, step : step + 1]
        token = torch.cat([token.unsqueeze(1), token.unsqueeze(1)], dim=1).view(-1)
        embeds = model.prepare_gen_img_embeds(token).unsqueeze(1)
    return torch.stack(kept, dim=1)


def read(model: Any, pictures: Tensor, prompts: list[Tensor]) -> dict[str, Tensor]:
    """inference.py: batchify, prepare_inputs_embeds, language_model.generate."""
    images = importlib.import_module("janus.models.image_processing_vlm")
    processing = importlib.import_module("janus.models.processing_vlm")
    chat = processing.VLChatProcessor.__new__(processing.VLChatProcessor)  # it wants a tokenizer
    chat.image_processor = images.VLMImageProcessor(IMAGE, image_mean=MEAN, image_std=STD)
    chat.image_tag, chat.image_start_tag, chat.image_end_tag = "image", "boi", "eoi"
    chat.pad_tag, chat.add_special_token, chat.num_image_tokens = "pad", False, TOKENS
    chat.tokenizer = SimpleNamespace(vocab=IDS)
    rows = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        ids, count = chat.add_image_token((prompt == IDS["image"]).nonzero(), prompt)
        seen = chat.image_processor([Image.fromarray(picture.permute(1, 2, 0).numpy())])
        pixels = seen.pixel_values
        rows.append(processing.VLChatProcessorOutput("", ids, pixels, count))
    batch = chat.batchify(rows)
    prompt_ids = batch.input_ids.clone()
    embeds = model.prepare_inputs_embeds(
        batch.input_ids, batch.pixel_values, batch.images_seq_mask, batch.images_emb_mask
    )
    written = model.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=batch.attention_mask,
        pad_token_id=IDS["eos"],
        bos_token_id=IDS["bos"],
        eos_token_id=IDS["eos"],
        max_new_tokens=STEPS,
        do_sample=False,
        use_cache=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    if (written.sequences == IDS["eos"]).any():
        raise SystemExit("a caption stopped early; change the seed")
    return {
        "vision_features": model.aligner(model.vision_model(batch.pixel_values[:, 0])),
        "read.prompt_ids": prompt_ids,
        "read.attention_mask": batch.attention_mask,
        "read.text_ids": written.sequences,
        "read.logits": torch.stack(written.logits, dim=1),
    }


def conversation(user: str, system: str) -> str:
    """VLChatProcessor.apply_sft_template_for_multi_turn_prompts, before any image is expanded."""
    processor = importlib.import_module("janus.models.processing_vlm").VLChatProcessor
    turns = [{"role": "<|User|>", "content": user}, {"role": "<|Assistant|>", "content": ""}]
    build = processor.apply_sft_template_for_multi_turn_prompts
    return build(None, turns, sft_format="deepseek", system_prompt=system)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description="Write fixture.* and layout.json.")
    parser.add_argument("checkout", type=Path, help="a clone of github.com/deepseek-ai/Janus")
    checkout: Path = parser.parse_args().checkout.resolve()
    sys.path.insert(0, str(checkout))
    importlib.import_module("janus")  # patches collections, which attrdict needs
    torch.set_num_threads(1)

    model = build_original()
    generator = torch.Generator().manual_seed(SEED + 3)

    def words(n: int) -> Tensor:
        return torch.randint(8, VOCAB, (n,), generator=generator)

    pictures, ids, margin = draw_pictures(model)
    drawn_ids = torch.randint(CODES, (2, TOKENS), generator=generator)
    side = IMAGE // PATCH
    decoded = model.gen_vision_model.decode_code(
        drawn_ids.to(torch.int), shape=[2, CODE_WIDTH, side, side]
    )
    picture = np.zeros(decoded.shape, dtype=np.uint8)
    picture[:] = np.clip((decoded.numpy() + 1) / 2 * 255, 0, 255)
    tensors = {
        "pictures": pictures,
        "image_ids": ids,
        "drawn_ids": drawn_ids,
        "decoded": decoded,
        "decoded_uint8": torch.from_numpy(picture),
    }
    bos, boi, image = (torch.tensor([IDS[k]]) for k in ("bos", "boi", "image"))
    for n, length in enumerate((9, 5)):
        prompt = torch.cat([bos, words(length), boi])
        forced = torch.randint(CODES, (2, STEPS), generator=generator)
        tensors[f"draw.{n}.prompt_ids"] = prompt
        tensors[f"draw.{n}.forced_ids"] = forced
        tensors[f"draw.{n}.guided_logits"] = guided_logits(model, prompt, forced)
    questions = [torch.cat([bos, words(3), image, words(n)]) for n in (7, 4)]
    tensors.update(read(model, pictures, questions))
    weights = {f"weights.{name}": tensor for name, tensor in renamed(model).items()}

    here = Path(__file__).parent
    file = here / "fixture.safetensors"
    save_file({k: v.contiguous() for k, v in (weights | tensors).items()}, file)
    system = importlib.import_module("janus.models.processing_vlm").VLChatProcessor.system_prompt
    git = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    about = {
        "original": "https://github.com/deepseek-ai/Janus",
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "seed": SEED,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "timm", "einops")},
        },
        "shapes": {
            "image_size": IMAGE,
            "patch_size": PATCH,
            "codes": CODES,
            "code_width": CODE_WIDTH,
            "latent_channels": LATENT,
            "base_channels": CHANNELS,
            "channel_multiplier": MULTIPLIERS,
            "num_res_blocks": 1,
            "width": WIDTH,
            "layers": LAYERS,
            "heads": HEADS,
            "vocabulary": VOCAB,
        },
        "token_ids": IDS,
        "image_mean": MEAN,
        "image_std": STD,
        "guidance": GUIDANCE,
        "smallest_margin_of_an_image_id": margin,
        "prompts": {
            "instruction": INSTRUCTION,
            "prompt": PROMPT,
            "i2t": conversation(f"<image_placeholder>\n{INSTRUCTION}", system),
            "t2i": conversation(PROMPT, "") + "<begin_of_image>",
        },
        "tensors": DESCRIPTIONS,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    (here / "fixture.json").write_text(text, encoding="utf-8")
    (here / "layout.json").write_text(layout(model), encoding="utf-8")
    print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB, smallest margin {margin:.1e}")


if __name__ == "__main__":
    main()
