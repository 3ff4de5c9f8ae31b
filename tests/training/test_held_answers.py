"""Replay: the starting model's answers to questions are learned along, and so stay."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from builders import ADAPTERS, random_janus
from small_runs import check_same_update, config, trained, trainer, weights
from viceversa.config import ConfigError
from viceversa.data.sources import load_questions
from viceversa.inference.logprobs import completion_logprobs
from viceversa.scenes.examples import examples_of
from viceversa.scenes.spec import draw_specs
from viceversa.training.replay import Replay
from viceversa.training.run import train

ASKED = ["replay.questions=scenes", "replay.per_step=6", "replay.max_answer_tokens=4"]


@pytest.mark.parametrize(
    ("loss", "knob"),
    [
        ("simpo", "loss.batch_rows=3"),
        ("grpo", "train.gradient_accumulation_steps=4"),
        ("simpo", "sampling.batch_rows=4"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("grpo", "loss.batch_rows=3"),
                ("simpo", "train.gradient_accumulation_steps=4"),
                ("grpo", "sampling.batch_rows=4"),
            )
        ),
    ],
)
def test_how_rows_are_cut_does_not_change_the_update(tmp_path: Path, loss: str, knob: str) -> None:
    given = [f"loss.name={loss}", *ASKED]
    whole, one = trained(config(tmp_path / "a", *given))
    cut, other = trained(config(tmp_path / "b", *given, knob))
    check_same_update(cut, whole, weights(random_janus()))
    for name in ("replay/loss", "replay/kl"):
        assert other.step_metrics()[name] == pytest.approx(one.step_metrics()[name], abs=1e-4)


@pytest.mark.parametrize("kind", list(ADAPTERS))
def test_the_loss_is_half_the_squared_difference_of_logprobs(tmp_path: Path, kind: str) -> None:
    given = ["schedule=i2t", "replay.weight=0.5", "sampling.temperature=0.7", *ASKED]
    settings = config(tmp_path, *given)
    one = trainer(settings, adapter=ADAPTERS[kind]())
    one.keep_start()
    stream: Any = one.train_dataset
    examples = stream[0]
    micro = one.step.rows(examples, 0, 1)[0][0]
    rows = micro.rows[-1]
    assert (rows.name, rows.direction, len(rows)) == ("replay", "i2t", 6)
    logprobs = completion_logprobs(one.adapter, rows.prompts, rows.completions, 0.7)
    mask = rows.completions.completion_mask
    # they were sampled from the very model that is trained: no divergence yet
    torch.testing.assert_close(rows.drawn_logprobs[mask], logprobs[mask], atol=1e-4, rtol=0)
    losses, metrics = one.step.losses(micro, one.step.logprobs(micro))
    assert float(losses["replay"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert metrics["replay/kl"].value == pytest.approx(0.0, abs=1e-4)
    gap = torch.linspace(-1, 1, mask.numel()).view_as(logprobs) * mask
    moved = replace(micro, rows=[replace(rows, drawn_logprobs=logprobs.detach() + gap)])
    losses, metrics = one.step.losses(moved, [logprobs.detach()])
    wanted = 0.5 * 0.5 * float(gap[mask].square().mean())
    assert float(losses["replay"]) == pytest.approx(wanted, rel=1e-5)
    assert metrics["replay/kl"].value == pytest.approx(float(gap[mask].mean()), abs=1e-5)


def test_answers_stay_where_they_were(tmp_path: Path) -> None:
    """Ten rough steps on captions, with replay and with one that weighs nothing."""
    rough = ["schedule=i2t", "steps=10", "train.optim=adamw_torch", "train.learning_rate=0.01"]
    rough += [*ASKED, "replay.per_step=32"]
    drift = {}
    for weight in (0, 1):
        settings = config(tmp_path / str(weight), *rough, f"replay.weight={weight}")
        _, one = trained(settings)
        replay, pictures = one.step.replay, examples_of("i2t", draw_specs(5, 4, "train"))
        assert isinstance(replay, Replay)
        with one.step.started().restored():
            rows = replay.answered(replay.asked(pictures, 0, 64), 0, settings.sampling)
        with torch.no_grad():
            found = completion_logprobs(one.adapter, rows.prompts, rows.completions)
        gap = (rows.drawn_logprobs - found)[rows.completions.completion_mask]
        drift[weight] = float(gap.mean())
    assert drift[1] < 0.5 * drift[0]  # 0.13 and 1.99 nats a token where this was written


def test_questions_are_drawn_by_the_seed_the_step_and_the_picture() -> None:
    adapter, pictures = random_janus(), examples_of("i2t", draw_specs(0, 1, "train"))
    words = [f"question {n}?" for n in range(50)]
    settings = config(Path("unused"), *ASKED).replay
    asked = Replay(adapter, settings, words, seed=3).asked(pictures, 7, 16)
    assert len(asked) == 16
    assert {e.example_id for e in asked} == {e.example_id for e in pictures}
    again = Replay(adapter, settings, words, seed=3).asked(pictures[2:], 7, 9)
    third = pictures[2].example_id
    of_third, later = ([e.text for e in es if e.example_id == third] for es in (asked, again))
    assert later == of_third[: len(later)] and later
    others = (
        Replay(adapter, settings, words, s).asked(pictures, n, 16) for s, n in ((4, 7), (3, 8))
    )
    for other in others:
        assert [e.text for e in other] != [e.text for e in asked]


def test_the_worlds_questions_say_nothing_about_its_pictures() -> None:
    settings = config(Path("unused"), *ASKED)
    found = load_questions(settings)
    assert len(found) == settings.data.scenes_size
    assert all(text.endswith("?") for text in found)
    assert found == load_questions(settings)


def test_questions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("is it blue?\n\nis it blue?\nhow many are there?\n")
    settings = config(tmp_path / "run", f"replay.questions={path}")
    assert load_questions(settings) == ["is it blue?", "how many are there?"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match=r"^replay\.questions is .*it holds no question"):
        load_questions(settings)
    assert load_questions(config(tmp_path / "run")) == []


def test_without_pictures_nothing_is_replayed(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", "schedule=t2i", "eval.specs_per_kind=0", *ASKED)
    shown = Console(record=True, file=io.StringIO())
    train(settings, shown)
    assert "schedule t2i reads no pictures: nothing is replayed" in shown.export_text()
    assert "replay/loss" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_alternate_replays_where_there_are_pictures(tmp_path: Path) -> None:
    _, one = trained(config(tmp_path, "schedule=alternate", "steps=4", *ASKED))
    rows = [row for row in one.state.log_history if "loss" in row]
    assert ["replay/loss" in row for row in rows] == [False, True, False, True]
    assert all(a != b for a, b in itertools.pairwise(rows))
    assert torch.isfinite(torch.tensor([row["loss"] for row in rows])).all()
