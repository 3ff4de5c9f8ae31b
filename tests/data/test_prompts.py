"""prompts: files and datasets of prompts, cleaning, special tokens, limits."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch

import hostile
from builders import random_emu3, random_janus
from viceversa.config import Config, ConfigError
from viceversa.data.hub import parse_hub
from viceversa.data.sources import Source, load_prompts
from viceversa.models.base import Adapter
from viceversa.models.text import TextLimits, plain_text
from viceversa.types import DIRECTIONS, Direction


def config_of(prompts: Path | str, **more: object) -> Config:
    config = Config()
    config.data.prompts = str(prompts)
    for name, value in more.items():
        setattr(config.data, name, value)
    return config


def prompts_of(path: Path, content: str | bytes | None = None) -> Source:
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_prompts(config_of(path))


def texts(source: Source) -> list[str | None]:
    return [e.text for e in source.examples]


def test_prompts_from_text(tmp_path: Path) -> None:
    """One a line, stripped; empty lines are counted with their line numbers."""
    path = tmp_path / "p.txt"
    source = prompts_of(path, "a red circle\n\n  a café  \n   \na ring")
    assert texts(source) == ["a red circle", "a café", "a ring"]
    assert source.skipped == [(f"{path} row 2", "empty"), (f"{path} row 4", "empty")]
    assert [e.example_id for e in source.examples] == [0, 1, 2]
    assert {e.direction for e in source.examples} == {"t2i"}
    assert all(e.reference is None and e.pixels is None for e in source.examples)


@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
def test_prompts_from_jsonl(tmp_path: Path, column: str) -> None:
    rows = [{"id": 3, column: "a ring"}, {"id": 4, column: " "}, {"id": 5}, {column: "a é"}]
    source = prompts_of(tmp_path / "p.jsonl", "\n".join(map(json.dumps, rows)))
    assert texts(source) == ["a ring", "a é"]
    assert [reason for _, reason in source.skipped] == ["empty", "empty"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_prompts_from_tables(tmp_path: Path, kind: str) -> None:
    """Quoted commas survive; empty and missing cells are counted."""
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"id": [1, 2, 3, 4], "text": ["a ring, red", "", None, "a é"]})
    table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    source = prompts_of(path)
    assert texts(source) == ["a ring, red", "a é"]
    assert [reason for _, reason in source.skipped] == ["empty", "empty"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_prompt_column_comes_before_text_and_caption(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"caption": ["c"], "text": ["t"], "prompt": ["p"]})
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    assert texts(prompts_of(path)) == ["p"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_unknown_columns_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"title": ["a"], "url": ["b"]})
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    with pytest.raises(ConfigError, match=r"has columns \['title', 'url'\], none of prompt"):
        prompts_of(path)


@pytest.mark.parametrize("content", ["", "\n \n\t\n"])
def test_file_without_prompts(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"p\.txt'; it holds no prompt"):
        prompts_of(tmp_path / "p.txt", content)


def test_empty_jsonl(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"p\.jsonl'"):
        prompts_of(tmp_path / "p.jsonl", "")


def test_rows_that_are_no_text_are_skipped_and_the_rest_is_kept(tmp_path: Path) -> None:
    """A line cut off, bytes that are not UTF-8, ragged rows, other types: one row's trouble."""
    rows = b'{"prompt": "a"}\n[1]\n{"prompt": 5}\n{"prompt": "\\ud800"}\n{"prompt": "b"}\n{"prom'
    source = prompts_of(tmp_path / "p.jsonl", rows)
    assert texts(source) == ["a", "b"]
    told = ["not a JSON object", "not text", "broken characters", "not a JSON object"]
    assert [kind for _, kind in source.skipped] == told
    source = prompts_of(tmp_path / "p.csv", b"prompt,n\na,1\nb,2,3\ncaf\xe9,4\n\nd,5\n")
    assert texts(source) == ["a", "d"]
    assert [kind for _, kind in source.skipped] == ["ragged row", "broken characters", "empty"]


def test_an_open_quote_does_not_swallow_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it cannot be read: unexpected end of data"):
        prompts_of(tmp_path / "p.csv", 'prompt\n"a ring\nb\nc\n')


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is UTF-16; save it as UTF-8"):
        prompts_of(tmp_path / "p.txt", "a ring".encode("utf-16"))


@pytest.mark.parametrize("name", ["none.txt", "none.csv", "."])
def test_missing_prompts(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        prompts_of(tmp_path / name)


@pytest.mark.parametrize("name", ["p.json", "p.tsv", "p.YAML", "p.txt.gz"])
def test_other_kinds_of_file_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"supported: \.txt, \.csv, \.jsonl, \.parquet"):
        prompts_of(tmp_path / name, '["a ring"]')


@pytest.mark.parametrize("name", ["p", "p.TXT"])
def test_text_without_an_extension(tmp_path: Path, name: str) -> None:
    assert texts(prompts_of(tmp_path / name, "a ring\n")) == ["a ring"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("header.csv", b"prompt\n"),
        ("ragged.csv", b"prompt,n\nb,2,3,4\n"),
        ("latin.csv", b"prompt\ncaf\xe9\n"),
        ("empty.parquet", b""),
        ("broken.parquet", b"not a parquet file at all"),
        ("numbers.jsonl", b"5\n"),
    ],
)
def test_broken_tables_are_config_errors(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(ConfigError):
        prompts_of(tmp_path / name, content)


def test_brackets_in_a_file_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "a1.csv").write_text("prompt\nanother file\n")
    assert texts(prompts_of(tmp_path / "a[1].csv", "prompt\nthis file\n")) == ["this file"]


def test_a_prompt_may_be_the_word_null(tmp_path: Path) -> None:
    assert texts(prompts_of(tmp_path / "p.csv", "prompt\na\nnull\n")) == ["a", "null"]


def test_blank_jsonl_lines_are_counted(tmp_path: Path) -> None:
    """The one empty prompt stands on line 3, after a blank line 2."""
    path = tmp_path / "p.jsonl"
    source = prompts_of(path, '{"prompt": "a"}\n\n{"prompt": ""}\n')
    assert source.skipped == [(f"{path} row 2", "empty"), (f"{path} row 3", "empty")]


def test_jsonl_prompts_may_hold_any_character(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False)
    assert texts(prompts_of(tmp_path / "p.jsonl", line)) == ["a\u2028b"]


def test_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    assert texts(prompts_of(tmp_path / "p.txt", "\ufeffa ring")) == ["a ring"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_named_column(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"p.{kind}"
    table = pd.DataFrame({"prompt": ["p"], "title": ["t"]})
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    assert texts(load_prompts(config_of(path, prompt_column="title"))) == ["t"]
    with pytest.raises(ConfigError, match=r"\['prompt', 'title'\], none of name$"):
        load_prompts(config_of(path, prompt_column="name"))


def write_table(path: Path, rows: dict[str, list[object]]) -> str:
    """Write rows as the path's extension says; return their name as `data.prompts`."""
    table = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        path.parent.mkdir(exist_ok=True)
        table.to_parquet(path)
        return f"hf://{path.parent}:train" if path.stem == "train" else str(path)
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("file", ["p.jsonl", "p.csv", "p.parquet", "set/train.parquet"])
def test_a_column_becomes_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, streaming: bool
) -> None:
    """The cell of the prompt's own row, also past rows that are left out."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    rows = {"answer": [1, 2, 3], "prompt": ["a ring", "", "a cat"], "url": ["r", "n", "c"]}
    name = write_table(tmp_path / file, rows)
    source = load_prompts(config_of(name, streaming=streaming, reference_column="answer"))
    drawn = [source.nth(k, "salt") for k in range(2)]
    one, three = ("1", "3") if file == "p.csv" else (1, 3)
    assert {e.text: e.reference for e in drawn} == {"a ring": one, "a cat": three}
    message = r"is 'label', but data\.prompts .* has columns \['answer', 'prompt', 'url'\]"
    with pytest.raises(ConfigError, match=message):
        load_prompts(config_of(name, streaming=streaming, reference_column="label")).nth(0, "salt")


def test_rows_of_json_may_lack_the_reference(tmp_path: Path) -> None:
    """It is unknown only where no row has it; a stream says so early, not at its end."""
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": f"a {k}"} for k in range(1500)]
    path.write_text("\n".join(map(json.dumps, [*rows[:3], {"prompt": "b", "answer": {"n": 7}}])))
    source = load_prompts(config_of(path, reference_column="answer"))
    assert [e.reference for e in source.examples] == [None, None, None, {"n": 7}]
    path.write_text("\n".join(map(json.dumps, rows)))
    source = load_prompts(config_of(path, reference_column="answer", streaming=True))
    with pytest.raises(ConfigError, match=r"but data\.prompts .* has columns \['prompt'\]"):
        source.nth(0, "salt")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("prompts", ["p.txt", "scenes"])
def test_prompts_without_columns_have_no_reference(
    tmp_path: Path, prompts: str, streaming: bool
) -> None:
    (tmp_path / "p.txt").write_text("a ring\n")
    name = prompts if prompts == "scenes" else str(tmp_path / prompts)
    with pytest.raises(ConfigError, match=r"but data\.prompts .* has no columns: leave it out"):
        load_prompts(config_of(name, streaming=streaming, reference_column="answer")).nth(0, "x")


@pytest.mark.parametrize("streaming", [False, True])
def test_prompts_from_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    """A folder of Parquet, read as a dataset of the hub is."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict({"n": [1, 2, 3], "text": ["a ring", None, "a cat"]})
    table.to_parquet(tmp_path / "set" / "test.parquet")
    name = f"hf://{tmp_path}/set:test"
    source = load_prompts(config_of(name, streaming=streaming))
    drawn = [source.nth(k, "salt").text for k in range(3)]
    assert sorted(filter(None, drawn[:2])) == ["a cat", "a ring"]
    assert source.skipped == [(f"{name} row 2", "empty")]
    with pytest.raises(ConfigError, match=r"columns \['n', 'text'\], none of title"):
        load_prompts(config_of(name, streaming=streaming, prompt_column="title")).nth(0, "salt")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_prompts(config_of(f"{name}x", streaming=streaming)).nth(0, "salt")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://squad", ("squad", None, "train")),
        ("hf://owner/name", ("owner/name", None, "train")),
        ("hf://owner/name:test", ("owner/name", None, "test")),
        ("hf://owner/name/en:train[:100]", ("owner/name", "en", "train[:100]")),
        ("hf:///data/set:test", ("/data/set", None, "test")),
        ("hf://./set", ("./set", None, "train")),
    ],
)
def test_names_of_datasets(name: str, parts: tuple[str, str | None, str]) -> None:
    assert parse_hub(name) == parts


# cleaning


def test_hostile_prompts_are_named_and_counted(tmp_path: Path) -> None:
    """Each line is used, changed or skipped as its maker foresaw, under Janus' own limits."""
    adapter = random_janus()
    path = tmp_path / "p.txt"
    expected = hostile.write_prompts(path)
    source = load_prompts(config_of(path), adapter.text_limits(""))
    found = {note.name: note.kind for note in source.notes}
    for number, (_, kind) in enumerate(hostile.LINES, start=1):
        assert found.get(f"{path} row {number}", "") == kind, number
    assert Counter(n.kind for n in source.notes) == {k: n for k, n in expected.items() if k}
    kept = texts(source)
    assert "a red ring[31m" in kept
    assert "a red ring" in kept
    for line in ("<b>a ring</b> &amp; <script>alert(1)</script>", "חתול אדום על שטיח"):
        assert line in kept


def test_a_prompt_that_fits_the_context_to_the_token(tmp_path: Path, adapter: Adapter) -> None:
    """One token more, and reading or drawing it would not fit."""
    limits = adapter.text_limits("")
    assert 20 < limits.tokens < 1000
    room = int(limits.tokens)
    words = ["a red ring and a blue star", " or"]
    text = words[0]
    while limits.token_count(text + words[1]) <= room:
        text += words[1]
    path = tmp_path / "p.txt"
    path.write_text(f"{text}\n{text}{words[1]}\n")
    source = load_prompts(config_of(path), limits)
    assert texts(source) == [text]
    assert source.skipped == [(f"{path} row 2", "longer than the context")]
    context = adapter.model.config.get_text_config().max_position_embeddings
    drawing = adapter.prompts("t2i", [text]).prompt_ids.shape[1] + adapter.image_tokens
    pixels = torch.zeros(1, 3, adapter.image_size, adapter.image_size, dtype=torch.uint8)
    asked = adapter.prompts("i2t", [adapter.default_instruction], pixels).prompt_ids.shape[1]
    reading = asked + adapter.text_completion([text]).completion_ids.shape[1]
    assert max(drawing, reading) <= context


def test_duplicates_beyond_the_memory_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viceversa.data.prompts.REMEMBERED", 2)
    source = prompts_of(tmp_path / "p.txt", "a\nb\na\nc\nc\nb\n")
    assert texts(source) == ["a", "b", "c", "c"]


# special tokens


def test_no_spelled_out_special_token_is_read_as_one(adapter: Adapter) -> None:
    """Alone, nested, overlapping and in every pair: only the template's own are left."""
    specials = adapter.special_tokens
    ids = {adapter.tokenizer.convert_tokens_to_ids(t) for t in specials}
    assert adapter.stop_id in ids
    texts = [f"a {t} b" for t in specials] + [
        "".join(p) for p in itertools.product(specials, specials)
    ]
    texts += [t[:3] + t + t[3:] for t in specials]
    pixels = torch.zeros(1, 3, adapter.image_size, adapter.image_size, dtype=torch.uint8)
    picture = {"pixels": pixels}
    if adapter.reads_image_ids:  # encoded once
        picture = {"image_ids": adapter.image_ids(pixels)}

    def specials_of(direction: Direction, text: str) -> Counter[int]:
        given = picture if direction == "i2t" else {}
        found = adapter.prompts(direction, [text], **given).prompt_ids.flatten().tolist()
        return Counter(i for i in found if i in ids)

    harmless = {direction: specials_of(direction, "a ring") for direction in DIRECTIONS}
    for text in texts:
        plain = plain_text(text, specials)
        assert not ids & set(adapter.text_ids(plain)), text
        assert plain_text(plain, specials) == plain
        for direction in DIRECTIONS:
            assert specials_of(direction, text) == harmless[direction], text
        completion = adapter.text_completion([text]).completion_ids[0].tolist()
        assert [i for i in completion if i in ids] == [adapter.stop_id]


@pytest.mark.parametrize(
    "text", ["", "a ring", "a < b > c", "<b>&lt;</b>", "x [1] [/INST", "ｅ｜日本 🐈\t\n  é"]
)
def test_ordinary_text_is_left_alone(adapter: Adapter, text: str) -> None:
    assert plain_text(text, adapter.special_tokens) == text


def test_a_chat_template_without_a_place_for_the_picture_is_not_used() -> None:
    """transformers' conversion script leaves such a one: Emu3 would be asked about no picture."""
    adapter = random_emu3()
    plain = adapter.prompt_text("i2t", "Describe it.")
    assert "USER: <|image start|>6*6<|image token|><image>" in plain
    adapter.processor.chat_template = "TODO: should be almost same as llava-1.5 vicuna"
    assert adapter.prompt_text("i2t", "Describe it.") == plain


def test_special_tokens_that_spaces_do_not_break() -> None:
    """Blank, single and space-edged ones neither loop nor lose text."""
    assert plain_text("a  b x", ["  ", "x", " b", ""]) == "a  b x"
    assert plain_text("abc", ["ab", "bc", "b c"]) == "a b  c"
    assert plain_text("anything", []) == "anything"


def test_limits_default_to_none(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("x" * 10_000)
    assert load_prompts(config_of(path), TextLimits()).skipped == []
