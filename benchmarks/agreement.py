"""Whether greedy tokens of two ways to decode are the same, or differ by rounding alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from viceversa.inference.logprobs import completion_hidden, guided_logits
from viceversa.models.janus import JanusAdapter
from viceversa.types import OUTPUT_MODALITY, Completion, PromptBatch

#: How far apart two equal logits may come out, in roundings of the largest logit. One pass of
#: `medium` was measured to be up to 8 roundings from exact in float32, guided or not, and up to 1.4
#: in bfloat16. A gap holds four such errors: of two logits, each computed twice.
ROUNDINGS = {torch.float32: 32, torch.bfloat16: 6}


@dataclass(frozen=True)
class Difference:
    """The first token at which two rows of one prompt part, and how near to a tie it was."""

    row: int
    place: int
    gap: float
    """The best logit less the lower one of the two tokens chosen."""
    bound: float
    """What rounding may make of a tie."""

    @property
    def tie(self) -> bool:
        return self.gap <= self.bound

    def __str__(self) -> str:
        verdict = "a tie" if self.tie else "NOT explained by rounding"
        return (
            f"row {self.row}, token {self.place}: logits {self.gap:.1e} apart, "
            f"of which rounding explains {self.bound:.1e}: {verdict}"
        )


@torch.no_grad()
def differences(
    adapter: JanusAdapter, prompts: PromptBatch, ours: Tensor, theirs: Tensor, guidance: float
) -> list[Difference]:
    """The first difference of each row [B, T], B a multiple of the prompts; none of equal rows.

    Tokens after the first difference follow from it. The logits of both tokens are computed anew,
    in one pass over the row without a cache, so they favour neither side.
    """
    group, found = len(ours) // len(prompts), []
    for row in range(len(ours)):
        apart = (ours[row] != theirs[row]).nonzero().flatten()
        if not len(apart):
            continue
        place = int(apart[0])
        written = ours[row : row + 1, : place + 1]
        one = prompts.select(torch.tensor([row // group], device=ours.device))
        logits = predicted(adapter, one, written, guidance)
        chosen = logits[torch.stack([ours[row, place], theirs[row, place]])]
        gap = float(logits.max() - chosen.min())
        found.append(Difference(row, place, gap, rounding(logits, adapter.model.dtype)))
    return found


def predicted(
    adapter: JanusAdapter, prompt: PromptBatch, written: Tensor, guidance: float
) -> Tensor:
    """[V] logits of the last token of `written` [1, T], guided where pictures are."""
    modality = OUTPUT_MODALITY[prompt.direction]
    rows = Completion(written, torch.ones_like(written, dtype=torch.bool))

    def of(given: PromptBatch) -> Tensor:
        return adapter.logits(completion_hidden(adapter, given, rows)[0, -1], modality).float()

    if modality == "text" or guidance == 1:
        return of(prompt)
    return guided_logits(of(prompt), of(adapter.blank_prompts(prompt)), guidance)


def rounding(logits: Tensor, dtype: torch.dtype) -> float:
    """How far apart rounding may put two equal logits of a model in `dtype`."""
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps * float(logits.abs().max())
