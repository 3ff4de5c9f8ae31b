"""Questions about pictures: answers to them, and how likely a given answer is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from viceversa.config import ConfigError, DataConfig, SamplingConfig, build

if TYPE_CHECKING:
    from torch import Tensor

    from viceversa.inference.memory import RowBudget
    from viceversa.models.base import Adapter
    from viceversa.types import Example

#: How a picture becomes square, as in `DataConfig`.
Crop = Literal["center", "pad"]

#: Tokens of an answer where a task does not say how many it may have.
ANSWER_TOKENS = 1024


@dataclass(frozen=True)
class Asked:
    place: str
    """Names the question in an error."""
    key: int
    """The question's random numbers follow from it, and from the seed."""
    text: str
    picture: Any
    """A PIL picture or the path of a file."""


@dataclass(frozen=True)
class Answering:
    """How answers are written: the likeliest tokens, unless temperature is above 0."""

    tokens: int = ANSWER_TOKENS
    """An answer that has not stopped by then is cut; the model's context may cut it before."""
    until: tuple[str, ...] = ()
    """An answer ends before the first of these."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def answering(kwargs: Mapping[str, Any]) -> Answering:
    """Read the generation settings of a task, named as transformers names them.

    Samples where `temperature` is above 0 or `do_sample` is true, and is greedy where `do_sample`
    is false. Raises ConfigError for a value that cannot be, and for what would change the answers
    and is not supported: beams and penalties.
    """
    given = {key: value for key, value in kwargs.items() if value is not None}
    for key in ("num_beams", "num_return_sequences", "repetition_penalty"):
        if given.get(key, 1) != 1:
            raise ConfigError(
                f"the task's generation_kwargs ask for {key} {given[key]!r}; this model answers "
                f"without: set --gen_kwargs {key}=1"
            )
    until = given.get("until", ())
    stops = (until,) if isinstance(until, str) else tuple(until)
    samples = given.get("do_sample", given.get("temperature", 0) > 0)
    top_p, temperature = given.get("top_p", 1.0), given.get("temperature", 1.0)
    greedy = not (samples and temperature and top_p)  # a top_p of 0 leaves the likeliest token
    tree = {"max_caption_tokens": given.get("max_new_tokens", ANSWER_TOKENS)}
    if not greedy:
        tree |= {"temperature": temperature, "top_p": top_p, "top_k": given.get("top_k", 0)}
    checked = build({"sampling": tree}).sampling
    return Answering(
        checked.max_caption_tokens,
        tuple(stop for stop in stops if stop),
        0.0 if greedy else checked.temperature,
        checked.top_k,
        checked.top_p,
    )


def one_question(messages: Sequence[Mapping[str, Any]], place: str) -> tuple[str, Any]:
    """Return text and picture of a chat of one user turn, a system turn's text first.

    Texts are joined by line ends, wherever the picture stands among them. Raises ConfigError,
    naming `place`, for other than one picture, for video and audio, and for earlier answers.
    """
    texts: list[str] = []
    found: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            raise ConfigError(f"{place} gives earlier answers; this model reads one question")
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image":
                found.append(part["url"])
            else:
                raise ConfigError(f"{place} holds {part['type']}; this model reads pictures alone")
    if len(found) != 1:
        raise ConfigError(
            f"{place} has {len(found)} pictures; this model reads one picture with each question: "
            "choose a task that has one"
        )
    return "\n".join(texts), found[0]


def row_budget() -> RowBudget:
    """Return how many rows are answered at once: all, until memory does not suffice."""
    from viceversa.inference.memory import RowBudget

    return RowBudget("the rows answered at once", sys.maxsize)


def answers(
    adapter: Adapter,
    asked: Sequence[Asked],
    how: Answering,
    seed: int = 0,
    crop: Crop = "center",
    rows_at_once: RowBudget | None = None,
) -> list[str]:
    """Answer questions, all at once, without special tokens or spaces around.

    Where memory does not suffice for all, `rows_at_once` keeps for the next call how many fit.
    Raises ConfigError, naming its place, for a picture that cannot be used and for a question that
    leaves no room for an answer in the model's context.
    """
    budget = rows_at_once or row_budget()
    examples = _examples(adapter, asked, crop)
    limits = [min(how.tokens, _room(adapter, a)) for a in asked]
    found = [""] * len(asked)
    for limit in sorted(set(limits)):
        sampling = SamplingConfig(
            group_size=1,
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
            max_caption_tokens=limit,
        )
        rows = [i for i, own in enumerate(limits) if own == limit]
        texts = _written(adapter, [examples[i] for i in rows], sampling, seed, budget)
        for i, text in zip(rows, texts, strict=True):
            found[i] = _cut(text, how.until)
    return found


def loglikelihoods(
    adapter: Adapter,
    asked: Sequence[Asked],
    continuations: Sequence[str],
    crop: Crop = "center",
) -> list[tuple[float, bool]]:
    """Sum the log-probs of each continuation's tokens in nats, and tell whether all are greedy.

    The model may go on after a continuation: its stop token does not count. Space around a
    continuation is the template's own; an empty one has 0 nats. Raises ConfigError as `answers`.
    """
    import torch

    from viceversa.inference.logprobs import evaluating, likeliest_logprobs
    from viceversa.rl.rollout import input_prompts

    found = [(0.0, True)] * len(asked)
    rows = [i for i, text in enumerate(continuations) if text.strip()]
    if not rows:
        return found
    some = [asked[i] for i in rows]
    with evaluating(adapter.model):
        prompts = input_prompts(adapter, _examples(adapter, some, crop), "")
        completions = adapter.text_completion([continuations[i] for i in rows], stops=False)
        for a, length in zip(some, completions.completion_mask.sum(-1).tolist(), strict=True):
            _check_room(a, length, _room(adapter, a))
        nats, greedy = likeliest_logprobs(adapter, prompts, completions)
    sums = torch.where(completions.completion_mask, nats, 0).double().sum(-1).tolist()
    for i, total, whole in zip(rows, sums, greedy.all(-1).tolist(), strict=True):
        found[i] = (total, whole)
    return found


def _examples(adapter: Adapter, asked: Sequence[Asked], crop: str) -> list[Example]:
    from viceversa.types import Example

    data = build({"data": {"crop": crop}}).data
    return [
        Example(a.key, "i2t", text=a.text, pixels=_pixels(a, adapter.image_size, data))
        for a in asked
    ]


def _pixels(asked: Asked, size: int, data: DataConfig) -> Tensor:
    from viceversa.data.given import pictures

    try:
        return pictures([asked.picture], size, data)[0]
    except ConfigError as error:
        raise ConfigError(f"{asked.place}: {error}") from error


def _room(adapter: Adapter, asked: Asked) -> int:
    """Tokens that the model's context has for an answer. Raises ConfigError where it has none."""
    from viceversa.models.text import plain_text

    config = adapter.model.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or sys.maxsize
    text = plain_text(asked.text or adapter.default_instruction, adapter.special_tokens)
    room = context - len(adapter.text_ids(adapter.prompt_text("i2t", text)))
    _check_room(asked, 1, room)
    return room


def _check_room(asked: Asked, tokens: int, room: int) -> None:
    if tokens > room:
        raise ConfigError(
            f"{asked.place}: the picture and a text of {len(asked.text)} characters leave room for "
            f"{max(room, 0)} tokens in the model's context, and the answer takes {tokens} or "
            "more: choose a task with shorter questions"
        )


def _written(
    adapter: Adapter,
    examples: Sequence[Example],
    sampling: SamplingConfig,
    seed: int,
    budget: RowBudget,
) -> Sequence[str]:
    """Write an answer an example, fewer at once where memory does not suffice."""
    from viceversa.rl.rollout import rollout

    return budget(
        lambda n: rollout(adapter, examples, replace(sampling, batch_rows=n), seed).texts,
        len(examples),
    )


def _cut(text: str, until: Sequence[str]) -> str:
    ends = [place for stop in until if (place := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))].rstrip()
