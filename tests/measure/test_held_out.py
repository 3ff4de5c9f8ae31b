"""Held-out inputs: never trained on, measured without labels, and read right."""

from __future__ import annotations

import html
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from viceversa.config import Config, ModelConfig, load_config
from viceversa.measure.held_out import compare, write_all
from viceversa.measure.outputs import decodings, in_parts, judged, measures, write
from viceversa.measure.verdict import of_decodings, of_direction, together
from viceversa.models import load_adapter
from viceversa.report.page import write_report
from viceversa.report.paired import Change, change_of_means
from viceversa.rl.rewards import dual_reward
from viceversa.rl.rollout import rollout
from viceversa.scenes.world import Scenes
from viceversa.training import measuring
from viceversa.training import run as runs
from viceversa.training.run import train
from viceversa.training.trainer import stream_of, training_arguments
from viceversa.types import Example, Rollout

SMALL = [
    *("steps=2", "data.prompts_per_step=2", "data.images_per_step=2", "sampling.group_size=2"),
    *("replay.questions=''", "sampling.max_caption_tokens=8", "eval.specs_per_kind=0"),
]
SHAPES = ("circle", "square", "ring", "cross", "triangle", "star")
COLOURS = ("red", "blue", "green", "yellow")


@pytest.fixture
def mine(tmp_path: Path) -> list[str]:
    """24 prompts and 24 pictures, two of which are equal under different names."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(24):
        colour = (10 * (i % 23), 255 - 10 * (i % 23), 40)
        Image.new("RGB", (40, 40), colour).save(photos / f"{i:02d}.png")
    texts = [f"a {c} {s}" for c in COLOURS for s in SHAPES]
    (tmp_path / "prompts.txt").write_text("\n".join(texts))
    return [
        *SMALL,
        f"data.prompts={tmp_path / 'prompts.txt'}",
        f"data.images={photos}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"output_dir={tmp_path / 'run'}",
    ]


def config(*sets: str) -> Config:
    return load_config("builtin", list(sets))


@pytest.fixture(scope="module")
def builtin() -> Any:
    return load_adapter(ModelConfig())


def key(example: Example) -> Any:
    return example.text if example.pixels is None else example.pixels.numpy().tobytes()


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_what_is_held_out_is_never_trained_on(
    mine: list[str], builtin: Any, streaming: str
) -> None:
    """Over several passes, in both directions, and under another name, too."""
    settings = config(*mine, f"data.streaming={streaming}", "eval.held_out_inputs=3", "steps=40")
    stream = stream_of(builtin, settings, training_arguments(settings))
    held = {d: {key(e) for e in s.held_out} for d, s in stream.sources.items()}
    assert [len(inputs) for inputs in held.values()] == [3, 3]
    trained: dict[str, set[Any]] = {"t2i": set(), "i2t": set()}
    for step in range(40):
        for example in stream[step]:
            trained[example.direction].add(key(example))
    for direction, inputs in held.items():
        assert not inputs & trained[direction]
    assert len(trained["t2i"]) == 21 and len(trained["i2t"]) == 20  # 23 different pictures
    again = stream_of(builtin, settings, training_arguments(settings))
    assert held == {d: {key(e) for e in s.held_out} for d, s in again.sources.items()}


def test_the_built_in_world_holds_out_pictures_of_its_own(builtin: Any) -> None:
    settings = config(*SMALL, "data.scenes_size=700")
    stream = stream_of(builtin, settings, training_arguments(settings))
    pictures = stream.sources["i2t"]
    assert len(pictures.held_out) == 64 and len(pictures.examples) == 700
    trained = {key(e) for e in pictures.examples}
    assert not trained & {key(e) for e in pictures.held_out}


def test_few_inputs_hold_nothing_out(builtin: Any) -> None:
    settings = config(*SMALL, "data.scenes_size=7")
    stream = stream_of(builtin, settings, training_arguments(settings))
    assert not any(s.held_out for s in stream.sources.values())


def test_a_run_on_ones_own_inputs_ends_with_an_answer(mine: list[str], tmp_path: Path) -> None:
    said = io.StringIO()
    train(config(*mine), Console(file=said, width=100))
    out = tmp_path / "run"
    found = json.loads((out / "eval.json").read_text())["held_out"]
    assert found["sentence"] in said.getvalue()
    for direction, extra in (("t2i", {"diversity"}), ("i2t", {"never_stops", "caption_tokens"})):
        measured = found[direction]["training"]
        assert {"base_likelihood", "own_likelihood", "entropy", "variety", *extra} <= set(measured)
        for figure in measured.values():
            change = figure["change"]
            assert change["value"] == pytest.approx(figure["tuned"] - figure["base"], abs=1e-6)
            assert (
                change["low"] <= change["value"] + 1e-9 and change["value"] <= change["high"] + 1e-9
            )
        base, own, gap = (measured[m] for m in ("base_likelihood", "own_likelihood", "gap"))
        grown = own["change"]["value"] - base["change"]["value"]
        assert gap["base"] == pytest.approx(0, abs=1e-5)
        assert gap["change"]["value"] == pytest.approx(grown, abs=1e-5)
        assert base["base"] == pytest.approx(own["base"], abs=1e-5)  # the base judges itself
    rows = [json.loads(r) for r in (out / "samples" / "held_out.jsonl").read_text().splitlines()]
    assert {r["direction"] for r in rows} == {"t2i", "i2t"}
    for row in rows:
        for who in ("base", "tuned"):
            assert "text" in row[who] or (out / row[who]["image"]).is_file()
    page = (out / "report.html").read_text()
    assert found["sentence"].split(".")[0] in page and "is missing" not in page
    assert "judged by the base" in page and "what the model finds its outputs better by" in page
    assert "holds no figures" not in page and 'id="evaluation"' not in page

    again = tmp_path / "again"
    train(config(*mine, f"output_dir={again}"), Console(file=io.StringIO()))
    assert json.loads((again / "eval.json").read_text())["held_out"] == found


@pytest.mark.slow
def test_kept_weights_a_base_loaded_again_and_a_checkpoint_measure_alike(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watched run keeps the start, and holds one model; one in shards loads both again."""
    loads: list[Any] = []
    honest = measuring.load_adapter
    monkeypatch.setattr(measuring, "load_adapter", lambda *a: loads.append(a) or honest(*a))
    found = []
    unkept = ["reward.scorer=live", "loss.t2i_kl=0", "loss.i2t_kl=0"]
    for every, sharded, count in ((1, False, 0), (0, False, 1), (1, True, 2)):
        loads.clear()
        monkeypatch.setattr(measuring, "is_sharded", lambda _, sharded=sharded: sharded)
        out = tmp_path / f"{every}-{sharded}"
        settings = config(*mine, *unkept, f"output_dir={out}", f"watch.every={every}")
        train(settings, Console(file=io.StringIO()))
        found.append(json.loads((out / "eval.json").read_text())["held_out"])
        assert len(loads) == count
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_no_more_rows_at_once_than_training_had_memory_for(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows were halved while training; the end takes no more, and its figures are the same."""
    rows: list[tuple[int, int]] = []
    honest = runs.measure_held_out

    def measured(trainer: Any, *rest: Any) -> Any:
        if len(rows) == 1:
            trainer.step.rollout_rows.rows, trainer.step.score_rows.rows = 4, 3
        fits = measuring.config_that_fits(trainer)
        rows.append((fits.sampling.batch_rows, fits.reward.batch_rows))
        return honest(trainer, *rest)

    monkeypatch.setattr(runs, "measure_held_out", measured)
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        train(config(*mine, f"output_dir={out}"), Console(file=io.StringIO()))
        found.append(json.loads((out / "eval.json").read_text())["held_out"])
    assert rows == [(512, 64), (4, 3)]
    for direction in ("t2i", "i2t"):
        for name, figure in found[0][direction]["training"].items():
            other = found[1][direction]["training"][name]
            assert other["tuned"] == pytest.approx(figure["tuned"], abs=1e-4), name


def test_what_cannot_be_measured_is_said_and_ends_no_run(
    mine: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    honest = runs.measure_held_out

    def gone(trainer: Any, *rest: Any) -> Any:
        trainer.step.reference = None
        trainer.config.model.path = str(tmp_path / "gone")
        return honest(trainer, *rest)

    monkeypatch.setattr(runs, "measure_held_out", gone)
    said = io.StringIO()
    train(config(*mine), Console(file=said, width=200))
    assert "held-out inputs are not measured: model.path is" in said.getvalue()
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "held-out inputs are not measured: model.path is" in page and "is missing" not in page


def run_on(prompts: int, pictures: int, mine: list[str], folder: Path) -> tuple[str, str, Path]:
    """Train on the first so many of them; what the console and the page say, and the folder."""
    texts = (folder / "prompts.txt").read_text().splitlines()
    (folder / "prompts.txt").write_text("\n".join(texts[:prompts]))
    for path in sorted((folder / "photos").iterdir())[pictures:]:
        path.unlink()
    said = io.StringIO()
    out = train(config(*mine), Console(file=said, width=200))
    return said.getvalue(), html.unescape((out / "report.html").read_text()), out


FEW_PROMPTS = "Drawing: not measured, because fewer than 8 prompts are given. Give 8 or more."
FEW_PICTURES = FEW_PROMPTS.replace("Drawing", "Captions").replace("prompts", "pictures")


def test_a_run_on_few_inputs_says_why_nothing_is_measured(mine: list[str], tmp_path: Path) -> None:
    """Before training and at its end; and on the page in place of what is missing."""
    said, page, out = run_on(7, 6, mine, tmp_path)
    for why in (FEW_PROMPTS, FEW_PICTURES):
        assert said.count(why) == 2 and page.count(why) == 1
    assert not (out / "eval.json").exists() and "is missing" not in page


def test_a_direction_of_few_inputs_is_named(mine: list[str], tmp_path: Path) -> None:
    said, page, out = run_on(8, 7, mine, tmp_path)
    assert said.count(FEW_PICTURES) == page.count(FEW_PICTURES) == 1
    assert FEW_PROMPTS not in said + page and "is missing" not in page
    assert "i2t" not in json.loads((out / "eval.json").read_text())["held_out"]


def test_a_run_that_was_told_to_measure_nothing_says_so(mine: list[str], tmp_path: Path) -> None:
    said, page, _ = run_on(24, 24, [*mine, "eval.held_out_inputs=0", "schedule=t2i"], tmp_path)
    why = "Drawing: not measured, because eval.held_out_inputs is 0. Set it to 64 or leave it out."
    assert why in said and why in page and "is missing" not in page


def test_measures_by_hand(builtin: Any) -> None:
    examples = Scenes().held_out("i2t", 3, 10)
    settings = config(*SMALL)
    sampling = settings.sampling
    sampling.group_size = 2
    written = write(builtin, examples, sampling, seed=5)
    found = measures(written, judged(builtin, written.parts, ""))
    whole = rollout(builtin, examples, sampling, 5)
    rewards = dual_reward(builtin, whole).float()
    assert found["base_likelihood"] == pytest.approx(rewards.mean(1).tolist(), abs=1e-4)
    assert found["own_likelihood"] == pytest.approx(found["base_likelihood"], abs=1e-5)
    gain = (rewards.amax(1) - rewards.mean(1)).tolist()
    assert found["best_of_gain"] == pytest.approx(gain, abs=1e-4)
    pairs = [whole.texts[2 * i] != whole.texts[2 * i + 1] for i in range(10)]
    assert found["diversity"] == [float(p) for p in pairs]
    words = [" ".join(whole.texts[2 * i : 2 * i + 2]).split() for i in range(10)]
    assert found["distinct_words"] == pytest.approx([len(set(w)) / len(w) for w in words])
    lengths = whole.completions.completion_mask.sum(-1).view(10, 2).float().mean(1)
    assert found["caption_tokens"] == pytest.approx(lengths.tolist())


def test_the_gap_is_paired_by_input(builtin: Any) -> None:
    """Where the base judges each output half a nat lower, it is half a nat, with no spread."""
    examples = Scenes().held_out("i2t", 3, 9)
    written = write(builtin, examples, config(*SMALL).sampling, seed=5)
    before = measures(written, written.own)["gap"]
    after = measures(written, [own - 0.5 for own in written.own])["gap"]
    change = change_of_means(before, after)
    assert (change.low, change.value, change.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-5)


def test_no_input_is_alone_in_its_part(builtin: Any) -> None:
    """Its output would lie apart from none: a variety of 0."""
    some = Scenes().held_out("t2i", 3, 17)
    sizes = {n: [len(p) for p in in_parts(some[:n])] for n in (1, 2, 8, 9, 10, 16, 17)}
    assert sizes == {1: [1], 2: [2], 8: [8], 9: [7, 2], 10: [8, 2], 16: [8, 8], 17: [8, 7, 2]}
    written = write(builtin, some[:9], config(*SMALL).sampling, seed=5)
    variety = measures(written, written.own)["variety"]
    assert len(variety) == 9 and min(variety) > 0


def test_a_model_is_measured_as_it_is_used(
    builtin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Drawn at its own guidance, where that is not training's, beside training's decoding."""
    inputs: Any = {"t2i": Scenes().held_out("t2i", 0, 9)}
    settings = config(*SMALL)
    assert list(decodings(builtin, "t2i", settings)) == ["training"]
    monkeypatch.setattr(builtin.model.generation_config, "guidance_scale", 3.0)
    written = write_all(builtin, inputs, settings)
    training, use = (written["t2i"][name].parts for name in ("training", "use"))
    sampling = replace(settings.sampling, group_size=settings.eval.held_out_group, guidance=3.0)
    for some, plain, part in zip(in_parts(inputs["t2i"]), training, use, strict=True):
        wanted = rollout(builtin, some, sampling, settings.seed)
        ids = part.completions.completion_ids
        assert torch.equal(ids, wanted.completions.completion_ids)
        assert not torch.equal(ids, plain.completions.completion_ids)
    found = compare(builtin, written, written, settings).figures
    assert found["t2i"]["use"].keys() == found["t2i"]["training"].keys()
    differ = found["t2i"]["use"]["base_likelihood"]["base"]
    assert differ != found["t2i"]["training"]["base_likelihood"]["base"]
    (tmp_path / "eval.json").write_text(json.dumps({"held_out": found}))
    page = write_report(tmp_path).read_text()
    assert "Drawing, as sampled in training" in page and "Drawing, as the model is used" in page


def test_a_model_that_did_not_move_is_unchanged(builtin: Any) -> None:
    inputs: Any = {d: Scenes().held_out(d, 0, 8) for d in ("t2i", "i2t")}
    written = write_all(builtin, inputs, config(*SMALL))
    found = compare(builtin, written, write_all(builtin, inputs, config(*SMALL)), config(*SMALL))
    assert found.figures["verdict"] == "unchanged"
    assert found.figures["t2i"]["training"]["base_likelihood"]["change"]["value"] == 0


def test_a_model_that_draws_one_picture_for_all_is_suspicious(
    builtin: Any, monkeypatch: Any
) -> None:
    """However likely the base finds the inputs."""
    inputs: Any = {"t2i": Scenes().held_out("t2i", 0, 8)}
    settings = config(*SMALL)
    base = write_all(builtin, inputs, settings)

    def collapsed(*args: Any) -> Rollout:
        found = rollout(*args)
        found.completions.completion_ids[:] = 3
        return found

    monkeypatch.setattr("viceversa.measure.outputs.rollout", collapsed)
    tuned = write_all(builtin, inputs, settings)
    found = compare(builtin, base, tuned, settings).figures
    assert found["verdict"] == "suspicious" and "different inputs" in found["sentence"]


def figures(**changes: tuple[float, float]) -> dict[str, Any]:
    made: dict[str, Any] = {"variety": {"base": 0.4, "tuned": 0.39}}
    for name, (low, high) in changes.items():
        made[name] = {"change": Change((low + high) / 2, low, high)}
    return made


@pytest.mark.parametrize(
    ("base", "own", "word"),
    [
        ((0.1, 0.3), (0.1, 0.3), "better"),
        ((-0.1, 0.3), (0.1, 0.3), "unchanged"),
        ((-0.3, -0.1), (0.1, 0.3), "suspicious"),
        ((-0.3, -0.1), (-0.3, -0.1), "worse"),
    ],
)
def test_verdict(base: Any, own: Any, word: str) -> None:
    found = of_direction("drawing", figures(base_likelihood=base, own_likelihood=own), 64)
    assert found.word == word
    few = of_direction("drawing", figures(base_likelihood=base, own_likelihood=own), 7)
    assert few.word == "unchanged" and "7 inputs are too few" in few.why


def test_harm_to_how_the_model_is_used_counts() -> None:
    """And nothing else of it: a gain there alone is not what training did."""
    good = figures(base_likelihood=(1, 2), own_likelihood=(1, 2))
    same = figures(base_likelihood=(-1, 1), own_likelihood=(-1, 1))
    bad = figures(base_likelihood=(-2, -1), own_likelihood=(-2, -1))
    odd = figures(base_likelihood=(-2, -1), own_likelihood=(1, 2))

    def word(training: Any, use: Any) -> str:
        return of_decodings("drawing", {"training": training, "use": use}, 64).word

    assert word(good, same) == "better" and word(same, good) == "unchanged"
    assert word(good, bad) == "worse" and word(bad, good) == "worse"
    assert word(bad, odd) == "suspicious" and word(odd, bad) == "suspicious"
    why = of_decodings("drawing", {"training": good, "use": bad}, 64).why
    assert why.startswith("drawing as the model is used got worse")
    assert of_decodings("drawing", {"training": good}, 64).word == "better"


def test_the_worst_direction_counts() -> None:
    good = of_direction("drawing", figures(base_likelihood=(1, 2), own_likelihood=(1, 2)), 64)
    bad = of_direction("captions", figures(base_likelihood=(-2, -1), own_likelihood=(-2, -1)), 64)
    assert together({"t2i": good, "i2t": bad}).word == "worse"


def test_the_sentence_reads_as_one() -> None:
    """On the page it follows a full stop, on the console a colon."""
    good, bad, same = (
        of_direction(task, figures(base_likelihood=ends, own_likelihood=ends), 64)
        for task, ends in (("drawing", (1, 2)), ("captions", (-2, -1)), ("captions", (-1, 1)))
    )
    said = together({"t2i": good, "i2t": same}).why
    assert said.startswith(
        "Drawing got better by the base's own judgement (+1.500 [+1.000, +2.000] nats a token); "
        "captions: no change that can be told (+0.000 [-1.000, +1.000] nats a token). Look at"
    )
    assert together({"i2t": bad}).why.startswith("Captions got worse by the base's own judgement")
    odd = of_direction("drawing", figures(base_likelihood=(-2, -1), own_likelihood=(1, 2)), 64)
    said = together({"t2i": odd}).why
    assert said.startswith("Suspicious. Drawing: the tuned model finds its outputs better")


def test_endless_captions_are_suspicious() -> None:
    found = figures(base_likelihood=(1, 2), own_likelihood=(1, 2))
    found["never_stops"] = {"base": 0.0, "tuned": 0.2}
    assert of_direction("captions", found, 64).word == "suspicious"


def test_change_of_means_covers_the_truth() -> None:
    """In 95 of 100 draws, about."""
    hits = 0
    for seed in range(200):
        torch.manual_seed(seed)
        found = change_of_means([0.0] * 64, (torch.randn(64) + 0.3).tolist())
        hits += found.low <= 0.3 <= found.high
    assert 180 <= hits <= 199
