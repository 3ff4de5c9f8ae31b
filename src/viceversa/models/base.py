"""The adapter protocol: all that rollout, scoring and training need to know of a model.

An adapter says how its model embeds a prompt of each direction, embeds an output token, runs its
backbone with a cache, and turns hidden states into logits of a modality; plus pixels <-> image ids.
Sampling, likelihoods, rewards and losses are written once, above it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from viceversa.config import ConfigError
from viceversa.models.text import TextLimits, plain_text
from viceversa.types import Completion, Direction, Modality, PromptBatch

#: Of a Llama-like layer, as the end of a module's name.
LINEAR_LAYERS = r"(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

#: Pixels that a codec turns into tokens, or back, at once: three pictures of Janus-Pro take 0.4 GB,
#: two of Emu3 10 GB (`viceversa plan`).
CODEC_PIXELS = 2**19


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put every part in eval mode, and at the end back in the mode it had."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return the type that autocast computes in on a kind of device; None where it is off."""
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


@contextmanager
def coding(codec: Any) -> Iterator[None]:
    """Keep training mode and mixed precision away from an image tokenizer.

    Emu3's has batch norm, which in training would take the pictures' own statistics and keep them.
    """
    kind = next(codec.parameters()).device.type
    # the meta device knows no autocast
    exact = nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)
    with eval_mode(codec), exact:
        yield


def normalisation(images: Any) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of an image processor's pixels, [1, 3, 1, 1] each.

    Raises ValueError for others than three numbers, a deviation above zero.
    """
    try:
        mean, std = (
            torch.tensor(v).float().view(1, 3, 1, 1) for v in (images.image_mean, images.image_std)
        )
    except (TypeError, ValueError, RuntimeError):
        mean = std = torch.zeros(1)
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(
            f"the processor's image_mean is {images.image_mean!r}, its image_std "
            f"{images.image_std!r}; each takes three numbers, image_std above 0"
        )
    return mean, std


class Adapter(ABC):
    """One unified model behind one interface. `model` and `processor` are Hugging Face objects."""

    model: Any
    processor: Any
    processor_class: type
    """Class of `processor`."""
    special_names: tuple[str, ...] = ("bos_token", "eos_token")
    """The tokens that the tokenizer has to name."""
    image_size: int
    """Side in pixels of the pictures that the model draws and reads."""
    image_tokens: int
    """Tokens in one picture."""
    image_vocab_size: int
    layers: int
    """Layers of the backbone that keep a cache."""
    stop_id: int
    """The text token that ends a caption."""
    boi_id: int
    """Begins the picture, in a prompt to draw as in a picture to read."""
    image_id: int
    """The placeholder in a prompt to read a picture, one for each of its tokens and row ends."""
    default_instruction: str
    """Asks for a caption."""
    lora_modules: str
    """The modules that LoRA goes on, a regular expression of whole names."""

    @property
    def own_guidance(self) -> float:
        """Return the guidance of the model's own generation settings; 1, none, without."""
        settings = getattr(self.model, "generation_config", None)
        return float(getattr(settings, "guidance_scale", None) or 1.0)

    lora: Any = None
    """The PeftModel around `model`, where LoRA is trained."""
    answer_prefix = " "
    """What stands between the prompt and a text that the model writes."""
    row_tokens = 0
    """Tokens of one picture row, where rows end in a forced token; 0: a picture is plain tokens.

    Forced tokens are read by the model and are neither sampled nor scored."""
    reads_image_ids = False
    """Whether a picture is read as its image ids, so that drawn ids need no decoding to pixels."""
    draws_pixels = True
    """Whether image ids can be turned into pixels."""

    def check_image_size(self, asked: int) -> None:
        """Raises ValueError where a model of one picture size is asked for another; 0: its own."""
        if asked not in (0, self.image_size):
            raise ValueError(f"image_size is {asked}; this model's is {self.image_size}")

    @abstractmethod
    def prompt_text(self, direction: Direction, text: str) -> str:
        """Return the templated prompt. `text` is the prompt (`t2i`) or the instruction (`i2t`)."""

    @abstractmethod
    def blank_prompts(self, prompts: PromptBatch) -> PromptBatch:
        """Make the unconditional rows of guidance: the same prompts (`t2i`), content blanked."""

    @abstractmethod
    def embed_prompts(self, prompts: PromptBatch) -> Tensor:
        """Embed prompts, [B, L] -> [B, L, D]."""

    @abstractmethod
    def embed_tokens(self, ids: Tensor, modality: Modality) -> Tensor:
        """Embed written tokens as the model reads them back, [B, T] -> [B, T, D]."""

    @property
    @abstractmethod
    def text_model(self) -> nn.Module:
        """Return the backbone of the language model, without its heads."""

    def backbone(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        cache: Any = None,
        **more: Any,
    ) -> Tensor:
        """Run the layers, [B, T, D] -> hidden states [B, T, D].

        `attention_mask` [B, past + T]; None: all True. `more` goes to the layers' attention.

        Under autocast layers add to a float32 stream, also where FSDP2 gathers the embeddings in
        bfloat16, so that sharding does not change the precision.
        """
        if autocast_dtype(inputs_embeds.device.type) is not None:
            inputs_embeds = inputs_embeds.float()
        return self.text_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **more,
        ).last_hidden_state

    def logits(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Predict tokens of a modality, [..., D] -> [..., V] over its support."""
        return self.last_layer(self.features(hidden, modality), modality)

    def features(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Return what the last layer of that modality's head reads, [..., D] -> [..., F]."""
        return hidden

    @abstractmethod
    def last_layer(self, features: Tensor, modality: Modality) -> Tensor:
        """Apply the head's last layer, which is linear: [..., F] -> logits [..., V]."""

    def vocabulary(self, modality: Modality) -> int:
        """V of `logits`, at most."""
        if modality == "image":
            return self.image_vocab_size
        return self.model.config.get_text_config().vocab_size

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pictures, uint8 [B, 3, H, W] -> image ids [B, image_tokens].

        These are the nearest codes, looked up in float32 `coding`: ids depend on the weights alone.
        """

    def image_ids(self, pixels: Tensor) -> Tensor:
        """Encode pictures, `pictures_at_once` at a time, without gradient."""
        with torch.no_grad():
            parts = pixels.split(self.pictures_at_once)
            return torch.cat([self.encode_images(part) for part in parts])

    def decode_images(self, image_ids: Tensor) -> Tensor:
        """Image ids [B, image_tokens] -> uint8 [B, 3, H, W], where `draws_pixels`."""
        raise NotImplementedError(f"{type(self).__name__} cannot turn image ids into pixels")

    def embed_row_end(self) -> Tensor:
        """Embed the forced token after each row of `row_tokens`, [D]."""
        raise NotImplementedError(f"{type(self).__name__} has rows but no row end")

    @abstractmethod
    def trainable_parameters(self) -> list[nn.Parameter]:
        """List the parameters trained by default: the language model and its heads."""

    @property
    @abstractmethod
    def image_tokenizer(self) -> nn.Module:
        """Return the part that turns pixels into image ids; equal weights give equal ids."""

    @property
    def pictures_at_once(self) -> int:
        """Coded or decoded together; never changes the result."""
        return max(1, min(64, CODEC_PIXELS // self.image_size**2))

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """List tokens that no text may spell out: special and template-like ones."""
        added = self.tokenizer.added_tokens_decoder.values()
        found = {t.content for t in added if t.special or re.fullmatch(r"<.+>|\[.+\]", t.content)}
        found.update(self.tokenizer.all_special_tokens)
        names = ("image_token", "image_start_token", "image_end_token")
        found.update(t for name in names if isinstance(t := getattr(self.processor, name, 0), str))
        return tuple(sorted(found))

    @property
    def row_ends(self) -> int:
        """Forced tokens in one picture."""
        return self.image_tokens // self.row_tokens if self.row_tokens else 0

    def text_limits(self, instruction: str) -> TextLimits:
        """Return the limits within which a prompt can both be drawn and be read off a picture.

        Raises ConfigError where no prompt would.
        """
        config = self.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None) or float("inf")
        written = self.image_tokens + self.row_ends
        drawing = len(self.text_ids(self.prompt_text("t2i", ""))) + written
        asked = self.prompt_text("i2t", instruction or self.default_instruction)
        reading = len(self.text_ids(asked)) + 1  # the stop token
        room = context - max(drawing, reading) - 1  # the leading space may be a token of its own
        if room < 1:
            raise ConfigError(
                f"a picture of {self.image_tokens} tokens and sampling.instruction leave no room "
                f"for a prompt in the model's {context} tokens (max_position_embeddings in its "
                "config.json): shorten the instruction, or choose a smaller model.image_size where "
                "the model can"
            )
        return TextLimits(self.special_tokens, lambda text: len(self.text_ids(text)), room)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def prompts(
        self,
        direction: Direction,
        texts: Sequence[str],
        pixels: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> PromptBatch:
        """Template and tokenise. The pictures to read (`i2t`) are `pixels` (uint8 [B, 3, H, W]) or,
        where the adapter `reads_image_ids`, `image_ids` [B, image_tokens]."""
        if (direction == "i2t") != (pixels is not None or image_ids is not None):
            raise ValueError(f"direction {direction!r} with pixels={type(pixels).__name__}")
        ids, mask = self._tokenised(
            texts, lambda t: self.text_ids(self.prompt_text(direction, t)), "left"
        )
        return PromptBatch(direction, ids, mask, None if pixels is None else pixels.to(self.device))

    def text_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def text_completion(self, texts: Sequence[str], stops: bool = True) -> Completion:
        """Texts as the model would have written them, the stop token at the end.

        The stop token counts: a text that should go on is not the same text. Without `stops`
        there is none, and the text may go on.
        """
        end = [self.stop_id] if stops else []
        ids, mask = self._tokenised(
            [t.strip() for t in texts],
            lambda t: [*self.text_ids(self.answer_prefix + t), *end],
            "right",
        )
        return Completion(ids, mask)

    def _tokenised(
        self, texts: Sequence[str], ids_of: Callable[[str], list[int]], side: str
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask [B, L], padded on that side; a text that comes again is tokenised once."""
        different = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        ids = [torch.tensor(ids_of(plain_text(t, self.special_tokens))) for t in different]
        mask = [torch.ones_like(i, dtype=torch.bool) for i in ids]
        rows = torch.tensor([different[t] for t in texts])
        padded = (pad_sequence(x, batch_first=True, padding_side=side)[rows] for x in (ids, mask))
        padded_ids, padded_mask = (x.to(self.device) for x in padded)
        return padded_ids, padded_mask

    def image_completion(self, image_ids: Tensor) -> Completion:
        return Completion(image_ids, torch.ones_like(image_ids, dtype=torch.bool))

    def decode_texts(self, completions: Completion) -> list[str]:
        """Captions without special tokens."""
        rows = zip(completions.completion_ids.cpu(), completions.completion_mask.cpu(), strict=True)
        return [
            self.tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True).strip()
            for ids, mask in rows
        ]
