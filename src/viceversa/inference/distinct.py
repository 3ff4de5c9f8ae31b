"""Which outputs of a group differ: what comes twice is computed once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from viceversa.types import Completion, PromptBatch


def prompts_followed(prompts: PromptBatch, completions: Completion) -> Tensor:
    """Return the prompt of each completion, [B] int64: each has as many consecutive ones.

    Raises ValueError where they do not share the prompts evenly.
    """
    group, rest = divmod(len(completions), len(prompts))
    if rest:
        raise ValueError(f"{len(completions)} completions do not share {len(prompts)} prompts")
    device = completions.completion_ids.device
    return torch.arange(len(prompts), device=device).repeat_interleave(group)


def distinct_rows(completions: Completion, of: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [U] whose (prompt, output) differ, and for each of the B rows its equal there.

    `of` [B] is the prompt of each completion, ascending, as it then is in `of[rows]`.
    """
    ids = completions.completion_ids.masked_fill(~completions.completion_mask, -1)
    different, which = torch.cat([of.unsqueeze(1), ids], dim=1).unique(dim=0, return_inverse=True)
    one_each = which.new_empty(len(different))
    return one_each.scatter_(0, which, torch.arange(len(ids), device=ids.device)), which


def drops(model: nn.Module) -> bool:
    """Tell whether a forward pass drops at random: then equal rows have unequal log-probs."""
    return any(
        m.training and (getattr(m, "attention_dropout", 0.0) or (isinstance(m, _DropoutNd) and m.p))
        for m in model.modules()
    )
