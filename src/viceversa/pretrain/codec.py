"""Training the built-in model's image tokenizer (a Janus VQ) from nothing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.janus.modeling_janus import JanusVQVAE

from viceversa.scenes.render import CELL, CELL_CONTENTS, SIZE, draw_object
from viceversa.scenes.spec import GRID

_CELLS = np.stack([draw_object(o) for o in CELL_CONTENTS])


def random_grids(rng: np.random.Generator, n: int) -> Tensor:
    """Pictures with up to four of any cell contents anywhere, in [-1, 1], [n, 3, SIZE, SIZE].

    The tokenizer sees every colour-shape pair, as a general image tokenizer would; the language
    model does not (`scenes.spec.HELD_OUT_PAIRS`).
    """
    content = rng.integers(1, len(_CELLS), (n, GRID * GRID))
    order = rng.random((n, GRID * GRID)).argsort(-1)
    repeated = rng.random((n, 1)) < 0.5
    content = np.where(repeated, content[:, :1], content)  # pictures for counting repeat an object
    content[order >= rng.integers(1, 5, (n, 1))] = 0
    cells = _CELLS[content].reshape(n, GRID, GRID, CELL, CELL, 3)
    pixels = cells.transpose(0, 5, 1, 3, 2, 4).reshape(n, 3, SIZE, SIZE)
    return torch.from_numpy(pixels).float() / 127.5 - 1


def quantise(codec: JanusVQVAE, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised latents, their nearest normalised codes (both [B, N, D]), and the ids [B, N]."""
    z = F.normalize(latents.flatten(2).transpose(1, 2), dim=-1)
    codes = F.normalize(codec.quantize.embedding.weight, dim=-1)
    ids = (z @ codes.T).argmax(-1)
    return z, codes[ids], ids


def codec_loss(codec: JanusVQVAE, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction + codebook + 0.25 commitment + patch loss, and the image ids [B, N].

    `JanusVQVAE.forward` passes no gradient to its encoder, so the straight-through step is here.
    """
    z, code, ids = quantise(codec, codec.quant_conv(codec.encoder(pixels)))
    straight = z + (code - z).detach()
    side = codec.quantize.quant_state_dims[0]
    grid = straight.transpose(1, 2).reshape(pixels.shape[0], -1, side, side)
    decoded = codec.decoder(codec.post_quant_conv(grid))
    loss = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels)
    loss = loss + F.mse_loss(code, z.detach()) + 0.25 * F.mse_loss(z, code.detach())
    return loss + patch_loss(z, pixels), ids


def patch_groups(pixels: Tensor, side: int) -> Tensor:
    """Group patches that show the same pixels: a group id for each patch, [B * side * side]."""
    patch = pixels.shape[-1] // side
    patches = F.unfold(pixels, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    places = torch.arange(1, patches.shape[1] + 1, dtype=torch.float64, device=pixels.device)
    weights = places.sqrt()
    keys = ((patches.double() @ weights) * 1e4).round()
    return keys.unique(return_inverse=True)[1]


def patch_loss(z: Tensor, pixels: Tensor) -> Tensor:
    """Alignment and uniformity (arXiv:2005.10242) of the latents, equal patches together.

    Equal patches are drawn to their mean, and the means of different patches apart. The encoder
    sees the whole picture, so without this the empty background alone spreads over half of the
    codebook, and the token entropy is context, not content (LOG.md).
    """
    group = patch_groups(pixels, int(z.shape[1] ** 0.5))
    flat = z.flatten(0, 1)
    size = torch.bincount(group).unsqueeze(1)
    mean = flat.new_zeros(len(size), flat.shape[1]).index_add_(0, group, flat) / size
    align = (flat - mean[group]).square().sum(-1).mean()
    distances = torch.pdist(F.normalize(mean, dim=-1)).square()
    return align + 0.1 * distances.mul(-2).exp().mean().log()


@torch.no_grad()
def drop_spare_codes(codec: JanusVQVAE, pixels: Tensor) -> int:
    """Keep, for each distinct patch, the code it takes most often; send the others out of the way.

    Returns the number of codes kept.
    """
    z, _, ids = quantise(codec, codec.quant_conv(codec.encoder(pixels)))
    group = patch_groups(pixels, int(z.shape[1] ** 0.5))
    votes = z.new_zeros(int(group.max()) + 1, codec.quantize.num_embeddings)
    votes.index_put_((group, ids.flatten()), z.new_ones(ids.numel()), accumulate=True)
    kept = torch.zeros(codec.quantize.num_embeddings, dtype=torch.bool, device=z.device)
    kept[votes.argmax(-1)] = True
    codec.quantize.embedding.weight[~kept] = -F.normalize(z.flatten(0, 1).mean(0), dim=-1)
    return int(kept.sum())


@torch.no_grad()
def reseed_dead_codes(
    codec: JanusVQVAE, pixels: Tensor, used: Tensor, rng: np.random.Generator
) -> None:
    """Move codes that were not used lately onto the latents worst served by the codebook.

    `used` [codes] counts uses.
    """
    dead = (used == 0).nonzero().flatten()
    if not len(dead):
        return
    z, _, _ = quantise(codec, codec.quant_conv(codec.encoder(pixels)))
    flat = z.flatten(0, 1)
    dead = dead[: len(flat)]
    codes = F.normalize(codec.quantize.embedding.weight, dim=-1)
    far = 1 - (flat @ codes.T).max(-1).values
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    chosen = torch.multinomial(far.clamp_min(1e-9).cpu(), len(dead), generator=generator)
    codec.quantize.embedding.weight[dead] = flat[chosen.to(flat.device)]


#: Steps between re-seedings of dead codes, in the first half of the training.
RESEED_EVERY = 50


class CodecTraining(torch.nn.Module):
    """One step at a time: dead codes are re-seeded in the first half, spare ones dropped at 60 %,
    and the rest of the steps fit what is left."""

    used: Tensor
    """Uses of each code since the last re-seeding; a buffer, so that a checkpoint holds it."""

    def __init__(self, codec: JanusVQVAE, steps: int, batch_size: int, seed: int):
        super().__init__()
        self.codec, self.steps, self.batch_size, self.seed = codec, steps, batch_size, seed
        device = codec.quantize.embedding.weight.device
        self.register_buffer("used", torch.zeros(codec.quantize.num_embeddings, device=device))

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the `loss` of one step, whose pictures depend on the seed and the step alone."""
        rng = np.random.default_rng([self.seed, step])
        device = self.used.device
        pixels = random_grids(rng, self.batch_size).to(device)
        if step and step % RESEED_EVERY == 0 and step <= 0.5 * self.steps:
            reseed_dead_codes(self.codec, pixels, self.used, rng)
            self.used.zero_()
        if step == int(0.6 * self.steps):
            drop_spare_codes(self.codec, random_grids(rng, 1024).to(device))
        loss, ids = codec_loss(self.codec, pixels)
        self.used += torch.bincount(ids.flatten(), minlength=len(self.used))
        return {"loss": loss}
