"""Answers to questions about pictures, and likelihoods of given ones, by other ways to the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

import viceversa as vv
from oracles import oracle_of
from viceversa.benchmarks.asking import (
    Answering,
    Asked,
    answering,
    answers,
    loglikelihoods,
    one_question,
)
from viceversa.config import ModelConfig
from viceversa.models.base import Adapter
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

TEXTS = (
    "is there a red circle?",
    "how many rings are there?",
    "what colour is the big square at the left?",
    "is it so?",
)
PICTURES = [Image.fromarray(render(s)) for s in draw_specs(0, 1, "test")[: len(TEXTS)]]


def asked_of() -> list[Asked]:
    return [
        Asked(f"question {i}", i, text, picture)
        for i, (text, picture) in enumerate(zip(TEXTS, PICTURES, strict=True))
    ]


def test_answers_are_those_of_each_question_by_itself(adapter: Adapter) -> None:
    model = vv.Model(adapter, ModelConfig())
    alone = [
        model.caption([picture], instruction=text, max_tokens=12, temperature=1.0, ids=[i])[0]
        for i, (text, picture) in enumerate(zip(TEXTS, PICTURES, strict=True))
    ]
    assert answers(adapter, asked_of(), Answering(tokens=12, temperature=1.0)) == alone
    assert len(set(alone)) > 1


def test_answers_end_before_a_stop_and_within_the_limit(builtin: Adapter) -> None:
    describe = [replace(a, text="") for a in asked_of()]  # the model's own instruction
    whole = answers(builtin, describe, Answering())
    assert all(len(text.split()) > 3 for text in whole)
    second, fourth = (whole[0].split()[n] for n in (1, 3))
    for until in ((f" {second}", f" {fourth}"), (f" {fourth}", f" {second}")):
        cut = answers(builtin, describe[:1], Answering(until=until))
        assert cut == [whole[0].split(f" {second}")[0]]
    short = answers(builtin, describe, Answering(tokens=2))
    assert all(w.startswith(s) and len(s) < len(w) for w, s in zip(whole, short, strict=True))


def test_sampled_answers_depend_on_seed_and_key_alone(builtin: Adapter) -> None:
    describe = [replace(a, text="", picture=PICTURES[0]) for a in asked_of()]
    how = Answering(temperature=2.0)
    first = answers(builtin, describe, how, seed=3)
    assert len(set(first)) > 1  # one picture, one text, other keys
    assert answers(builtin, describe[::-1], how, seed=3) == first[::-1]
    assert answers(builtin, describe[1:2], how, seed=3) == first[1:2]
    assert answers(builtin, describe, how, seed=4) != first
    narrow = replace(how, top_k=1)
    assert answers(builtin, describe, narrow) == answers(builtin, describe, Answering())


def test_loglikelihoods_are_the_classes_own_loss(adapter: Adapter) -> None:
    told = [" yes", "three", " red and a blue circle", "no "]
    found = loglikelihoods(adapter, asked_of(), told)
    for asked, text, (nats, _) in zip(asked_of(), told, found, strict=True):
        prompts = _prompts(adapter, asked)
        ids = adapter.text_ids(adapter.answer_prefix + text.strip())
        loss = oracle_of(adapter).labels_loss(prompts, torch.tensor([ids])).item()
        assert nats == pytest.approx(-loss * len(ids), rel=1e-4, abs=1e-4)


def _prompts(adapter: Adapter, asked: Asked) -> Any:
    pixels = torch.from_numpy(render(draw_specs(0, 1, "test")[asked.key])).permute(2, 0, 1)[None]
    ids = adapter.image_ids(pixels) if adapter.reads_image_ids else None
    return adapter.prompts("i2t", [asked.text], None if ids is not None else pixels, ids)


def test_a_continuation_is_greedy_where_it_is_the_answer(builtin: Adapter) -> None:
    said = answers(builtin, asked_of(), Answering())
    found = loglikelihoods(builtin, asked_of(), said)
    assert all(greedy for _, greedy in found)
    others = ["yes" if text == "no" else "no" for text in said]
    for (best, _), (other, greedy) in zip(
        found, loglikelihoods(builtin, asked_of(), others), strict=True
    ):
        assert other < best <= 0 and not greedy


def test_an_empty_continuation_takes_nothing(builtin: Adapter) -> None:
    told = ["", "yes", " ", "no"]
    found = loglikelihoods(builtin, asked_of(), told)
    assert found[0] == found[2] == (0.0, True)
    alone = [loglikelihoods(builtin, asked_of()[i : i + 1], told[i : i + 1])[0] for i in (1, 3)]
    assert [found[1][0], found[3][0]] == pytest.approx([nats for nats, _ in alone], abs=1e-4)
    assert loglikelihoods(builtin, asked_of()[:1], [""]) == [(0.0, True)]


def test_what_a_model_cannot_read_is_named(builtin: Adapter) -> None:
    first, *_ = asked_of()
    thin = replace(first, picture=Image.new("RGB", (4, 64)))
    with pytest.raises(vv.ConfigError, match=r"question 0: .*too thin"):
        answers(builtin, [thin], Answering())
    long = replace(first, text="is there a ring? " * 80)
    with pytest.raises(vv.ConfigError, match=r"question 0: .*leave room for 0 tokens"):
        answers(builtin, [long], Answering())
    with pytest.raises(vv.ConfigError, match=r"question 0: .*and the answer takes"):
        loglikelihoods(builtin, [first], ["a ring " * 120])
    # a limit beyond the context is no error: the answer ends with the context at the latest
    nearly = replace(first, text="is there a ring? " * 20)
    assert answers(builtin, [first, nearly], Answering(tokens=10**6))[0] in ("yes", "no")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, Answering()),
        ({"until": "\n", "max_new_tokens": 16}, Answering(16, ("\n",))),
        ({"until": ["", "a", "b"], "do_sample": False}, Answering(until=("a", "b"))),
        ({"until": None, "max_new_tokens": None, "temperature": None}, Answering()),
        # as the tasks of lmms-eval have it: greedy, with settings that then mean nothing
        ({"temperature": 0, "top_p": 0, "num_beams": 1, "do_sample": False}, Answering()),
        ({"temperature": 0.7, "do_sample": False}, Answering()),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5}, Answering(1024, (), 0.7, 5, 0.9)),
        ({"do_sample": True}, Answering(temperature=1.0)),
        ({"do_sample": True, "top_p": 0}, Answering()),
    ],
)
def test_settings_of_tasks(given: dict[str, Any], wanted: Answering) -> None:
    assert answering(given) == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_beams": 4}, "num_beams 4; this model answers without: set --gen_kwargs num_beams=1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty 1.2"),
        ({"max_new_tokens": 0}, "max_caption_tokens is 0; it must be at least 1"),
        ({"temperature": -1.0, "do_sample": True}, "temperature is -1.0; it must be at least 0"),
        ({"temperature": 1.0, "top_p": 2}, "top_p is 2; it must be at most 1"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(vv.ConfigError, match=said):
        answering(given)


def turn(role: str, *parts: tuple[str, Any]) -> dict[str, Any]:
    content = [{"type": kind, "text" if kind == "text" else "url": value} for kind, value in parts]
    return {"role": role, "content": content}


def test_a_chat_is_one_question() -> None:
    picture = PICTURES[0]
    chat = [turn("user", ("text", "Look."), ("image", picture), ("text", "Is it red?"))]
    assert one_question(chat, "here") == ("Look.\nIs it red?", picture)
    system = [{"role": "system", "content": "Be short."}, *chat]
    assert one_question(system, "here")[0] == "Be short.\nLook.\nIs it red?"


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        ([turn("user", *[("image", 0)] * 2)], "here has 2 pictures; this model reads one picture"),
        ([turn("user", ("text", "Why?"))], "here has 0 pictures"),
        ([turn("user", ("video", "a.mp4"))], "here holds video"),
        ([turn("user", ("image", 0)), turn("assistant", ("text", "Yes"))], "gives earlier answers"),
    ],
)
def test_a_chat_that_is_no_question(chat: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(vv.ConfigError, match=said):
        one_question(chat, "here")
