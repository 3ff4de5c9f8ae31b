"""Whatever it is given, viceversa takes it, or says what is wrong and writes nothing.

    FUZZ_CASES=2000 pytest tests/test_fuzz.py

tries 2,000 cases, 200 where nothing is said. The same number gives the same cases. A case ends
where work would begin, except for model folders: those that load take a real step.
"""

from __future__ import annotations

import contextlib
import csv
import inspect
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

import hostile
from builders import ADAPTERS, save
from viceversa import cli, config
from viceversa.models import load_adapter
from viceversa.models.base import Adapter
from viceversa.models.lora import save_lora
from viceversa.plan import plan
from viceversa.pretrain import pretrain
from viceversa.pretrain.recipe import PretrainOptions
from viceversa.scenes import evaluate
from viceversa.training import run

CASES = int(os.environ.get("FUZZ_CASES", "40"))


def cases(share: float) -> Any:
    """Settings of a test that gets this share of the cases."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.function_scoped_fixture,
        ],
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )


class Reached(BaseException):
    """The input was taken: work would begin."""


def reach(*_: Any, **__: Any) -> Any:
    raise Reached


def result(words: Sequence[str]) -> tuple[int, str]:
    """Exit code and what was said of a command; 0 where work would begin."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main(words)
        except Reached:
            code = 0
        except SystemExit as stopped:  # --help
            code = int(stopped.code or 0)
    return code, told.getvalue()


def tree() -> dict[str, tuple[int, int]]:
    """What there is below the current folder, but for locks."""
    found = {}
    for path in Path().rglob("[!.]*"):
        with contextlib.suppress(OSError):
            found[str(path)] = (path.lstat().st_size, path.lstat().st_mtime_ns * path.is_file())
    return found


def emptied() -> None:
    """Take away what the case before has left in the current folder."""
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def check(words: Sequence[str], codes: tuple[int, ...] = (0, 2)) -> int:
    """Run and hold the property: a known exit code; if it is 2, one line or tyro's message, and
    nothing written."""
    before = tree()
    environment = dict(os.environ)
    try:
        code, told = result(words)
    finally:
        os.environ.clear()
        os.environ.update(environment)
    event(f"exit code {code}")
    assert code in codes, told
    if code == 2:
        one_line = told.startswith("viceversa: ") and told.count("\n") == 1
        assert one_line or "For full helptext" in told, told
        assert len(told) < (3000 if one_line else 6000), told
        assert tree() == before
    return code


@pytest.fixture(autouse=True)
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current folder, and no cache of an earlier case."""
    monkeypatch.chdir(tmp_path)
    yield
    assert os.getcwd() == str(tmp_path)  # noqa: PTH109


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whole folders: one of each class, one in shards, one LoRA."""
    place = tmp_path_factory.mktemp("models")
    for name, build in ADAPTERS.items():
        adapter = build()
        save(adapter, place / name)
    janus = config.ModelConfig(str(place / "janus"))
    shutil.copytree(place / "janus", place / "shards")
    (place / "shards" / "model.safetensors").unlink()
    adapter = load_adapter(janus, config.LoraConfig(rank=2))
    save_lora(adapter, place / "lora")
    adapter.processor.save_pretrained(place / "lora")
    load_adapter(janus).model.save_pretrained(place / "shards", max_shard_size="600KB")
    return place


@pytest.fixture
def unworked(builtin: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end where work begins, and the model is there already."""
    monkeypatch.setattr(run, "load_adapter", lambda *_: builtin)
    monkeypatch.setattr(run, "_estimate", reach)  # inputs are read, the trainer is made
    monkeypatch.setattr(run.Recorder, "finish", lambda *_, **__: None)
    monkeypatch.setattr(plan, "make_plan", reach)
    monkeypatch.setattr(pretrain, "_train_codec", reach)
    monkeypatch.setattr(evaluate, "evaluate_scenes", reach)
    monkeypatch.setattr(evaluate, "best_decoding", reach)
    monkeypatch.setattr("viceversa.api.model.load", reach)


# Odd values.

ODD_NUMBERS = [0, -1, 1, 2, 3, 1e-30, 1e30, float("nan"), float("inf"), 0.5, 2**31, 2**64, 10**400]
ODD_TEXTS = [
    *("", " ", ".", "..", "/", "~", "\0", "\n", "é", "\ud800", "[/b]", "[red]", "{}", "%s", "null"),
    *("nan", "1e-5", "true", "builtin", "scenes", "hf://", "hf://a/b:c", "x" * 300, "a/" * 200),
    *("../../x", "x.yaml", "x.parquet", "{0..9}.tar", "*.tar", "[", "a\tb", "\x1b[31m", "👩‍🚀"),
]
odd_text = st.sampled_from(ODD_TEXTS) | st.text(max_size=12).map(lambda t: t.lstrip("/~"))
odd_number = st.sampled_from(ODD_NUMBERS) | st.integers(-3, 9) | st.floats(-2, 2)
odd_leaf = st.none() | st.booleans() | odd_number | odd_text
odd_value = st.recursive(
    odd_leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_text, inner, max_size=3),
    max_leaves=4,
)


def defaults(options: Any, prefix: str = "") -> dict[str, Any]:
    """Every option, `section.field`, and its default."""
    found = {}
    for field, value in vars(options).items():
        name = prefix + field
        found |= defaults(value, name + ".") if is_dataclass(value) else {name: value}
    return found


#: Options of transformers that reach outside the run: other programs, the hub, other processes.
OUTSIDE = ("deepspeed", "hub", "parallelism", "xpu", "mps", "fsdp", "ddp", "local", "compile")
OPTIONS = defaults(config.Config()) | {
    f"train.{field.name}": None if field.default is MISSING else field.default
    for field in fields(TrainingArguments)
    if not any(word in field.name for word in OUTSIDE)
}
CHOICES = ["joint", "alternate", "t2i", "i2t", "dual", "random", "grpo", "simpo", "pad", "steps"]


def value_for(name: str) -> st.SearchStrategy[Any]:
    """Mostly of the option's own type, seldom usual."""
    kind = OPTIONS[name]
    if isinstance(kind, bool):
        return st.booleans() | odd_value
    if isinstance(kind, (int, float)):
        return odd_number | odd_number | odd_value
    return st.sampled_from(CHOICES) | odd_text | odd_value


option = st.sampled_from(list(OPTIONS))
known = option.flatmap(lambda name: st.tuples(st.just(name), value_for(name)))
pairs = st.one_of(known, known, known, st.tuples(odd_text, odd_value))


def as_text(value: Any) -> str:
    """As YAML, or as it is."""
    return value if isinstance(value, str) else json.dumps(value)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content, or cut, with bytes changed, inserted or doubled; or none of it."""
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        more = draw(st.binary(max_size=8))
        end = place + draw(st.integers(0, 8))
        content = draw(
            st.sampled_from(
                [
                    content[:place],
                    content[:place] + more + content[place:],
                    content[:place] + more + content[end:],
                    content[place:] + content,
                    more,
                ]
            )
        )
    return content


# Configurations and command lines.


@cases(0.25)
@given(
    chosen=st.lists(pairs, max_size=2),
    lines=st.lists(pairs, max_size=1),
    raw=st.none() | st.none() | damaged((config.RECIPES / "builtin.yaml").read_bytes()),
)
def test_configurations(
    unworked: None, chosen: list[tuple[str, Any]], lines: list[tuple[str, Any]], raw: bytes | None
) -> None:
    """A file of options and overrides: refused, or read again as it was saved."""
    emptied()
    nested: dict[str, Any] = {"data": {"scenes_size": 9}}
    for name, value in chosen:
        section, _, field = name.partition(".")
        if field:
            inner = nested.setdefault(section, {})
            if isinstance(inner, dict):
                inner[field] = value
        else:
            nested[section] = value
    path = Path("recipe.yaml")
    path.write_bytes(yaml.safe_dump(nested).encode() if raw is None else raw)
    given = [f"--set={name}={as_text(value)}" for name, value in lines]
    if check(["train", "--config", str(path), *given]) == 0:
        found = config.load_config(path, [line.removeprefix("--set=") for line in given])
        config.save_config(found, Path("saved.yaml"))
        assert str(config.load_config("saved.yaml")) == str(found)  # text, for NaN is not itself


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command with options of its own, of others and of none, and odd values."""
    name = draw(st.sampled_from(list(cli.COMMANDS)))
    names = list(inspect.signature(cli.COMMANDS[name]).parameters)
    if name == "pretrain":
        names = [field.name for field in fields(PretrainOptions)]
    own = [f"--{n.replace('_', '-')}" for n in names]
    flag = st.sampled_from([*own, *own, "--set", "--help", "--", "-x", "--no-lora"]) | odd_text
    value = odd_text | st.integers(-3, 99).map(str) | odd_number.map(str)
    words = [name] if draw(st.integers(0, 9)) else []
    for _ in range(draw(st.integers(0, 3))):
        words += [draw(flag)] + [draw(value)] * (draw(st.integers(0, 4)) > 0)
    return words + [draw(value)] * draw(st.booleans())


@cases(0.25)
@given(words=command_lines())
def test_command_lines(unworked: None, words: list[str]) -> None:
    emptied()
    check(words)


# Prompt files and picture files.

rows = st.lists(
    odd_text | st.sampled_from(["a red ring", "a blue star", "two <image>"]), max_size=5
)


def as_csv(texts: Sequence[str]) -> bytes:
    held = io.StringIO()
    csv.writer(held).writerows([["prompt", "id"], *([t, i] for i, t in enumerate(texts))])
    return held.getvalue().encode(errors="replace")


def as_parquet(texts: Sequence[str]) -> bytes:
    held = io.BytesIO()
    clean = [text.encode(errors="replace").decode() for text in texts]
    pq.write_table(pa.table({"text": pa.array(clean, pa.string())}), held)
    return held.getvalue()


FILES: dict[str, Callable[[Sequence[str]], bytes]] = {
    "p.txt": lambda texts: "\n".join(texts).encode(errors="replace"),
    "p.jsonl": lambda texts: "\n".join(json.dumps({"text": t}) for t in texts).encode(),
    "p.csv": as_csv,
    "p.parquet": as_parquet,
}


@cases(0.15)
@given(data=st.data(), name=st.sampled_from(list(FILES)), texts=rows, streaming=st.booleans())
def test_prompt_files(
    unworked: None, data: st.DataObject, name: str, texts: list[str], streaming: bool
) -> None:
    emptied()
    Path(name).write_bytes(data.draw(damaged(FILES[name](texts))))
    column = data.draw(st.sampled_from(["", "text", "id"]) | odd_text)
    options = [f"data.streaming={str(streaming).lower()}", "schedule=t2i"]
    options.append(f"data.prompt_column={json.dumps(column)}")
    check(["train", "--prompts", name, *(f"--set={o}" for o in options)])


PICTURES = {
    kind: hostile.encoded(hostile.noise(), kind)
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm")
}


def as_tar(content: bytes, name: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return held.getvalue()


@cases(0.15)
@given(
    data=st.data(),
    kind=st.sampled_from(list(PICTURES)),
    shard=st.booleans(),
    streaming=st.booleans(),
)
def test_picture_files(
    unworked: None, data: st.DataObject, kind: str, shard: bool, streaming: bool
) -> None:
    emptied()
    Path("photos").mkdir()
    content = data.draw(damaged(PICTURES[kind]))
    if shard:
        content = data.draw(damaged(as_tar(content, f"a.{kind}")))
    Path("photos", "a.tar" if shard else f"a.{kind}").write_bytes(content)
    options = [
        f"data.streaming={str(streaming).lower()}",
        "schedule=i2t",
        "data.cache_dir=/dev/null",
    ]
    check(["train", "--images", "photos", *(f"--set={o}" for o in options)])


# Model folders and run folders.


def spoiled(folder: Path, data: st.DataObject, others: Path) -> None:
    """Damage one of a folder's files."""
    path = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    other = data.draw(st.sampled_from(sorted(p for p in others.rglob("*") if p.is_file())))
    ways: list[Callable[[], Any]] = [
        path.unlink,
        partial(path.write_bytes, b""),
        partial(shutil.copy, other, path),
        lambda: (path.unlink(), path.mkdir()),
    ]
    if path.suffix == ".json" and (root := parsed(path)):
        ways += 4 * [partial(edited, path, root, data)]
    for _ in range(3):
        ways.append(lambda: path.write_bytes(data.draw(damaged(path.read_bytes()))))
    data.draw(st.sampled_from(ways))()


def parsed(path: Path) -> Any:
    """Return what a JSON file holds; None where an earlier damage left no JSON list or object."""
    with contextlib.suppress(ValueError):
        root = json.loads(path.read_bytes())
        return root if isinstance(root, dict | list) else None


def edited(path: Path, root: Any, data: st.DataObject) -> None:
    """Change or drop one value somewhere in a JSON file."""
    node = root
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(node[key], (dict, list)) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        if data.draw(st.booleans()):
            del node[key]
        else:
            node[key] = data.draw(
                st.sampled_from([None, True, -1, 0, 1, 3, 99, 0.5, "", "x", [], {}, [1], {"a": 1}])
            )
        break
    path.write_text(json.dumps(root))


SMALL = [
    *("data.prompts_per_step=1", "data.images_per_step=1", "sampling.group_size=2", "steps=1"),
    *("sampling.max_caption_tokens=4", "eval.specs_per_kind=0", "data.scenes_size=4"),
    *("model.image_size=24", "train.save_strategy=no"),
]


@cases(0.1)
@given(data=st.data())
def test_model_folders(models: Path, data: st.DataObject) -> None:
    """Refused before any work, or a step is taken, or its numbers stop it."""
    name = data.draw(st.sampled_from(sorted(p.name for p in models.iterdir())))
    emptied()
    shutil.copytree(models / name, "model")
    for _ in range(data.draw(st.integers(1, 2))):
        spoiled(Path("model"), data, models)
    options = [f"--set={option}" for option in SMALL]
    options += ["--set=schedule=t2i"] * (name in ("emu3", "chameleon"))
    check(["train", "--model", "model", "--output", "out", *options], codes=(0, 1, 2))


@pytest.fixture(scope="module")
def runs(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of two finished runs of two steps, one of LoRA."""
    place = tmp_path_factory.mktemp("runs")
    options = [f"--set={option}" for option in (*SMALL, "train.save_strategy=steps", "steps=2")]
    for name, more in (("whole", []), ("lora", ["--lora"])):
        words = ["train", "--model", str(models / "janus"), "--output", str(place / name)]
        assert result([*words, *options, *more])[0] == 0
    return place


@cases(0.1)
@given(data=st.data())
def test_run_folders(runs: Path, data: st.DataObject) -> None:
    """Gone on from, by the last whole checkpoint, or refused; and its page is written."""
    emptied()
    shutil.copytree(runs / data.draw(st.sampled_from(["whole", "lora"])), "run")
    for _ in range(data.draw(st.integers(1, 2))):
        spoiled(Path("run"), data, runs)
    check(["report", "run"])
    if check(["train", "--resume", "--steps", "3", "--output", "run"], codes=(0, 1, 2)) == 0:
        for path in Path("run").rglob("*.json*"):
            for line in path.read_text().splitlines() if path.suffix == ".jsonl" else [None]:
                json.loads(path.read_text() if line is None else line)
