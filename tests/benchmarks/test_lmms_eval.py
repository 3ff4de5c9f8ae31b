"""The model `viceversa` of lmms-eval: what the harness asks for, and the harness itself."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import tomllib
import types
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import viceversa as vv
from small_memory import few_rows_fit
from viceversa.benchmarks import pope
from viceversa.models.base import Adapter
from viceversa.rl import rollout as rollouts
from viceversa.scenes.language import questions
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

ROOT = Path(__file__).parents[2]
HERE = find_spec("lmms_eval") is not None
SPECS = draw_specs(0, 1, "test")[:4]
PICTURES = [Image.fromarray(render(spec)) for spec in SPECS]
TEXTS = [
    next(q.text for q in questions(spec, random.Random(0)) if q.kind == kind)
    for spec, kind in zip(SPECS, ("yes", "random", "yes", "random"), strict=True)
]


class Base:
    """As much of lmms_eval.api.model.lmms as is used, for where lmms-eval is not installed."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 0, 1, {}

    @property
    def rank(self) -> int:
        return self._rank

    def clean(self) -> None:
        pass


@dataclass
class Request:
    """An Instance of lmms-eval, as models see it."""

    args: tuple[Any, ...]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    name = "viceversa.benchmarks.lmms_eval"
    if not HERE:
        api = types.ModuleType("lmms_eval.api.model")
        api.lmms = Base  # type: ignore[attr-defined]
        for parent in ("lmms_eval", "lmms_eval.api"):
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, api.__name__, api)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.fixture
def model(module: Any) -> Any:
    made = module.Viceversa(batch_size="3")
    documents = [
        {"picture": p, "text": t, "answer": "yes"} for p, t in zip(PICTURES, TEXTS, strict=True)
    ]
    made.task_dict = {"asked": {"test": documents}}
    return made


def doc_to_messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    content = [
        {"type": "image", "url": document["picture"]},
        {"type": "text", "text": document["text"]},
    ]
    return [{"role": "user", "content": content}]


def doc_to_visual(document: dict[str, Any]) -> list[Image.Image]:
    return [document["picture"]]


def chats(settings: dict[str, Any], order: tuple[int, ...] = (0, 1, 2, 3)) -> list[Request]:
    return [Request((TEXTS[i], doc_to_messages, settings, i, "asked", "test")) for i in order]


@pytest.fixture
def ours(tmp_path: Path, builtin: Adapter) -> list[str]:
    """The answers of `viceversa benchmark pope` to the same questions."""
    for number, picture in enumerate(PICTURES):
        picture.save(tmp_path / f"{number}.png")
    asked = [pope.Question(i, f"{i}.png", text, "yes") for i, text in enumerate(TEXTS)]
    return pope.ask(builtin, asked, tmp_path)


def test_answers_are_those_of_our_own_pope(model: Any, ours: list[str]) -> None:
    assert set(ours) == {"yes", "no"}
    assert model.generate_until(chats({"max_new_tokens": 32, "temperature": 0})) == ours
    # in any order, of mixed settings, and as a task in Python for simple models asks
    some = chats({"max_new_tokens": 8}, (3, 1)) + chats({"until": ["\n\n"]}, (0, 2))
    assert model.generate_until(some) == [ours[i] for i in (3, 1, 0, 2)]
    simple = [
        Request((text, {"max_new_tokens": 32}, doc_to_visual, i, "asked", "test"))
        for i, text in enumerate(TEXTS)
    ]
    assert model.generate_until(simple) == ours


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
def test_what_memory_holds_is_found_once(model: Any, monkeypatch: Any) -> None:
    """Not again in every batch."""
    whole = model.generate_until(chats({}))
    refused = few_rows_fit(monkeypatch, rollouts)
    for _ in range(2):
        assert model.generate_until(chats({}, (0, 1, 2, 3))) == whole
    assert refused == [3]


def test_repetitions_are_sampled_anew_and_alike_in_every_share(model: Any) -> None:
    settings = {"temperature": 2.0, "do_sample": True, "max_new_tokens": 24}
    for document in model.task_dict["asked"]["test"]:
        document["text"] = ""
    whole = model.generate_until(chats(settings, (0, 0, 0, 1, 1, 1)))
    assert len(set(whole[:3])) > 1
    assert model.generate_until(chats(settings, (1, 1, 1))) == whole[3:]


def test_loglikelihoods_of_texts_and_of_targets(model: Any) -> None:
    def doc_to_target(document: dict[str, Any]) -> str:
        return document["answer"]

    def requests(*told: Any) -> list[Request]:
        return [
            Request((TEXTS[i], target, doc_to_visual, i, "asked", "test"))
            for target in told
            for i in range(len(TEXTS))
        ]

    said = model.generate_until(chats({}))
    found = model.loglikelihood(requests(" yes", " no"))
    yes, no = found[: len(TEXTS)], found[len(TEXTS) :]
    assert [greedy for _, greedy in yes] == [text == "yes" for text in said]
    assert [greedy for _, greedy in no] == [text == "no" for text in said]
    assert [y > n for (y, _), (n, _) in zip(yes, no, strict=True)] == [t == "yes" for t in said]
    by_target = model.loglikelihood(requests(doc_to_target))
    assert [nats for nats, _ in by_target] == pytest.approx([nats for nats, _ in yes], abs=1e-4)


def test_what_cannot_be_asked_names_task_and_document(model: Any) -> None:
    model.task_dict["asked"]["test"][2]["picture"] = None

    def two(document: dict[str, Any]) -> list[Any]:
        return [document["picture"]] * 2

    with pytest.raises(vv.ConfigError, match="task asked, document 1 has 2 pictures"):
        model.loglikelihood([Request((TEXTS[1], " yes", two, 1, "asked", "test"))])
    with pytest.raises(vv.ConfigError, match="task asked, document 2: a picture is a NoneType"):
        model.generate_until(chats({}))
    with pytest.raises(vv.ConfigError, match="several rounds"):
        model.generate_until_multi_round([])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": "auto"}, "--batch_size is 'auto'; it takes a whole number, at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"dtype": "float8"}, "model.dtype is 'float8'; it must be 'float32' or 'bfloat16'"),
        ({"crop": "left"}, "data.crop is 'left'"),
        ({"pretrained": "nowhere/at/all"}, "model.path is 'nowhere/at/all'"),
        ({"device": "cuda:0"}, "--device is 'cuda:0', and the model is on 'cpu'"),
    ],
)
def test_arguments_that_cannot_be(module: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(vv.ConfigError, match=said):
        module.Viceversa(**given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'device_map'"):
        module.Viceversa(device_map="auto")


def test_without_lmms_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    with pytest.raises(vv.ConfigError, match="pip install lmms-eval==0"):
        importlib.import_module("viceversa.benchmarks.lmms_eval")


def test_the_entry_point_is_there_and_lmms_eval_no_requirement(module: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    path = project["entry-points"]["lmms_eval.models"]["viceversa"]
    place, name = path.split(":")
    assert place == module.__name__ and callable(getattr(module, name))
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    assert not [r for group in groups for r in group if r.startswith("lmms")]


@pytest.mark.skipif(not HERE, reason="needs lmms-eval, which is not installed")
def test_the_manifest_names_a_chat_model(module: Any) -> None:
    from lmms_eval.models.registry_v2 import (  # pyright: ignore[reportMissingImports]
        ModelRegistryV2,
    )

    registry = ModelRegistryV2()
    registry.register_manifest(module.manifest())
    assert registry.resolve("viceversa").model_type == "chat"
    assert registry.get_model_class("viceversa") is module.Viceversa


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="needs lmms-eval, which is not installed")
def test_the_harness_gives_the_figures_of_our_own_pope(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "benchmarks" / "lmms_task.py")]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}

    def call(*command: str, **options: Any) -> None:
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, **options)

    call(*script, "write", "task", "--questions", "24")
    call(
        *(sys.executable, "-m", "lmms_eval", "eval", "--model", "viceversa", "--batch_size", "5"),
        *("--tasks", "scenes_pope", "--include_path", "task"),
        *("--log_samples", "--output_path", "theirs"),
    )
    asked = ["--prompts", "task/questions.jsonl", "--images", "task/pictures"]
    call(sys.executable, "-m", "viceversa", "benchmark", "pope", *asked, "--output", "ours")
    (samples,) = (tmp_path / "theirs").rglob("*_samples_scenes_pope.jsonl")
    call(*script, "compare", str(samples), "ours/builtin/answers.jsonl")  # 1 where one differs
    (results,) = (tmp_path / "theirs").rglob("*_results.json")
    figures = json.loads(results.read_text())["results"]["scenes_pope"]
    scores = json.loads((tmp_path / "ours/builtin/scores.json").read_text())
    for name in ("accuracy", "precision", "recall", "f1", "yes_rate"):
        assert figures[f"{name},none"] == pytest.approx(scores[name])
