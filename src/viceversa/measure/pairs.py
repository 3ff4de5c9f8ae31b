"""The dual reward of given pairs of text and picture, whoever wrote or drew them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from viceversa.inference.logprobs import evaluating
from viceversa.models.base import Adapter
from viceversa.rl.rewards import read_back
from viceversa.rl.rollout import input_image_ids, input_prompts
from viceversa.types import Direction, Example, opposite


def pair_rewards(
    adapter: Adapter,
    direction: Direction,
    texts: Sequence[str],
    pixels: Tensor,
    instruction: str = "",
    image_ids: Sequence[Tensor] | None = None,
    batch_rows: int = 256,
) -> Tensor:
    """Compute the dual reward of N pairs of text and picture, [N] nats per token.

    `t2i`: each picture was drawn for its text; how likely the text is given the picture. `i2t`:
    each text was written for its picture; how likely the picture is given the text. `pixels`
    [N, 3, H, W] uint8, `image_ids` their image tokens where they are known. A picture that comes
    several times is encoded once.
    """
    drawn = direction == "t2i"  # then pictures are read, and no text is asked about them
    with evaluating(adapter.model):
        if image_ids is None and (adapter.reads_image_ids or not drawn):
            different, which = pixels.unique(dim=0, return_inverse=True)
            image_ids = list(adapter.image_ids(different.to(adapter.device))[which])
        rows = zip(texts, pixels, image_ids or [None] * len(texts), strict=True)
        outputs = [
            Example(i, opposite(direction), None if drawn else t, p, None, ids)
            for i, (t, p, ids) in enumerate(rows)
        ]
        prompts = input_prompts(adapter, outputs, instruction)
        if drawn:
            completions = adapter.text_completion(texts)
        else:
            completions = adapter.image_completion(input_image_ids(adapter, outputs))
        return read_back(adapter, prompts, completions, batch_rows).float().cpu()
