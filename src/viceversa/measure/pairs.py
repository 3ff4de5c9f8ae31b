"""The dual reward of given pairs of text and picture, whoever wrote or drew them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from viceversa.inference.logprobs import evaluating
from viceversa.inference.memory import RowBudget
from viceversa.models.base import Adapter
from viceversa.rl.rewards import read_back
from viceversa.rl.rollout import input_image_ids, input_prompts
from viceversa.types import DIRECTIONS, Direction, Example, opposite

#: Rows that are read back at once, or fewer where memory does not suffice.
AT_ONCE = 256


def both_directions(
    adapter: Adapter, texts: Sequence[str], pixels: Tensor, instruction: str = ""
) -> tuple[Tensor, Tensor]:
    """Score N pairs, [N] nats a token each: texts given their pictures, pictures given their texts.

    `pixels` [N, 3, H, W] uint8. A picture is encoded once for both directions, however often it
    comes. As many rows at once as memory allows.
    """
    with evaluating(adapter.model):
        image_ids = encoded(adapter, pixels)
    budget = RowBudget("reward.batch_rows", AT_ONCE)
    read, drawn = (
        budget(partial(pair_rewards, adapter, d, texts, pixels, instruction, image_ids), len(texts))
        for d in DIRECTIONS
    )
    return read, drawn


def encoded(adapter: Adapter, pixels: Tensor) -> list[Tensor]:
    """Return the image tokens of pictures [N, 3, H, W] uint8, each different one encoded once."""
    different, which = pixels.unique(dim=0, return_inverse=True)
    return list(adapter.image_ids(different.to(adapter.device))[which])


def pair_rewards(
    adapter: Adapter,
    direction: Direction,
    texts: Sequence[str],
    pixels: Tensor,
    instruction: str = "",
    image_ids: Sequence[Tensor] | None = None,
    batch_rows: int = AT_ONCE,
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
            image_ids = encoded(adapter, pixels)
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
