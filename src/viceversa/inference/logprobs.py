"""The only place where logits become token log-probs: shift, mask, temperature, guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from viceversa.inference.distinct import distinct_rows, drops, prompts_followed
from viceversa.inference.reading import Written, read
from viceversa.models.base import Adapter, eval_mode
from viceversa.models.products import large_products
from viceversa.types import OUTPUT_MODALITY, Completion, Modality, PromptBatch

#: Logits that exist at once: 0.13 GB of float32, and two or three times that while they are used.
CHUNK_LOGITS = 2**25


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute log softmax(logits / temperature) at `ids`, in float32 or, where logits are, float64.

    logits [N, V], ids [N] -> [N] nats.
    """
    exact = _exact(logits)
    scaled = exact if temperature == 1 else exact / temperature
    return -F.cross_entropy(scaled, ids, reduction="none")


def mass_logprobs(mass: Tensor, ids: Tensor) -> Tensor:
    """Return the log of known probabilities at `ids`: [N, V], [N] -> [N] nats."""
    return mass.gather(-1, ids.unsqueeze(-1)).squeeze(-1).log()


def _exact(logits: Tensor) -> Tensor:
    """Return them in float32, or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def guided_logits(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Guide as Janus does, classifier-free: u + w (c - u); w = 1 is the conditional model."""
    return unconditional + guidance * (conditional - unconditional)


def completion_hidden(
    adapter: Adapter, prompts: PromptBatch, completions: Completion, of: Tensor | None = None
) -> Tensor:
    """Hidden states that predict each completion token, [B, T, D].

    `of` [B] is the prompt that each completion follows, ascending. None: the prompts are as many as
    the completions, or a whole part of them, each shared by as many consecutive completions. A
    prompt is read once for all of its completions (`reading`).

    The state at position i predicts token i + 1, so the first completion token is predicted by the
    last prompt position, and the last completion token is never read. A row end that the model
    forces stands between a row's last token and the next row's first, which it predicts.
    """
    modality = OUTPUT_MODALITY[prompts.direction]
    written = adapter.embed_tokens(completions.completion_ids[:, :-1], modality)
    read_mask = completions.completion_mask[:, 1:]  # a token is read where another one follows
    predicts: Tensor | slice = slice(None)  # of the states from the last prompt token on
    if modality == "image" and adapter.row_tokens:
        written = with_row_ends(adapter, written)
        read_mask = read_mask.new_ones(written.shape[:2])
        tokens = torch.arange(adapter.image_tokens, device=written.device)
        predicts = tokens + tokens // adapter.row_tokens
    follows = prompts_followed(prompts, completions) if of is None else of
    rows = Written(written, read_mask, follows, even=of is None)
    embeds = adapter.embed_prompts(prompts)
    return read(adapter, embeds, prompts.attention_mask, rows)[:, predicts]


def with_row_ends(adapter: Adapter, written: Tensor) -> Tensor:
    """Put the forced token after every full row, [B, N, D] -> [B, N + N // row_tokens, D]."""
    end = adapter.embed_row_end().to(written.dtype).expand(len(written), 1, -1)
    pieces = []
    for row in written.split(adapter.row_tokens, dim=1):
        pieces += [row, end] if row.shape[1] == adapter.row_tokens else [row]
    return torch.cat(pieces, dim=1)


def completion_logprobs(
    adapter: Adapter,
    prompts: PromptBatch,
    completions: Completion,
    temperature: float = 1.0,
    guidance: float = 1.0,
    chunk_logits: int = CHUNK_LOGITS,
    of: Tensor | None = None,
) -> Tensor:
    """Score every completion token given its prompt: log-probs [B, T], nats, 0 where masked out.

    A completion that a prompt has several times is computed once, and gradients of its log-probs
    add up; not where the model drops at random. `of` is as in `completion_hidden`.

    The support is the completion's modality: image ids under the image head, text ids under the
    text head. `guidance` other than 1 scores the guided distribution (`t2i` only). Heads run only
    on tokens that count, `chunk_logits` numbers at a time, recomputed in the backward pass when
    there is more than one chunk: memory does not grow with the vocabulary.
    """
    which = None
    if len(completions) != len(prompts) and not drops(adapter.model):
        follows = prompts_followed(prompts, completions) if of is None else of
        one_each, equal = distinct_rows(completions, follows)
        if len(one_each) < len(completions):
            completions, of, which = completions.select(one_each), follows[one_each], equal
    with large_products(adapter.text_model):
        found = _logprobs(adapter, prompts, completions, temperature, guidance, chunk_logits, of)
    return found if which is None else found[which]


def _logprobs(
    adapter: Adapter,
    prompts: PromptBatch,
    completions: Completion,
    temperature: float,
    guidance: float,
    chunk_logits: int,
    of: Tensor | None,
) -> Tensor:
    """Compute `completion_logprobs`, every completion by itself."""
    mask = completions.completion_mask
    whole = bool(mask.all())

    def counted(x: Tensor) -> Tensor:
        return x.flatten(0, 1) if whole else x[mask]

    hidden = [counted(completion_hidden(adapter, prompts, completions, of))]
    if guidance != 1.0:
        _check_guidance(prompts)
        blank = adapter.blank_prompts(prompts)
        hidden.append(counted(completion_hidden(adapter, blank, completions, of)))
    ids = counted(completions.completion_ids)
    modality = OUTPUT_MODALITY[prompts.direction]

    def chunk(ids: Tensor, *hidden: Tensor) -> Tensor:
        return token_logprobs(_head(adapter, hidden, modality, guidance), ids, temperature)

    pieces = []
    chunk_tokens = max(1, chunk_logits // adapter.vocabulary(modality))
    many = ids.shape[0] > chunk_tokens and torch.is_grad_enabled()
    for part in zip(*(x.split(chunk_tokens) for x in (ids, *hidden)), strict=True):
        pieces.append(checkpoint(chunk, *part, use_reentrant=False) if many else chunk(*part))
    found = torch.cat(pieces)
    # never a view: FSDP2 warns of views that leave its root, whose backward hook could be lost
    return found.new_zeros(mask.shape).masked_scatter(mask, found)


def likeliest_logprobs(
    adapter: Adapter,
    prompts: PromptBatch,
    completions: Completion,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Score every completion token given its prompt, and tell which ones greedy decoding picks.

    Both [B, T]: nats, 0 where masked out, and bool, True there. Without gradient or guidance.
    """
    mask, modality = completions.completion_mask, OUTPUT_MODALITY[prompts.direction]
    with torch.no_grad(), large_products(adapter.text_model):
        hidden = completion_hidden(adapter, prompts, completions)[mask]
        ids = completions.completion_ids[mask]
        tokens = max(1, chunk_logits // adapter.vocabulary(modality))
        found, picked = [], []
        for h, i in zip(hidden.split(tokens), ids.split(tokens), strict=True):
            logits = adapter.logits(h, modality)
            found.append(token_logprobs(logits, i))
            picked.append(logits.argmax(-1) == i)
    logprobs, greedy = torch.cat(found), torch.cat(picked)
    return (
        logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs),
        torch.ones_like(mask).masked_scatter(mask, greedy),
    )


def _head(
    adapter: Adapter, hidden: Sequence[Tensor], modality: Modality, guidance: float
) -> Tensor:
    logits = adapter.logits(hidden[0], modality)
    if len(hidden) == 1:
        return logits
    return guided_logits(_exact(logits), _exact(adapter.logits(hidden[1], modality)), guidance)


def _check_guidance(prompts: PromptBatch) -> None:
    if prompts.direction != "t2i":
        raise ValueError("guidance is for drawing (t2i); set it to 1 for captions")


def sum_logprobs(token_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens that count, [B, T] -> [B] nats."""
    return (token_logprobs * mask).sum(-1)


def mean_logprobs(token_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Average over the tokens that count, [B, T] -> [B] nats a token."""
    return sum_logprobs(token_logprobs, mask) / mask.sum(-1).clamp_min(1)


class Policy(nn.Module):
    """The model as one module, whose forward is any work that reads it.

    Distributed wrappers synchronise and gather only around the wrapped module's `forward`, so
    everything that reads the trained model runs in it: `policy(lambda: policy_logprobs(...))`.
    """

    def __init__(self, adapter: Adapter):
        super().__init__()
        self.model = adapter.model

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        self.model.activation_checkpointing_enable(**kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def policy_logprobs(
    adapter: Adapter,
    rows: Sequence[tuple[PromptBatch, Completion]],
    temperature: float = 1.0,
    guidance: float = 1.0,
) -> list[Tensor]:
    """Return one [B, T] tensor of nats for each (prompts, completions); guidance is for `t2i`."""
    return [
        completion_logprobs(adapter, p, c, temperature, guidance if p.direction == "t2i" else 1.0)
        for p, c in rows
    ]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients: sampling and scoring must not see dropout."""
    with eval_mode(model), torch.no_grad():
        yield
