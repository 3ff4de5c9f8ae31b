"""What a watched run keeps of its looks, for the report's slider."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builders import random_chameleon, save
from test_cli import QUICK, lines
from viceversa.cli import main
from viceversa.training.recorder import FOLLOWED

#: 16 prompts and pictures: 2 of each are held out. Outputs of a group: 3.
SETS = ["--set=data.scenes_size=16", "--set=sampling.group_size=3", "--set=eval.specs_per_kind=0"]
SETS += ["--set=watch.every=1", "--set=eval.held_out_group=3"]


def train(model: Path, out: Path, *more: str) -> Path:
    words = ["train", "--model", str(model), "--output", str(out), *QUICK, *SETS, *more]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("followed") / "run"
    return train(model, out, "--steps=3", "--set=train.save_steps=2")


def test_each_look_keeps_every_output(run: Path) -> None:
    rows = lines(run / FOLLOWED)
    wanted = [(s, d, n) for s in range(4) for d in ("t2i", "i2t") for n in range(2)]
    assert [(row["step"], row["direction"], row["number"]) for row in rows] == wanted
    for row in rows:
        outputs = row["outputs"]
        assert [round(o["reward"], 5) for o in outputs] == row["rewards"] and len(outputs) == 3
        assert all(o["right"] in (True, False) for o in outputs) and row["kind"]
        pictures = [o["image"] for o in outputs if "image" in o]
        assert len(pictures) == (3 if row["direction"] == "t2i" else 0)
        pictures += [row["input_image"]] if "input_image" in row else []
        assert all(Image.open(run / name).size == (24, 24) for name in pictures)
    inputs = {(r["direction"], r["number"]): r.get("input_text") for r in rows}
    assert all(r.get("input_text") == inputs[r["direction"], r["number"]] for r in rows)


def test_recorded_groups_keep_every_output(run: Path) -> None:
    for row in lines(run / "rollouts.jsonl"):
        assert len(row["outputs"]) == row["group_size"] == 3
        assert [round(o["reward"], 5) for o in row["outputs"]] == row["rewards"]


def test_training_does_not_notice(run: Path, model: Path, tmp_path: Path) -> None:
    alone = train(model, tmp_path / "alone", "--steps=3", "--set=watch.every=0")
    assert not (alone / FOLLOWED).exists()
    weights = "checkpoint-3/model.safetensors"
    assert (alone / weights).read_bytes() == (run / weights).read_bytes()


def test_what_changes_is_the_model_alone(model: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 every look sees the same."""
    out = train(model, tmp_path / "run", "--steps=2", "--set=train.learning_rate=0")

    def seen(step: int) -> list[Any]:
        rows = [row for row in lines(out / FOLLOWED) if row["step"] == step]
        return [
            [
                (o["reward"], o["text"] if "text" in o else (out / o["image"]).read_bytes())
                for o in r["outputs"]
            ]
            for r in rows
        ]

    assert seen(0) == seen(1) == seen(2)


def test_a_resumed_run_goes_on_where_its_checkpoint_was(run: Path) -> None:
    whole = (run / FOLLOWED).read_text()
    third = run / "checkpoint-3"
    third.rename(run / "aside")  # as if it had been stopped after two steps
    assert main(["train", "--resume", "--output", str(run)]) == 0
    assert [json.loads(line) for line in (run / FOLLOWED).read_text().splitlines()] == [
        json.loads(line) for line in whole.splitlines()
    ]


def test_pictures_that_cannot_be_decoded_are_not_followed(tmp_path: Path) -> None:
    save(random_chameleon(), tmp_path / "model")
    out = train(tmp_path / "model", tmp_path / "run", "--steps=1")
    assert {row["direction"] for row in lines(out / FOLLOWED)} == {"i2t"}
