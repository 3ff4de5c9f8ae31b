"""The image tokens of the user's pictures: computed once, kept on disk by content and model."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from viceversa.data.cache import DiskCache
from viceversa.models.base import Adapter

#: How ids are found: those of another way are computed again.
RULES = "2: nearest code in float32, eval mode"


class ImageIds:
    """`encode_images` with a memory, for an adapter's `id_cache`.

    Pictures of the built-in world need none: they are tiny.

    Each new picture is encoded on its own, so that its ids depend on nothing but its content: in a
    batch, rounding could depend on its neighbours, and a cache that is full or empty would tell.
    """

    def __init__(self, adapter: Adapter, cache: DiskCache):
        self.adapter, self.cache = adapter, cache
        self.model = fingerprint(adapter)
        self.hits = self.misses = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode pictures, uint8 [B, 3, H, W] -> image ids [B, image_tokens]."""
        keys = [hashlib.sha256(self.model + p.tobytes()).digest() for p in pixels.cpu().numpy()]
        known = self.cache.get(list(dict.fromkeys(keys)))
        known = {k: v for k, v in known.items() if len(v) == 4 * self.adapter.image_tokens}
        fresh: dict[bytes, bytes] = {}
        for row, key in enumerate(keys):
            if key not in known and key not in fresh:
                ids = self.adapter.encode_images(pixels[row : row + 1])
                fresh[key] = ids[0].cpu().numpy().astype(np.int32).tobytes()
        if fresh:
            self.cache.put(fresh)
        self.misses += len(fresh)
        self.hits += len(keys) - len(fresh)
        known |= fresh
        rows = np.stack([np.frombuffer(known[key], np.int32) for key in keys])
        return torch.from_numpy(rows).long().to(pixels.device)


def fingerprint(adapter: Adapter) -> bytes:
    """Name the weights that ids depend on, and the code that reads them, by a hash."""
    state = adapter.image_tokenizer.state_dict()
    digest = hashlib.sha256(f"{RULES}/{type(adapter).__name__}/{adapter.image_size}".encode())
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().tobytes())
    return digest.digest()
