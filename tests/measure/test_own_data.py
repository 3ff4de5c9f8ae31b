"""A folder of photographs and a file of prompts, from the command to the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders import random_janus, save
from processes import launch
from viceversa.cli import main
from viceversa.config import load_config
from viceversa.scenes.spec import COLOURS, SHAPES

SETS = [
    *("data.prompts_per_step=4", "data.images_per_step=4", "sampling.group_size=4"),
    *("sampling.max_caption_tokens=6", "eval.held_out_inputs=4", "train.save_strategy=no"),
]
#: As in the recipe of several GPUs. Weights in shards are judged as the last checkpoint holds them.
FSDP = load_config("janus-pro-7b-full-fsdp2").train["fsdp_config"]
SHARDED = ["train.fsdp=true", f"train.fsdp_config={FSDP}", "train.save_strategy=steps"]
MEASURES = {"base_likelihood", "own_likelihood", "gap", "variety", "entropy"}


def command(folder: Path, model: str, run: str) -> list[str]:
    given = ["--prompts", str(folder / "prompts.txt"), "--images", str(folder / "photos")]
    sets = [*SETS, f"data.cache_dir={folder / 'cache'}"]
    rest = ["--output", str(folder / run), "--steps", "2", *(f"--set={value}" for value in sets)]
    return ["train", "--model", model, *given, *rest]


def answer(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures of held-out inputs, and the gallery without the names of its files."""
    figures = json.loads((run / "eval.json").read_text())["held_out"]
    gallery = (run / "samples" / "held_out.jsonl").read_text().splitlines()
    return figures, [json.loads(line) for line in gallery]


def inputs(gallery: list[dict[str, Any]], run: Path) -> list[Any]:
    """Return what each row of a gallery was given: a text, or the bytes of a picture."""
    return [row.get("input_text") or (run / row["input_image"]).read_bytes() for row in gallery]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["builtin", "random", "sharded"])
def test_photographs_and_prompts_end_with_an_answer(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process twice, then two: measures, gallery and sentence, equal for equal seeds.

    Sharded, the two hold parts of the model's weights, and the base's are gathered to judge.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i, noise in enumerate(np.random.default_rng(0).integers(0, 256, (32, 6, 8, 3), "uint8")):
        picture = Image.fromarray(noise).resize((60, 45), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "photos" / f"{i:02d}.jpg")
    texts = [f"{n} {c} {s}s" for n in ("two", "three") for c in COLOURS for s in SHAPES]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    model = name
    if name != "builtin":
        model = str(tmp_path / "model")
        save(random_janus(), Path(model))
    for run in ("one", "again"):
        assert main(command(tmp_path, model, run)) == 0
    sets = [f"--set={value}" for value in SHARDED if name == "sharded"]
    launch("-m", "viceversa", *command(tmp_path, model, "two"), *sets, cwd=tmp_path)

    figures, gallery = answer(tmp_path / "one")
    assert figures == answer(tmp_path / "again")[0]
    assert gallery == answer(tmp_path / "again")[1]
    of_two, shown_by_two = answer(tmp_path / "two")
    assert inputs(gallery, tmp_path / "one") == inputs(shown_by_two, tmp_path / "two")
    for direction in ("t2i", "i2t"):
        found, other = figures[direction]["training"], of_two[direction]["training"]
        assert found.keys() >= MEASURES and found.keys() == other.keys()
        for measure in MEASURES:  # the base's are those of the same draws
            assert other[measure]["base"] == pytest.approx(found[measure]["base"], abs=1e-4)
    for run in ("one", "two"):
        sentence = answer(tmp_path / run)[0]["sentence"]
        page = (tmp_path / run / "report.html").read_text()
        assert sentence.split(" (")[0] in page and 'id="held-out-cards"' in page


@pytest.mark.slow
def test_a_run_in_shards_on_the_built_in_world_ends_with_both_evaluations(tmp_path: Path) -> None:
    sets = [
        *SHARDED,
        *SETS[:3],
        "eval.specs_per_kind=2",
        "eval.held_out_per_kind=1",
        "eval.held_out_inputs=0",
    ]
    sets += ["replay.questions=''", "train.warmup_steps=0", "train.learning_rate=0.01"]
    launch(
        *("-m", "viceversa", "train", "--steps", "1", "--output", "run"),
        *(f"--set={value}" for value in sets),
        cwd=tmp_path,
    )
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    assert found["base"].keys() == found["tuned"].keys() >= {"t2i", "i2t", "questions"}
    assert found["base"] != found["tuned"]
    galleries = sorted(p.name for p in (tmp_path / "run" / "samples").glob("*-000.png"))
    assert galleries == ["base-000.png", "tuned-000.png"]
