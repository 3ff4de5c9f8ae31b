"""`viceversa draw`, `caption` and `score`: what Python gives, resumed and shared out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import viceversa as vv
from viceversa.cli import main, shares
from viceversa.files import read_rows
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

SPECS = draw_specs(0, 2, "test")[:5]
PROMPTS = [caption(s) for s in SPECS]


def lines(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["number"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, spec in enumerate(SPECS):
        Image.fromarray(render(spec)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that were drawn, as they are."""
    made: list[str] = []
    honest = vv.Model.draw

    def spy(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        made.extend(prompts)
        return honest(self, prompts, *args, **kwargs)

    monkeypatch.setattr(vv.Model, "draw", spy)
    return made


def test_draw_writes_what_python_draws(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shares, "AT_ONCE", 2)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[1:]))
    out = tmp_path / "drawn"
    asked = [PROMPTS[0], str(tmp_path / "prompts.txt"), "--n=2", "--best-of=3", "--seed=4"]
    assert main(["draw", *asked, "--output", str(out)]) == 0
    rows = lines(out / "pictures.jsonl")
    assert [row["prompt"] for row in rows] == PROMPTS
    wanted = vv.load("builtin").draw(PROMPTS, 2, best_of=3, seed=4)
    for row, pictures in zip(rows, wanted, strict=True):
        for name, picture in zip(row["files"], pictures, strict=True):
            assert np.array_equal(np.asarray(Image.open(out / name)), np.asarray(picture))
    assert len(list(out.iterdir())) == 11


def test_what_is_there_is_not_made_again(
    tmp_path: Path, drawn: list[str], monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(shares, "AT_ONCE", 2)
    out = tmp_path / "drawn"
    record = out / "pictures.jsonl"
    assert main(["draw", *PROMPTS, "--output", str(out)]) == 0
    whole = lines(record)
    kept = record.read_text().splitlines(keepends=True)
    record.write_text("".join(kept[:4]) + kept[4][:10])  # killed in the middle of a line
    drawn.clear()
    assert main(["draw", *PROMPTS, "--output", str(out)]) == 0
    assert drawn == PROMPTS[4:]
    rows = [line for line in record.read_text().splitlines() if line != kept[4][:10]]
    assert sorted((json.loads(r) for r in rows), key=lambda r: r["number"]) == whole
    assert main(["draw", *PROMPTS, "--output", str(out)]) == 0 and drawn == PROMPTS[4:]
    assert main(["draw", "a red ring", "--output", str(out)]) == 2
    assert "holds outputs of other inputs" in capsys.readouterr().err
    assert main(["draw", *PROMPTS, "--output", str(out), "--seed=1"]) == 2
    assert "by another recipe (seed 0, now 1): choose another" in capsys.readouterr().err


def test_a_cut_inside_a_block_leaves_no_duplicates(tmp_path: Path, drawn: list[str]) -> None:
    out = tmp_path / "drawn"
    record, asked = out / "pictures.jsonl", ["draw", *PROMPTS, "--output", str(out)]
    assert main(asked) == 0 and len(PROMPTS) < shares.AT_ONCE
    kept = record.read_text().splitlines(keepends=True)
    pictures = {path: path.read_bytes() for path in out.glob("*.png")}
    record.write_text(kept[0] + kept[2] + kept[3] + kept[4][:10])
    drawn.clear()
    assert main(asked) == 0
    assert drawn == [PROMPTS[1], PROMPTS[4]]
    rows, cut = read_rows(record)
    assert sorted(row["number"] for row in rows) == [0, 1, 2, 3, 4] and cut == 1
    assert {path: path.read_bytes() for path in out.glob("*.png")} == pictures


def test_a_picture_that_is_gone_is_drawn_again(tmp_path: Path, drawn: list[str]) -> None:
    """Only its prompt, the same as before; its line is there already."""
    out = tmp_path / "drawn"
    asked = ["draw", *PROMPTS, "--n=2", "--output", str(out)]
    assert main(asked) == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    (out / "00003-1.png").unlink()
    drawn.clear()
    assert main(asked) == 0
    assert drawn == [PROMPTS[3]]
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_prompts_in_a_file_without_an_ending(
    tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read as `train` reads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("\n".join(PROMPTS[:2]))
    assert main(["draw", "mine", PROMPTS[2]]) == 0
    assert drawn == PROMPTS[:3]


def test_processes_share_the_inputs(photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shares, "AT_ONCE", 2)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main(["caption", str(photos), "--output", str(one), "--best-of=2"]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["caption", str(photos), "--output", str(two), "--best-of=2"]) == 0
        assert len(lines(two)) == {"0": 3, "1": 5}[rank]
    assert lines(one) == lines(two)
    model = vv.load("builtin")
    wanted = model.caption([str(photos / f"{i}.png") for i in range(5)], best_of=2)
    assert [row["caption"] for row in lines(one)] == wanted


def test_pictures_in_shards_are_captioned(photos: Path, tmp_path: Path) -> None:
    shard, out = tmp_path / "photos.tar", tmp_path / "captions.jsonl"
    with tarfile.open(shard, "w") as tar:
        for path in sorted(photos.iterdir()):
            tar.add(path, path.name)
    assert main(["caption", str(shard), "--output", str(out)]) == 0
    wanted = vv.load("builtin").caption(str(photos))
    assert [row["caption"] for row in lines(out)] == wanted


def test_score_gives_both_directions(photos: Path, tmp_path: Path) -> None:
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    given = [{"text": t, "image": f"photos/{i}.png"} for i, t in enumerate(PROMPTS)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert main(["score", "--pairs", str(pairs), "--output", str(out)]) == 0
    found = vv.load("builtin").score(PROMPTS, [str(photos / f"{i}.png") for i in range(5)])
    for row, drawn, written in zip(
        lines(out), found.text_given_image, found.image_given_text, strict=True
    ):
        assert row["text_given_image"] == pytest.approx(float(drawn), abs=1e-4)
        assert row["image_given_text"] == pytest.approx(float(written), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "nowhere.txt"], "nowhere.txt"),
        (["draw", "a ring", "."], "prompts is '.', a folder; name a file in it"),
        (["draw", "bad.md"], "a .md file; supported: .txt"),
        (["draw", "a ring", "--n=0"], "--n is 0; it must be at least 1"),
        (["caption", "nowhere"], "images is 'nowhere'; there is no such file or folder"),
        (["caption", "."], "it holds no picture"),
        (
            ["score", "--pairs", "nowhere.jsonl"],
            "--pairs is 'nowhere.jsonl'; there is no such file",
        ),
        (["score", "--pairs", "bad.jsonl"], "bad.jsonl, line 2: it takes an object with text"),
    ],
)
def test_inputs_that_cannot_be(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.md").write_text("a ring")
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "image": "b.png"}\n{"text": 3}\n')
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"bad.jsonl", "bad.md"}


def test_a_prompts_file_may_have_blank_lines_and_odd_line_ends(tmp_path: Path) -> None:
    """A line of text may hold what Python's splitlines takes for the end of one."""
    (tmp_path / "prompts.txt").write_text(f"{PROMPTS[0]}\n\n{PROMPTS[1]}\n")
    out = tmp_path / "drawn"
    words = ["draw", str(tmp_path / "prompts.txt"), "a ring\u2028or two", "--output", str(out)]
    assert main(words) == 0
    before = (out / "pictures.jsonl").read_bytes()
    assert main(words) == 0
    assert (out / "pictures.jsonl").read_bytes() == before
    rows, _ = read_rows(out / "pictures.jsonl")
    assert [row["prompt"] for row in rows] == [*PROMPTS[:2], "a ring\u2028or two"]


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_uses_half_of_the_bits(
    gpu: bool, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def load(model: str, **options: Any) -> None:
        found.append(options["dtype"])
        raise vv.ConfigError("no model")

    monkeypatch.chdir(tmp_path)
    pair = {"text": PROMPTS[0], "image": "photos/0.png"}
    Path("pairs.jsonl").write_text(json.dumps(pair))
    Path("prompts.txt").write_text(PROMPTS[0])
    question = {"question_id": 1, "image": "0.png", "text": "Is it?", "label": "no"}
    Path("questions.jsonl").write_text(json.dumps(question))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("viceversa.api.model.load", load)
    for words in (
        ["draw", "a ring"],
        ["caption", "photos"],
        ["score", "--pairs", "pairs.jsonl"],
        ["benchmark", "t2i-compbench", "--prompts", "prompts.txt", "--output", "one"],
        ["benchmark", "pope", "--prompts", "questions.jsonl", "--images", "photos"],
    ):
        assert main(words) == 2
    assert found == ["bfloat16" if gpu else "float32"] * 5


def test_a_file_without_a_prompt_is_an_error(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "blank.txt").write_text("\n  \n\n")
    out = tmp_path / "drawn"
    assert main(["draw", str(tmp_path / "blank.txt"), "--output", str(out)]) == 2
    assert "blank.txt'; it holds no prompt" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "p.jsonl",
            '{"prompt": "a ring"}\n{"prompt"\n',
            "skipped 1, not a JSON object: p.jsonl row 2",
        ),
        ("p.csv", "prompt,n\na ring,1\na, b,2\n", "skipped 1, ragged row: p.csv row 2"),
        ("p.txt", "a ring\n" + "\n" * 9, "skipped 9, empty: p.txt row 2, p.txt row 3,"),
    ],
)
def test_rows_that_cannot_be_read_are_said(
    name: str,
    content: str,
    said: str,
    tmp_path: Path,
    drawn: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content)
    assert main(["draw", name]) == 0
    assert said in capsys.readouterr().out and drawn == ["a ring"]


def test_a_column_that_is_not_there_names_what_to_do(tmp_path: Path, capsys: Any) -> None:
    """`draw` has no option that names a column."""
    (tmp_path / "p.csv").write_text("title\na ring\n")
    assert main(["draw", str(tmp_path / "p.csv"), "--output", str(tmp_path / "drawn")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "none of prompt, text, caption: rename one, or, to train, name it with" in said


def test_a_bad_prompt_is_found_before_any_is_drawn(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "drawn"
    assert main(["draw", *PROMPTS, "a" * 9999, "--output", str(out)]) == 2
    assert "prompt 6 is" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["draw", "a ring", "--seed=-1"], "--seed is -1; it must be at least 0"),
        (["draw", "a ring", "--guidance=nan"], "--guidance is nan; it must be at least 0"),
        (["caption", "photos", "--seed=-1"], "--seed is -1; it must be at least 0"),
        (["plan", "--memory=0"], "--memory is 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(words: list[str], said: str, capsys: Any) -> None:
    assert main(words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_pairs_in_another_encoding_are_refused(tmp_path: Path, capsys: Any) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes('{"text": "käse", "image": "a.png"}'.encode("latin-1"))
    assert main(["score", "--pairs", str(pairs), "--output", str(tmp_path / "s.jsonl")]) == 2
    assert "it is not UTF-8" in " ".join(capsys.readouterr().err.split())
