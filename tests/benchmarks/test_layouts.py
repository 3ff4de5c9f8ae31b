"""`viceversa benchmark`: every layout as its official scorer reads it, resumed and shared out.

The readers here say in a few lines what the scorers' own code does.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import viceversa as vv
from small_memory import few_rows_fit
from viceversa.benchmarks.folders import folder_names
from viceversa.benchmarks.layouts import geneval, grid, t2i_compbench
from viceversa.benchmarks.pope import read_questions, says_yes, scores
from viceversa.cli import main, shares
from viceversa.models.loading import builtin_path
from viceversa.rl import rollout as rollouts
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.spec import draw_specs

SPECS = draw_specs(0, 1, "test")[:3]
PROMPTS = [caption(s) for s in SPECS]


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(files)}


def listed(folder: Path) -> list[str]:
    """As os.listdir: also what is hidden."""
    return [p.name for p in folder.iterdir()]


def same(file: Path, picture: Image.Image) -> bool:
    return np.array_equal(np.asarray(Image.open(file)), np.asarray(picture))


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "AT_ONCE", 2)


@pytest.fixture
def metadata(tmp_path: Path) -> Path:
    rows = [
        {"tag": "colors", "include": [{"class": "a", "count": 1}], "prompt": p} for p in PROMPTS
    ]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def category(tmp_path: Path) -> Path:
    path = tmp_path / "color_val.txt"
    path.write_bytes("\r\n".join(f"{p}." for p in PROMPTS[:2]).encode())
    return path


def read_geneval(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """As djghosh13/geneval reads it, evaluation/evaluate_images.py at 16f1681."""
    found = []
    for subfolder in listed(folder):
        place = folder / subfolder
        if not place.is_dir() or not subfolder.isdigit():
            continue
        told = json.loads((place / "metadata.jsonl").read_text())
        for name in listed(place / "samples"):
            if (place / "samples" / name).is_file() and re.match(r"\d+\.png", name):
                found.append((f"{subfolder}/samples/{name}", told))
    return sorted(found, key=lambda pair: pair[0])


def read_compbench(folder: Path) -> list[tuple[int, str]]:
    """As Karine-Huang/T2I-CompBench reads it: BLIP_vqa.py at bfe6300, generate_dataset.py at
    7710d05."""
    names = listed(folder / "samples")
    names.sort(key=lambda x: int(x.split("_")[-1].split(".")[0]))
    assert names == sorted(names, key=lambda x: int(x.split("_")[1].split(".")[0]))
    return [(int(n.split("_")[-1].split(".")[0]), n.split("_")[0]) for n in names]


def test_geneval_reads_what_is_drawn(metadata: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    asked = ["benchmark", "geneval", "--prompts", str(metadata), "--output", str(out)]
    assert main([*asked, "--seed=4", "--guidance=1.5"]) == 0
    found = read_geneval(out / "builtin")
    assert [name for name, _ in found] == [
        f"{i:05d}/samples/{k:04d}.png" for i in range(3) for k in range(4)
    ]
    assert [told["prompt"] for _, told in found] == [p for p in PROMPTS for _ in range(4)]
    lines = metadata.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        assert (out / "builtin" / f"{number:05d}" / "metadata.jsonl").read_text() == line
    assert len(written(out)) == 3 * 5 + 1
    drawn = vv.load("builtin").draw(PROMPTS, 4, seed=4, guidance=1.5)
    pictures = [picture for row in drawn for picture in row]
    for (name, _), picture in zip(found, pictures, strict=True):
        assert same(out / "builtin" / name, picture)
    assert f"python evaluation/evaluate_images.py {out / 'builtin'} " in capsys.readouterr().out


def test_compbench_reads_what_is_drawn(category: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    asked = ["benchmark", "t2i-compbench", "--prompts", str(category), "--output", str(out)]
    assert main(asked) == 0
    # the prompts end in a dot, as the benchmark's own do in part, and their lines in CRLF
    assert read_compbench(out / "builtin") == [
        (i * 10 + k, f"{PROMPTS[i]}.") for i in range(2) for k in range(10)
    ]
    assert (out / f"builtin/samples/{PROMPTS[1]}._000010.png").is_file()
    assert len(written(out)) == 21
    told = capsys.readouterr().out
    assert f"BLIP_vqa.py --out_dir={out / 'builtin'})" in told and "UniDet" not in told


def test_compbench_finds_its_depth_maps(tmp_path: Path) -> None:
    """Where UniDet_eval/3D_spatial_eval.py at ed5367e saves one, generate_dataset_3d.py looks."""
    from viceversa.benchmarks.layouts import LAYOUTS

    _, told = LAYOUTS["t2i-compbench"].after(tmp_path / "a model", Path("3d_spatial_val.txt"), 10)
    outpath = shlex.split(told.strip("()"))[-1].removeprefix("--outpath=")
    picture = f"{outpath}/samples/a dog behind a cat_000000.png".split("/")
    saved = "/".join([outpath, "labels/depth", *picture[-3:]])
    assert "/".join([outpath, "labels/depth", outpath.split("/")[-1], *picture[-2:]]) == saved


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("spatial_val", "2D_spatial_eval.py"),
        ("3d_spatial_val", "3D_spatial_eval.py"),
        ("numeracy_val", "numeracy_eval.py"),
        ("non_spatial_val", "CLIP_similarity.py"),
        ("complex_val", "3_in_1.py"),
        ("mine", "BLIP_vqa.py"),
    ],
)
def test_the_category_tells_the_command(name: str, script: str, tmp_path: Path) -> None:
    from viceversa.benchmarks.layouts import LAYOUTS

    after = LAYOUTS["t2i-compbench"].after(tmp_path, Path(f"{name}.txt"), 10)
    assert any(script in line for line in after)
    assert len(after) == {"complex_val": 5, "mine": 12}.get(name, 2)


def test_dpg_reads_what_is_drawn(tmp_path: Path, capsys: Any) -> None:
    prompts, out = tmp_path / "prompts", tmp_path / "out"
    prompts.mkdir()
    for name, text in zip(("10", "2", "COCOval2014000000012345"), PROMPTS, strict=True):
        (prompts / f"{name}.txt").write_text(text + "\n")
    asked = ["benchmark", "dpg", "--prompts", str(prompts), "--output", str(out)]
    assert main(asked) == 0
    grids = out / "builtin" / "grids"
    assert sorted(listed(grids)) == ["10.png", "2.png", "COCOval2014000000012345.png"]
    drawn = vv.load("builtin").draw(PROMPTS, 4)
    side = drawn[0][0].width
    # TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py at 1cf31ce
    crops = [(0, 0), (side, 0), (0, side), (side, side)]
    for name, pictures in zip(sorted(listed(grids)), drawn, strict=True):
        whole = Image.open(grids / name)
        assert whole.size == (2 * side, 2 * side)
        for (x, y), picture in zip(crops, pictures, strict=True):
            part = whole.crop((x, y, x + side, y + side))
            assert np.array_equal(np.asarray(part), np.asarray(picture))
    assert f"PIC_NUM=4 PROCESSES=8 bash dpg_bench/dist_eval.sh {grids} {side}" in (
        capsys.readouterr().out
    )
    assert main([*asked[:-1], str(tmp_path / "one"), "--n=1"]) == 0
    assert Image.open(tmp_path / "one/builtin/grids/2.png").size == (side, side)
    assert grid([pictures[0], pictures[1]]).size == (2 * side, 2 * side)


def test_what_is_there_is_not_drawn_again(
    metadata: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    out = tmp_path / "out"
    asked = ["benchmark", "geneval", "--prompts", str(metadata), "--output", str(out), "--n=2"]
    assert main(asked) == 0
    whole = written(out)
    (out / "builtin/00002/samples/0001.png").unlink()
    made = []
    honest = vv.Model.draw

    def spy(self: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        made.extend(prompts)
        return honest(self, prompts, *args, **kwargs)

    monkeypatch.setattr(vv.Model, "draw", spy)
    assert main(asked) == 0
    assert made == PROMPTS[2:] and written(out) == whole
    assert main(asked) == 0 and made == PROMPTS[2:]
    capsys.readouterr()
    for other, told in (
        ("--seed=1", "seed 0, now 1"),
        ("--n=3", "n 2, now 3"),
        ("--guidance=2", "guidance None, now 2.0"),
        ("--temperature=0.5", "temperature 1.0, now 0.5"),
    ):
        assert main([*asked, other]) == 2
        err = capsys.readouterr().err
        assert told in err and "choose another --output" in err
    metadata.write_text(metadata.read_text().splitlines()[0])
    assert main(asked) == 2
    assert "prompts '" in capsys.readouterr().err
    assert written(out) == whole


def test_processes_share_the_prompts(metadata: Path, tmp_path: Path, monkeypatch: Any) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    asked = ["benchmark", "geneval", "--prompts", str(metadata), "--n=2", "--output"]
    assert main([*asked, str(one)]) == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main([*asked, str(two)]) == 0
        assert len(read_geneval(two / "builtin")) == {"1": 2, "0": 6}[rank]
    assert written(one) == written(two)


def test_models_draw_with_the_same_seeds(category: Path, tmp_path: Path, capsys: Any) -> None:
    copy, out = tmp_path / "run-1" / "checkpoint-20", tmp_path / "out"
    shutil.copytree(builtin_path(), copy)
    asked = ["benchmark", "t2i-compbench", "--prompts", str(category), "--output", str(out)]
    assert main([*asked, "--n=1", "--model", "builtin", "--model", str(copy)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["builtin", "run-1-checkpoint-20"]
    one, two = (written(out / name) for name in ("builtin", "run-1-checkpoint-20"))
    recipes = [json.loads(files.pop("recipe.json")) for files in (one, two)]
    assert one == two and len(one) == 2
    assert [r.pop("model") for r in recipes] == ["builtin", str(copy.resolve())]
    assert recipes[0] == recipes[1]
    assert capsys.readouterr().out.count("BLIP_vqa.py") == 2


def test_names_of_folders_are_short_and_differ() -> None:
    given = ["owner/Janus-Pro-1B", "a/x/checkpoint-2", "b/x/checkpoint-2", "builtin"]
    assert list(folder_names(given).values()) == [
        "Janus-Pro-1B",
        "a-x-checkpoint-2",
        "b-x-checkpoint-2",
        "builtin",
    ]
    assert folder_names(["b/x/checkpoint-2"]) == {"b/x/checkpoint-2": "x-checkpoint-2"}
    for pair in (["builtin", "builtin"], ["a/b", "a-b", "a/b"]):
        with pytest.raises(vv.ConfigError, match="twice"):
            folder_names(pair)


QUESTIONS = [("Is there a ring?", "yes"), ("Is there a car?", "no"), ("Is it red?", "yes")]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for i, (spec, (text, label)) in enumerate(zip(SPECS, QUESTIONS, strict=True)):
        Image.fromarray(render(spec)).save(folder / f"{i}.png")
        rows.append({"question_id": i + 1, "image": f"{i}.png", "text": text, "label": label})
    path = tmp_path / "pope.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def official(answers: Path, labels: Path) -> dict[str, float]:
    """AoiDragon/POPE, evaluate.py at f3ec604, in short."""
    told = [json.loads(line) for line in answers.open()]
    wanted = [json.loads(line)["label"] != "no" for line in labels.open()]
    said = []
    for row in told:
        words = row["answer"].split(".")[0].replace(",", "").split(" ")
        said.append(not ("No" in words or "not" in words or "no" in words))
    tp = sum(s and w for s, w in zip(said, wanted, strict=True))
    right = sum(s == w for s, w in zip(said, wanted, strict=True))
    return {"accuracy": right / len(said), "yes_rate": sum(said) / len(said), "TP": tp}


def test_pope_is_asked_and_scored(
    questions: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    asked = ["benchmark", "pope", "--prompts", str(questions), "--output"]
    photos = ["--images", str(tmp_path / "photos")]
    assert main([*asked, str(one), *photos]) == 0
    record = one / "builtin/answers.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(r["question"], r["label"]) for r in rows] == QUESTIONS
    assert [r["question_id"] for r in rows] == [1, 2, 3] and all("answer" in r for r in rows)
    found = json.loads((one / "builtin/scores.json").read_text())
    assert found == scores([r["label"] for r in rows], [r["answer"] for r in rows])
    theirs = official(record, questions)
    assert theirs.pop("TP") == found["counts"]["TP"]
    assert theirs == {key: found[key] for key in theirs}
    assert f"accuracy {found['accuracy']:.4f}" in capsys.readouterr().out

    monkeypatch.setenv("WORLD_SIZE", "2")  # two processes write what one does
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert main([*asked, str(two), *photos]) == 0
        assert (two / "builtin/scores.json").is_file() == (rank == "0")
    assert written(one) == written(two)
    monkeypatch.delenv("WORLD_SIZE")

    whole = record.read_bytes()
    record.write_bytes(whole[:-9])  # killed in the middle of a line
    (one / "builtin/scores.json").unlink()
    assert main([*asked, str(one), *photos]) == 0
    assert written(one) == written(two)


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
def test_what_memory_holds_is_found_once(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not again for every few questions."""
    refused = few_rows_fit(monkeypatch, rollouts)
    questions.write_text(questions.read_text() * 2)
    asked = ["benchmark", "pope", "--prompts", str(questions), "--output", str(tmp_path / "out")]
    assert main([*asked, "--images", str(tmp_path / "photos")]) == 0
    assert refused == [2]


def test_labels_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    given = tmp_path / "questions.json"
    given.write_text("".join(f'{ASKED}"{label}"}}\n' for label in ("Yes", "NO", "yes", "no")))
    found = read_questions(given, tmp_path)
    assert [question.label for question in found] == ["yes", "no", "yes", "no"]


def test_pope_by_hand() -> None:
    labels = ["yes", "yes", "yes", "no", "no"]
    answers = ["Yes", "No.", "There is a dog.", "Yes, no doubt", "It is red. No"]
    assert [says_yes(a) for a in answers] == [True, False, True, False, True]
    assert scores(labels, answers) == {
        "accuracy": 3 / 5,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": pytest.approx(2 / 3),
        "yes_rate": 3 / 5,
        "questions": 5,
        "counts": {"TP": 2, "FP": 1, "TN": 1, "FN": 1},
        "neither": 2,
    }
    # the rule is the official one, to the letter: case and signs matter
    assert [says_yes(a) for a in ("NO", "no!", "not", "")] == [True, True, False, True]
    assert scores(["no"], ["no"])["precision"] == 0.0


LINE = '{"tag": "t", "include": [{"class": "a", "count": 1}], "prompt": "a ring"}\n'


def asked_of(key: str, entry: str) -> str:
    """A line that includes or excludes one more thing."""
    more = f', "exclude": [{entry}]' if key == "exclude" else ""
    return LINE.replace("}]", f"}}, {entry}]" if key == "include" else f"}}]{more}", 1)


ASKED = '{"question_id": 1, "image": "a.png", "text": "Is it?", "label": '


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("geneval", LINE + "{", "given, line 2 is '{', not JSON"),
        ("geneval", LINE + "\n" + LINE, "given, line 2 is '', not JSON"),
        ("geneval", '{"tag": "t", "prompt": "p"}', "line 1: include is None; it takes a list"),
        ("geneval", '{"tag": "t", "include": [1], "prompt": "p"}', "include holds 1; it takes"),
        ("geneval", asked_of("include", '{"class": "a"}'), "it takes class, a text, and count"),
        ("geneval", asked_of("include", '{"class": 1, "count": 1}'), "class, a text, and count"),
        ("geneval", asked_of("exclude", '{"class": "a"}'), "exclude holds {'class': 'a'}; it"),
        ("geneval", asked_of("exclude", '{"class": "a", "count": 1.0}'), "count, a whole number"),
        ("geneval", LINE.replace("}]", '}], "exclude": {}', 1), "exclude is {}; it takes a list"),
        ("geneval", LINE.replace(": 1", ': 1, "position": ["left of", 0]'), "an earlier entry"),
        ("geneval", "\n", "it holds no prompt"),
        ("geneval", LINE.replace("a ring", " "), "given, line 1 is ' ': empty"),
        ("t2i-compbench", "a ring\na/b", "given, line 2 is 'a/b'"),
        ("t2i-compbench", "a_b", "cannot hold '_': reword it"),
        ("t2i-compbench", "a" * 245, "its file's name would have 256 bytes"),
        ("t2i-compbench", "a\r\n\r\nb", "given, line 2 is empty; delete the line"),
        ("dpg", "a ring", "--prompts is 'given'; there is no such folder"),
        ("pope", ASKED + '"maybe"}', "line 1: label is 'maybe'; it must be 'yes' or 'no'"),
        ("pope", ASKED + '"no"}', "image is 'a.png'; photos holds no such file"),
        ("pope", '{"question_id": 1}', "line 1: image is None; it takes text"),
        ("pope", "[]", "given, line 1 is '[]'; it takes an object"),
    ],
)
def test_inputs_that_cannot_be(
    name: str, content: str, message: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "given").write_bytes(content.encode())
    images = ["--images", "photos"] if name == "pope" else []
    assert main(["benchmark", name, "--prompts", "given", *images]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompts", "nowhere"], "--prompts is 'nowhere'; there is no such file"),
        (["--n=-1"], "--n is -1; it must be at least 1"),
        (["--images", "photos"], "geneval reads no pictures: leave it out"),
        (["--model", "builtin", "--model", "builtin"], "name each model once"),
        (["--model", "builtin", "--model", "photos"], "the folder holds no config.json"),
        (["--seed=-1"], "--seed is -1"),
        (["--temperature=nan"], "--temperature is nan"),
    ],
)
def test_options_that_cannot_be(
    words: list[str], message: str, metadata: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert main(["benchmark", "geneval", "--prompts", str(metadata), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "benchmark").exists()


def test_options_of_pope_and_folders_with_more(
    questions: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    asked = ["benchmark", "pope", "--prompts", str(questions), "--output", str(out)]
    assert main(asked) == 2
    assert "name their folder with --images" in capsys.readouterr().err
    for given in ("--n=2", "--temperature=0", "--guidance=5", "--seed=1"):
        assert main([*asked, "--images", str(tmp_path / "photos"), given]) == 2
        assert "pope answers greedily: leave out --n" in capsys.readouterr().err
    (out / "builtin").mkdir(parents=True)
    (out / "builtin" / "mine.png").touch()
    assert main([*asked, "--images", str(tmp_path / "photos")]) == 2
    assert "holds 'mine.png', but no recipe" in capsys.readouterr().err


def test_dpg_prompts_that_cannot_be(tmp_path: Path, capsys: Any) -> None:
    asked = ["benchmark", "dpg", "--prompts", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(asked) == 2
    assert "the folder holds no .txt" in capsys.readouterr().err
    (tmp_path / "a.b.txt").write_text("a ring")
    assert main(asked) == 2
    assert "up to the first dot: rename it" in capsys.readouterr().err
    (tmp_path / "a.b.txt").unlink()
    (tmp_path / "a.txt").write_text(" \n")
    assert main(asked) == 2
    assert "a.txt is empty" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("a ring")
    assert main([*asked, "--n=5"]) == 2
    assert "--n is 5; it must be from 1 to 4" in capsys.readouterr().err


def test_lines_as_the_official_code_splits_them(tmp_path: Path) -> None:
    """GORS_finetune/inference_eval.py at e1bfb0c: a prompt ends at a tab, a line at CRLF."""
    path = tmp_path / "texture.txt"
    path.write_bytes("\ufeffa ring\tring\r\na red ring\r\n".encode())
    items = t2i_compbench(path, 10)
    assert [i.prompt for i in items] == ["a ring", "a red ring"]
    assert items[1].files[0] == "samples/a red ring_000010.png"
    lines = tmp_path / "given.jsonl"
    lines.write_bytes((LINE.strip() + "\r\n" + LINE.strip() + "\r\n").encode())
    assert [i.notes for i in geneval(lines, 1)] == [
        (f"0000{i}/metadata.jsonl", LINE) for i in range(2)
    ]


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, viceversa.cli, viceversa.benchmarks.layouts; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
