"""A model of your own: a Llama with the codes of an image tokenizer in its vocabulary, as Liquid.

python -c "import examples.new_model; from viceversa.cli import entry; entry()" train --model FOLDER
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    ChameleonProcessor,
    JanusVQVAE,
    JanusVQVAEConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from viceversa.models import ADAPTERS
from viceversa.models.base import LINEAR_LAYERS, coding
from viceversa.models.janus import decoded_pictures, nearest_codes
from viceversa.models.single import SingleVocabularyAdapter
from viceversa.types import Direction


class LiquidConfig(LlamaConfig):
    model_type = "liquid"
    sub_configs_defaults: ClassVar[Any] = {"vq_config": JanusVQVAEConfig}
    vq_config: Any = None
    first_code: int = 0  # vocabulary id of code 0; the others follow


class LiquidForConditionalGeneration(LlamaForCausalLM):
    config_class = LiquidConfig

    def __init__(self, config: LiquidConfig):
        super().__init__(config)
        self.vqmodel = JanusVQVAE(config.vq_config)
        self.post_init()


class LiquidAdapter(SingleVocabularyAdapter):
    processor_class = ChameleonProcessor
    lora_modules = r"model\.layers\.\d+\..*" + LINEAR_LAYERS
    default_instruction = "Describe this image in one sentence."

    def __init__(self, model: LiquidForConditionalGeneration, processor: Any, image_size: int = 0):
        super().__init__(model, processor)
        codec: Any = model.config.vq_config
        self.image_tokens = codec.num_patches**2
        self.image_size = codec.num_patches * 2 ** (len(codec.channel_multiplier) - 1)
        self.check_image_size(image_size)
        self.boi_id = processor.image_start_token_id

    def ids_of_codes(self) -> range:
        config = self.model.config
        return range(config.first_code, config.first_code + config.vq_config.num_embeddings)

    def prompt_text(self, direction: Direction, text: str) -> str:
        bos, begin = self.tokenizer.bos_token, self.processor.image_start_token
        if direction == "t2i":
            return bos + text + begin
        holders = self.processor.image_token * self.image_tokens
        return bos + begin + holders + self.processor.image_end_token + text

    @property
    def text_model(self) -> nn.Module:
        return self.model.model

    @property
    def image_tokenizer(self) -> nn.Module:
        return self.model.vqmodel

    def latents(self, scaled: Tensor) -> Tensor:
        codec = self.model.vqmodel
        return codec.quant_conv(codec.encoder(scaled))

    def encode_images(self, pixels: Tensor) -> Tensor:
        codec = self.model.vqmodel
        with coding(codec):  # by angle, as the codec decodes; the base's look-up is by distance
            return nearest_codes(codec, self.latents(self.scaled(pixels)))

    def decode_images(self, image_ids: Tensor) -> Tensor:
        return decoded_pictures(self.model.vqmodel, image_ids)


AutoConfig.register("liquid", LiquidConfig)
ADAPTERS["liquid"] = (LiquidAdapter, LiquidForConditionalGeneration)
