"""What flows through the package, in the order it flows. Frozen; shapes stand under each field.

Axes: P prompts (inputs), G group size, B rows (B = P * G), L prompt tokens, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Direction = Literal["t2i", "i2t"]
Modality = Literal["text", "image"]
DIRECTIONS: tuple[Direction, ...] = ("t2i", "i2t")

#: The modality that each direction writes.
OUTPUT_MODALITY: dict[Direction, Modality] = {"t2i": "image", "i2t": "text"}


def opposite(direction: Direction) -> Direction:
    return "i2t" if direction == "t2i" else "t2i"


@dataclass(frozen=True)
class Example:
    """One unpaired input: a prompt (`t2i`) or a picture (`i2t`)."""

    example_id: int
    """Stable across runs; random draws are keyed by it."""
    direction: Direction
    text: str | None = None
    """The prompt; for `i2t` what is asked about the picture, or None: a caption."""
    pixels: Tensor | None = None
    """[3, H, W] uint8, at the model's picture size; None for `t2i`."""
    reference: Any = None
    """A label, for rewards and monitors that ask for one. The dual reward never reads it."""
    image_ids: Tensor | None = None
    """[N] int64: the image tokens of `pixels`, where they are known."""


class Unusable(Exception):  # noqa: N818
    """An input that has to be left out: `kind` is a short label to count by."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Note:
    """One input that was left out, or changed before use."""

    name: str
    """File, row or member of a shard."""
    kind: str
    """A short label to count by."""
    skipped: bool
    """False: changed, and used."""
    detail: str = ""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts, templated and tokenised: the text and pictures that the model reads; left-padded."""

    direction: Direction
    prompt_ids: Tensor
    """[B, L] int64."""
    attention_mask: Tensor
    """[B, L] bool, False on the padding at the left."""
    pixels: Tensor | None = None
    """[B, 3, H, W] uint8 pictures to read (`i2t`); None for `t2i`."""

    def __len__(self) -> int:
        return self.prompt_ids.shape[0]

    def select(self, rows: Tensor | slice) -> PromptBatch:
        pixels = None if self.pixels is None else self.pixels[rows]
        return PromptBatch(self.direction, self.prompt_ids[rows], self.attention_mask[rows], pixels)

    def trimmed(self) -> PromptBatch:
        """Drop the columns that are padding in every row."""
        least = int((~self.attention_mask).sum(-1).amin())
        ids, mask = self.prompt_ids[:, least:], self.attention_mask[:, least:]
        return PromptBatch(self.direction, ids, mask, self.pixels)

    def repeat_interleave(self, n: int) -> PromptBatch:
        rows = torch.arange(len(self), device=self.prompt_ids.device)
        return self.select(rows.repeat_interleave(n))


@dataclass(frozen=True)
class Completion:
    """Outputs written after a PromptBatch: image ids (`t2i`) or text ids (`i2t`)."""

    completion_ids: Tensor
    """[B, T] int64, right-padded with 0."""
    completion_mask: Tensor
    """[B, T] bool, True on tokens that count, the stop token included."""

    def __len__(self) -> int:
        return self.completion_ids.shape[0]

    def select(self, rows: Tensor | slice) -> Completion:
        return Completion(self.completion_ids[rows], self.completion_mask[rows])

    def trimmed(self) -> Completion:
        """Drop the columns that are padding in every row."""
        most = int(self.completion_mask.sum(-1).amax())
        return Completion(self.completion_ids[:, :most], self.completion_mask[:, :most])


@dataclass(frozen=True)
class Rollout:
    """G sampled outputs for each of P inputs of one direction; row p * G + g: sample g of p."""

    direction: Direction
    examples: tuple[Example, ...]
    """The P inputs."""
    group_size: int
    prompts: PromptBatch
    """P rows: a group shares its prompt."""
    completions: Completion
    """B rows."""
    drawn_logprobs: Tensor
    """[B, T] nats under the distribution drawn from: guidance, temperature and filters included."""
    texts: tuple[str, ...] = ()
    """B decoded captions (`i2t`), special tokens stripped; empty for `t2i`."""
    pixels: Tensor | None = None
    """[B, 3, H, W] uint8 drawn pictures (`t2i`); None for `i2t`, or where ids cannot be decoded."""
    truncated: Tensor | None = None
    """[B] bool, True where a caption never stopped; None for `t2i`."""
    step: int = 0
    """The optimizer step that it was sampled for."""

    @property
    def row_texts(self) -> list[str]:
        """Return each row's text: the prompt that it draws (`t2i`), or the caption that it is."""
        if self.direction == "i2t":
            return list(self.texts)
        return [e.text or "" for e in self.examples for _ in range(self.group_size)]


Reward = Callable[[Rollout], Tensor]
"""Rates every output: [P, G] float32, higher is better."""
Monitor = Callable[[Rollout], "Tensor | None"]
"""Tells which outputs are right, [P, G] bool; None where it cannot tell."""


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with its rewards."""

    rollout: Rollout
    rewards: Tensor
    """[P, G] float32: their weighted sum; nats per token for the dual reward."""
    right: Tensor | None = None
    """[P, G] bool by the monitor, for display alone."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of one direction that take part in a loss."""

    direction: Direction
    prompts: PromptBatch
    """R rows, or R / n of them: then each is shared by n consecutive rows."""
    completions: Completion
    """R rows."""
    advantages: Tensor
    """[R] float32. For pairs, rows 2k and 2k + 1 are chosen and rejected, and this is unused."""
    drawn_logprobs: Tensor
    """[R, T] nats under the distribution drawn from; a monitor of what the loss does not see."""
    sampling_logprobs: Tensor | None = None
    """[R, T] nats, frozen at the policy that sampled; needed by more than one update a rollout."""
    ref_logprobs: Tensor | None = None
    """[R, T] nats under the reference model; needed by a KL term or DPO."""
    filler: bool = False
    """True where nothing teaches and the rows only keep every head in the graph: weight zero."""
    task: str = ""
    """Name under which they are counted and reported; empty: their direction."""

    @property
    def name(self) -> str:
        return self.task or self.direction

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def sharing(self) -> int:
        """Consecutive rows of one prompt."""
        return len(self.completions) // len(self.prompts)


class Ranks:
    """The processes of a run, as the step sees them; this one stands for a single process."""

    count = 1

    def gather(self, mine: list[Any]) -> list[Any]:
        """Return the lists of all processes as one."""
        return mine

    def sum(self, mine: list[float]) -> list[float]:
        """Return the sums over all processes."""
        return mine


ALONE = Ranks()
