"""The engine for a small Llama on the CPU, where calls and memory cost more than arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from viceversa.inference.engines import Prompts
from viceversa.models.base import Adapter, autocast_dtype

#: Bytes of weights that `Fused` may copy.
FUSED_BYTES = 2**29
#: Layers whose arithmetic `Fused` knows, by the name of their class.
FUSED_LAYERS = ("LlamaDecoderLayer", "Emu3DecoderLayer")


def fusable(adapter: Adapter) -> bool:
    """Tell whether `Fused` can stand in for `Plain`, and is worth its copy of the weights."""
    model: Any = adapter.text_model
    layers = model.layers
    if adapter.device.type != "cpu" or type(layers[0]).__name__ not in FUSED_LAYERS:
        return False
    if autocast_dtype("cpu") is not None:  # it would round the products of weights, too
        return False
    weights = list(layers.parameters())
    biased = any(isinstance(m, nn.Linear) and m.bias is not None for m in layers.modules())
    # in bfloat16 a LoRA added to its weight would be rounded off
    plain = model.config.hidden_act == "silu" and all(w.dtype == torch.float32 for w in weights)
    return plain and not biased and sum(w.nbytes for w in weights) <= FUSED_BYTES


class _FusedLayer:
    """The weights of one layer, copied: those that read the same input lie side by side.

    Linear steps before them are multiplied in: a norm's weights, the scale of attention, and the
    order of the numbers that positions turn.
    """

    def __init__(self, layer: Any, pairs: Tensor):
        attention, mlp = layer.self_attn, layer.mlp
        query, key, value = (
            _weight(attention.get_submodule(f"{x}_proj")).unflatten(0, (-1, len(pairs)))
            for x in "qkv"
        )
        qkv = torch.cat([query[:, pairs] * attention.scaling, key[:, pairs], value]).flatten(0, 1)
        self.qkv = _after(layer.input_layernorm, qkv)
        self.out = _weight(attention.o_proj).T
        gate_up = torch.cat([_weight(mlp.gate_proj), _weight(mlp.up_proj)])
        self.gate_up = _after(layer.post_attention_layernorm, gate_up)
        self.down = _weight(mlp.down_proj).T
        self.prefix_keys = self.prefix_values = self.own = torch.empty(0)


def _weight(linear: Any) -> Tensor:
    """Return the weights of a linear layer, its LoRA added."""
    base = linear.base_layer.weight if hasattr(linear, "base_layer") else linear.weight
    for name in getattr(linear, "active_adapters", ()):
        base = base + linear.get_delta_weight(name)
    return base


def _after(norm: Any, weight: Tensor) -> Tensor:
    """Multiply into a weight what `_unit` leaves out of the norm before it."""
    return weight * (norm.weight * weight.shape[1] ** 0.5)


def _unit(x: Tensor, least: Tensor) -> Tensor:
    """Compute an RMS norm without its weights and the root of the width: see `_after`."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), least)


class Fused:
    """Does as `Plain` does, with half the operations and one copy of a prompt a group.

    Axes: S groups, K key heads, G rows of a group, R query heads of a key head. The two numbers
    that a position turns stand side by side, so that turning is one complex product.
    """

    def __init__(self, adapter: Adapter, prompts: Prompts):
        model: Any = adapter.text_model
        cache = DynamicCache()
        self.norm, self.hidden = model.norm, prompts.read(adapter, cache)
        of, embeds, capacity = prompts.prompt_of, prompts.embeds, prompts.capacity
        self.length, self.shape = 0, (len(of), prompts.group_size)
        self.hides = ~prompts.mask[of][:, None, None] if prompts.padded else None
        """[S, 1, 1, L], True on padding."""
        most = torch.arange(embeds.shape[1] + capacity, device=embeds.device).unsqueeze(0)
        cosine, sine = model.rotary_emb(embeds, most)
        half = sine.shape[-1] // 2
        self.turns = torch.complex(cosine[0, :, :half], sine[0, :, :half]).unsqueeze(1)
        self.position = prompts.mask.sum(-1)[prompts.rows]
        self.least = embeds.new_tensor((embeds.shape[2] * model.norm.variance_epsilon) ** 0.5)
        pairs = torch.arange(2 * half, device=embeds.device).view(2, half).T.flatten()
        self.layers = [_FusedLayer(layer, pairs) for layer in model.layers]
        kept: Any = cache.layers
        for mine, theirs in zip(self.layers, kept, strict=True):
            mine.prefix_keys, mine.prefix_values = theirs.keys[of][..., pairs], theirs.values[of]
            heads, width = theirs.keys.shape[1], theirs.keys.shape[3]
            # keys, then values
            mine.own = embeds.new_empty(2, len(of), heads, prompts.group_size, capacity, width)

    def read(self, embeds: Tensor) -> None:
        for token in embeds.unbind(1):
            x, turn = token, self.turns[self.position]
            for layer in self.layers:
                x = self._attended(layer, x, turn)
                gate, up = F.linear(_unit(x, self.least), layer.gate_up).chunk(2, dim=-1)
                x = torch.addmm(x, F.silu(gate) * up, layer.down)
            self.length += 1
            self.position = self.position + 1
        self.hidden = F.rms_norm(x, x.shape[-1:], self.norm.weight, self.norm.variance_epsilon)

    def _attended(self, layer: _FusedLayer, x: Tensor, turn: Tensor) -> Tensor:
        groups, group = self.shape
        _, _, heads, _, _, width = layer.own.shape
        qkv = F.linear(_unit(x, self.least), layer.qkv).view(len(x), -1, width)
        torch.view_as_complex(qkv[:, :-heads].unflatten(-1, (-1, 2))).mul_(turn)
        query, own = qkv.view(groups, group, -1, width).split(
            [qkv.shape[1] - 2 * heads, 2 * heads], 2
        )
        layer.own[..., self.length, :] = own.unflatten(2, (2, heads)).permute(2, 0, 3, 1, 4)
        keys, values = layer.own[..., : self.length + 1, :]
        query = query.unflatten(2, (heads, -1)).transpose(1, 2)
        weights = self._weights(layer, query, keys)
        prefix = layer.prefix_values.shape[2]
        out = torch.matmul(weights[..., prefix:], values)
        shared = weights[..., :prefix].flatten(2, 3)
        out += torch.matmul(shared, layer.prefix_values).view_as(out)
        return torch.addmm(x, out.transpose(1, 2).reshape(len(x), -1), layer.out)

    def _weights(self, layer: _FusedLayer, query: Tensor, keys: Tensor) -> Tensor:
        """Compute attention weights, [S, K, G, R, prompt and own tokens]."""
        shared = torch.matmul(query.flatten(2, 3), layer.prefix_keys.transpose(-1, -2))
        if self.hides is not None:
            shared = shared.masked_fill(self.hides, -torch.inf)
        own = torch.matmul(query, keys.transpose(-1, -2))
        return torch.cat([shared.view(*own.shape[:-1], -1), own], dim=-1).softmax(-1)

    def repeat(self, work: Callable[[int], None], t: int, tokens: int) -> None:
        work(t)

    def keep(self, rows: Tensor) -> None:
        group = self.shape[1]
        of = rows // group
        for layer in self.layers:
            layer.prefix_keys = layer.prefix_keys[of]
            layer.prefix_values = layer.prefix_values[of]
            layer.own = layer.own.transpose(2, 3).flatten(1, 2)[:, rows].unsqueeze(3)
        if self.hides is not None:
            self.hides = self.hides[of]
        self.shape = (len(rows), 1)
        self.hidden, self.position = self.hidden[rows], self.position[rows]
