"""The engine for a Llama on the CPU, where calls and reading weights cost more than arithmetic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viceversa.inference.engines import Plain, Prompts
from viceversa.models.base import Adapter, autocast_dtype
from viceversa.models.products import (
    has_onednn,
    large_products,
    onednn_packed,
    onednn_product,
)

#: Bytes of layers' weights up to which `Fused` copies them: those that stay in the processor's
#: cache, where calls are what costs.
COPIED_BYTES = 2**25
#: Layers whose arithmetic `Fused` knows, by the name of their class.
FUSED_LAYERS = ("LlamaDecoderLayer", "Emu3DecoderLayer")


def fusable(adapter: Adapter) -> bool:
    """Tell whether `Fused` can stand in for `Plain`."""
    model: Any = adapter.text_model
    layers = model.layers
    if adapter.device.type != "cpu" or type(layers[0]).__name__ not in FUSED_LAYERS:
        return False
    if autocast_dtype("cpu") is not None:  # it would round the products of weights, too
        return False
    weights = list(layers.parameters())
    biased = any(isinstance(m, nn.Linear) and m.bias is not None for m in layers.modules())
    # DoRA is no sum, and a merged LoRA is in the weights already
    other = ("lora_variant", "merged_adapters")
    summed = not any(getattr(m, name, None) for m in layers.modules() for name in other)
    # in bfloat16 a LoRA added to its weight would be rounded off
    exact = all(w.dtype == torch.float32 for w in weights)
    known = model.config.hidden_act == "silu" and not biased
    return summed and exact and known


class _Copied:
    """One layer of few weights, copied: those that read the same input lie side by side.

    Linear steps before them are multiplied in: a norm's weights, the scale of attention, and the
    order of the numbers that positions turn.
    """

    def __init__(self, layer: Any, pairs: Tensor, least: Tensor):
        attention, mlp, self.least = layer.self_attn, layer.mlp, least
        query, key, value = (
            _weight(attention.get_submodule(f"{x}_proj")).unflatten(0, (-1, len(pairs)))
            for x in "qkv"
        )
        qkv = torch.cat([query[:, pairs] * attention.scaling, key[:, pairs], value]).flatten(0, 1)
        self.qkv = qkv * _scale(layer.input_layernorm)
        self.out = _weight(attention.o_proj).T
        gate_up = torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)])
        self.gate_up = gate_up * _scale(layer.post_attention_layernorm)
        self.down = _weight(mlp.down_proj).T

    def heads(self, x: Tensor) -> Tensor:
        """Return the heads of queries, keys and values side by side, [B, D] -> [B, N]."""
        return F.linear(_unit(x, self.least), self.qkv)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add to x [B, D] what attention found, and then what the layer makes of it."""
        x = torch.addmm(x, attended, self.out)
        # a large matrix is read faster as the left factor
        gate, up = torch.mm(self.gate_up, _unit(x, self.least).T).chunk(2)
        return torch.addmm(x, F.silu(gate).mul_(up).T, self.down)


class _Packed(_Copied):
    """One layer of many weights, copied in the order in which few rows multiply them fastest."""

    def __init__(self, layer: Any, pairs: Tensor, least: Tensor):
        super().__init__(layer, pairs, least)
        self.qkv, self.out, self.gate_up, self.down = (
            onednn_packed(weight) for weight in (self.qkv, self.out.T, self.gate_up, self.down.T)
        )

    def heads(self, x: Tensor) -> Tensor:
        return onednn_product(_unit(x, self.least), self.qkv)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + onednn_product(attended, self.out)
        gate, up = onednn_product(_unit(x, self.least), self.gate_up).chunk(2, dim=1)
        return x + onednn_product(F.silu(gate).mul_(up), self.down)


class _InPlace:
    """One layer of many weights, which are read where they lie."""

    def __init__(self, layer: Any, pairs: Tensor, least: Tensor):
        self.attention, self.mlp, self.least = layer.self_attn, layer.mlp, least
        self.products = large_products(layer)
        width, values = len(pairs), self.attention.v_proj.out_features
        turned = self.attention.q_proj.out_features + values
        order = torch.arange(turned + values, device=pairs.device)
        order[:turned] = order[:turned].view(-1, width)[:, pairs].flatten()
        self.order = order
        self.before_attention = _scale(layer.input_layernorm)
        self.before_mlp = _scale(layer.post_attention_layernorm)

    def heads(self, x: Tensor) -> Tensor:
        read = _unit(x, self.least) * self.before_attention
        query, key, value = (
            self._product(self.attention.get_submodule(f"{x}_proj"), read) for x in "qkv"
        )
        side_by_side = torch.cat([query * self.attention.scaling, key, value], dim=1)
        return side_by_side.index_select(1, self.order)

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self._product(self.attention.o_proj, attended)
        read = _unit(x, self.least) * self.before_mlp
        gate = F.silu(self._product(self.mlp.gate_proj, read))
        return x + self._product(
            self.mlp.down_proj, gate.mul_(self._product(self.mlp.up_proj, read))
        )

    def _product(self, linear: Any, x: Tensor) -> Tensor:
        with self.products:
            return linear(x)


def _weight(linear: Any) -> Tensor:
    """Return the weights of a linear layer, its LoRA added."""
    base = linear.base_layer.weight if hasattr(linear, "base_layer") else linear.weight
    for name in getattr(linear, "active_adapters", ()):
        base = base + linear.get_delta_weight(name)
    return base


def _scale(norm: Any) -> Tensor:
    """Return what `_unit` leaves out of a norm, [D]."""
    return norm.weight * len(norm.weight) ** 0.5


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """Compute an RMS norm without its weights and the root of the width: see `_scale`."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)


class Fused(Plain):
    """Does as `Plain` does, with half the operations.

    The two numbers that a position turns stand side by side: turning is one complex product.
    """

    def __init__(self, adapter: Adapter, prompts: Prompts):
        super().__init__(adapter, prompts)
        model: Any = adapter.text_model
        self.norm, embeds = model.norm, prompts.embeds
        most = torch.arange(embeds.shape[1] + prompts.capacity, device=embeds.device).unsqueeze(0)
        cosine, sine = model.rotary_emb(embeds, most)
        half = sine.shape[-1] // 2
        self.turns = torch.complex(cosine[0, :, :half], sine[0, :, :half])
        least = embeds.new_tensor((embeds.shape[2] * model.norm.variance_epsilon) ** 0.5)
        pairs = torch.arange(2 * half, device=embeds.device).view(2, half).T.flatten()
        kind = self._kind(prompts)
        self.layers = [kind(layer, pairs, least) for layer in model.layers]
        for layer in self.cache.layers:
            layer.prompt_keys = layer.prompt_keys[..., pairs]

    def _kind(self, prompts: Prompts) -> type[_Copied | _InPlace]:
        """Choose how layers hold their weights: packing may double what decoding holds, no more."""
        model: Any = self.adapter.text_model
        weights = sum(w.nbytes for w in model.layers.parameters())
        if weights <= COPIED_BYTES:
            return _Copied
        written = self.cache.written_bytes
        return _Packed if weights <= written and has_onednn(prompts.embeds) else _InPlace

    def _forward(self, token: Tensor, hides: Tensor | None) -> Tensor:
        x, turn = token[:, 0], self.turns[self.position]
        for i, layer in enumerate(self.layers):
            x = layer.after(x, self._attended(i, layer.heads(x), turn, hides))
        return F.rms_norm(x, x.shape[-1:], self.norm.weight, self.norm.variance_epsilon)

    def _attended(self, i: int, qkv: Tensor, turn: Tensor, hides: Tensor | None) -> Tensor:
        _, heads, _, width = self.cache.layers[i].prompt_keys.shape
        qkv = qkv.unflatten(1, (-1, width))
        torch.view_as_complex(qkv[:, :-heads].unflatten(-1, (-1, 2))).mul_(turn)
        query, keys, values = qkv.split([qkv.shape[1] - 2 * heads, heads, heads], dim=1)
        own = self.cache.update(keys.unsqueeze(2), values.unsqueeze(2), i)
        grouped = query.unflatten(1, (heads, -1))
        return self.cache.attended(i, grouped, *own, hides).flatten(1)
