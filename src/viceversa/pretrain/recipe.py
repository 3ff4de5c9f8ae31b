"""The recipe of the built-in model: what the command takes, and the numbers behind it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PretrainOptions:
    """What `viceversa pretrain` takes."""

    output: str = "runs/pretrain"
    """Where checkpoints and the finished model go."""
    steps: int = 2700
    """Steps of the model."""
    codec_steps: int = 1500
    """Steps of the image tokenizer."""
    codec: str = ""
    """A model folder whose image tokenizer is taken, or `builtin`; empty: one is trained."""
    drawn_per_step: int = 16
    """Pictures to draw in a step."""
    drawn_weights: tuple[float, ...] = (1, 2, 3, 4, 2.5, 6, 3)
    """How often each kind is drawn, seven numbers."""
    read_per_step: int = 64
    """Pictures to caption or ask about in a step."""
    read_weights: tuple[float, ...] = (2, 3, 0.4, 0.3, 5, 0.5, 5)
    """How often each kind is read, seven numbers."""
    seed: int = 0
    """Seeds weights and data."""
    bf16: bool = False
    """Mixed precision."""
    device: str = "cpu"
    """`cpu` or `cuda`."""


@dataclass(frozen=True)
class PretrainConfig(PretrainOptions):
    """The recipe of the shipped model; LOG.md has the run that set each number.

    As in real unified models, the two directions learn from different data, so that each knows
    skills that the other lacks: colours and attribution are drawn often and read rarely, positions
    the other way round.
    """

    codec_batch_size: int = 64
    codec_learning_rate: float = 2e-3
    question_share: float = 0.3
    """Share of the pictures to read that come with a question, not the caption instruction."""
    blank_share: float = 0.1
    """Share of the prompts that are blanked, so that guidance has an unconditional model."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    checkpoint_every: int = 500
