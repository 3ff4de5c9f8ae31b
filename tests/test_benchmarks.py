"""The benchmarks run, and end with the figures that RESULTS.md quotes. Times are not looked at."""

from __future__ import annotations

import importlib
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from browser import needs_browser
from viceversa.inference.engines import Plain
from viceversa.inference.fused import Fused
from viceversa.inference.logprobs import completion_logprobs
from viceversa.models.geometry import KNOWN
from viceversa.types import Completion

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a benchmark in this process; what it printed."""

    def run(name: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *argv])
        monkeypatch.syspath_prepend(str(FOLDER))
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def last_line(printed: str) -> dict[str, Any]:
    return json.loads(printed.splitlines()[-1])


BUILTIN = ("--size=builtin", "--prompts=2", "--rounds=1")


def test_rollout_agrees_with_both_baselines(run: Any) -> None:
    printed = run("rollout", *BUILTIN, "--groups=8", "--captions=4")
    assert printed.count("agree in 16 of 16 rows") == 3  # two of pictures, one of captions
    found = last_line(printed)
    pictures, captions = found["builtin t2i 2 x 8"], found["builtin i2t 2 x 8"]
    assert pictures["ratio_transformers"] > 0 and pictures["ratio_peers"] > 0
    assert 0 < captions["mib_ours"] < captions["mib_transformers"]


def test_a_wrong_greedy_token_fails_the_rollout(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    contenders: Any = importlib.import_module("contenders")
    right = contenders.transformers_captions

    def wrong(adapter: Any, *args: Any) -> torch.Tensor:
        ids = right(adapter, *args)
        ids[0, 2] = (ids[0, 2] + 1) % 100
        return ids

    monkeypatch.setattr(contenders, "transformers_captions", wrong)
    with pytest.raises(SystemExit, match=r"greedy tokens differ, unexplained: i2t 2 x 2"):
        run("rollout", *BUILTIN, "--groups=2", "--captions=4", "--directions=i2t", "--no-memory")


def test_only_a_tie_explains_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from agreement import (  # pyright: ignore[reportMissingImports]
        differences,
        predicted,
        rounding,
    )
    from cases import make, prompts_of  # pyright: ignore[reportMissingImports]

    adapter = make("builtin", torch.device("cpu"))
    prompts = prompts_of(adapter, "t2i", 1, 4)
    best = int(predicted(adapter, prompts, torch.zeros(1, 1, dtype=torch.long), 2.0).argmax())
    ours = torch.tensor([[best, 0], [best, 1]])
    theirs = torch.tensor([[best, 0], [(best + 1) % adapter.image_vocab_size, 1]])
    assert differences(adapter, prompts, ours, ours, 2.0) == []
    (other,) = differences(adapter, prompts, ours, theirs, 2.0)
    assert (other.row, other.place) == (1, 0) and not other.tie
    # two ids of one head row are a tie
    head = adapter.model.model.generation_head.vision_head
    with torch.no_grad():
        head.weight[theirs[1, 0]], head.bias[theirs[1, 0]] = head.weight[best], head.bias[best]
    (tie,) = differences(adapter, prompts, ours, theirs, 2.0)
    assert tie.tie and "a tie" in str(tie)
    assert rounding(torch.tensor([1.0, -3.0]), torch.float32) == 96 * 2**-23


def test_the_reward_of_gvu_is_ours_without_the_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from cases import make, prompts_of  # pyright: ignore[reportMissingImports]
    from contenders import gvu_reward  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    adapter = make("builtin", torch.device("cpu"))
    pictures = prompts_of(adapter, "i2t", 2, 4)
    words = torch.randint(4, 90, (2, 5))
    texts = Completion(words, torch.ones_like(words, dtype=torch.bool))
    with torch.no_grad():
        ours = completion_logprobs(adapter, pictures, texts).double().mean(-1)
    theirs = gvu_reward(adapter, pictures, texts)
    assert theirs[0] != theirs[1]
    torch.testing.assert_close(theirs.log(), ours, atol=1e-4, rtol=0)


def test_medium_has_the_token_counts_and_vocabularies_of_janus_pro(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from cases import guidance_of, narrow  # pyright: ignore[reportMissingImports]

    medium, real = narrow(512, 8), KNOWN["janus-pro-1b"]()
    assert medium.vision_config.image_size == real.vision_config.image_size == 384
    assert medium.vision_config.num_image_tokens == medium.vq_config.num_patches**2 == 576
    assert medium.vq_config.num_embeddings == real.vq_config.num_embeddings == 16384
    assert medium.text_config.vocab_size == real.text_config.vocab_size == 102400
    assert guidance_of("medium") == 5


def test_an_exponent_is_the_power_that_was_put_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from fits import exponent  # pyright: ignore[reportMissingImports]

    sizes = [2, 4, 8, 16, 32]
    square = exponent(sizes, [3 * n**2 for n in sizes])
    assert square.slope == pytest.approx(2) and square.last == pytest.approx(2)
    assert square.low == pytest.approx(2) and square.steep
    # a fixed cost hides what the largest sizes show
    hidden = exponent([1, 10, 100, 1000], [1000 + n**1.5 for n in (1, 10, 100, 1000)])
    assert hidden.low < 1 < hidden.last and hidden.steep
    noisy = exponent(
        sizes[::-1], [n * f for n, f in zip(sizes[::-1], (1, 1.2, 0.9, 1.1, 1), strict=True)]
    )
    assert noisy.low < 1 < noisy.high and noisy.high - noisy.low > 0.05
    assert math.isnan(exponent([1, 2], [1, 2]).low)
    for xs, ys in (([1, 2], [0, 1]), ([2, 2], [1, 1])):
        with pytest.raises(ValueError, match="slope of logarithms"):
            exponent(xs, ys)


def test_memory_is_what_the_work_takes_above_what_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from fresh import MIB, Meter  # pyright: ignore[reportMissingImports]

    held = torch.ones(2**24)  # 64 MiB, there before
    meter = Meter(cuda=False)
    meter.begin()
    passing = torch.ones(2**25)
    del passing
    assert 120 < meter.peak() / MIB < 160
    assert held.sum() == 2**24


def test_a_step_is_measured_part_by_part(run: Any) -> None:
    found = last_line(run("step", *BUILTIN, "--group=2"))
    assert set(found) == {"grpo", "simpo"}
    assert all(found[loss][part]["ours"] > 0 for loss in found for part in ("sample", "backward"))


@pytest.mark.slow
def test_growth_goes_on_where_it_stopped(run: Any, tmp_path: Path) -> None:
    figures, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    few = (f"--figures={figures}", "--steps=1", "--axes", "group")
    run("growth", *few, "--most=4")
    first = json.loads(figures.read_text())
    assert set(first["group"]) == {"2", "4"}
    printed = run("growth", *few, "--most=8", f"--plot={plot}")
    then = json.loads(figures.read_text())
    assert set(then["group"]) == {"2", "4", "8"} and then["group"]["4"] == first["group"]["4"]
    assert "| outputs a group | 2 to 8 |" in printed and plot.stat().st_size > 1000


@pytest.mark.slow
def test_scoring_agrees_with_the_peers_and_is_measured_by_vocabulary(run: Any) -> None:
    small = (*BUILTIN, "--group=2", "--captions=4", "--gvu=2")
    memory = last_line(run("score", *small, "--vocabularies", "4096", "32768"))["mib_by_vocabulary"]
    assert memory["32768"]["ours"] < 1.2 * memory["4096"]["ours"] < memory["4096"]["peers"]


@pytest.mark.slow
def test_killed_runs_resume_to_the_same(run: Any) -> None:
    printed = run("kill_resume", "--kills=2")
    assert last_line(printed) == {"kills": 2, "equal": 2}
    assert "killed while sampling" in printed and "killed in a backward pass" in printed


def test_the_places_of_kills_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from kill_resume import EVENTS  # pyright: ignore[reportMissingImports]
    from killed import PLACES  # pyright: ignore[reportMissingImports]

    assert list(PLACES) == list(EVENTS)
    assert all(callable(getattr(owner, name, None)) for owner, name, _ in PLACES.values())


def test_runs_that_differ_in_a_bit_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from kill_resume import differences  # pyright: ignore[reportMissingImports]

    def left(name: str, weight: float, reward: float, seconds: float) -> Path:
        run = tmp_path / name
        (run / "checkpoint-2").mkdir(parents=True)
        save_file({"w": torch.tensor([weight])}, run / "checkpoint-2" / "model.safetensors")
        row = {"step": 2, "reward": reward, "seconds": seconds}
        (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        (run / "rollouts.jsonl").write_text("")
        return run

    one = left("one", 1.0, math.nan, seconds=1.0)
    assert differences(one, left("same", 1.0, math.nan, seconds=2.0)) == []
    assert differences(one, left("weight", 1.0 + 2**-23, math.nan, seconds=1.0)) == [
        "checkpoint-2/model.safetensors"
    ]
    assert differences(one, left("metric", 1.0, 0.5, seconds=1.0)) == ["metrics.jsonl"]


@pytest.mark.parametrize("engine", [Fused, Plain])
def test_the_account_parts_all_of_the_time(
    run: Any, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("viceversa.inference.sampler.engine_of", lambda adapter: engine)
    found = last_line(run("account", *BUILTIN, "--group=2", "--captions=4"))
    for parts in found.values():
        seconds, floors = parts["seconds"], parts["floors"]
        assert set(seconds) == {*floors, "the rest"}
        assert all(x > 0 for x in [*seconds.values(), *floors.values()])
    assert len(found) == 2


@pytest.mark.parametrize(
    "name",
    [
        "ablation",
        "account",
        "audit_verdicts",
        "growth",
        "kill_resume",
        "main_job",
        "plan_check",
        "rollout",
        "same_behaviour",
        "score",
        "step",
        "verdicts",
    ],
)
def test_help(run: Any, name: str) -> None:
    with pytest.raises(SystemExit) as left:
        run(name, "--help")
    assert left.value.code == 0


@pytest.mark.slow
def test_an_ablation_goes_on_where_it_stopped(run: Any, tmp_path: Path) -> None:
    place = ["--figures", str(tmp_path / "figures"), "--output", str(tmp_path / "runs")]
    few = [*place, "--steps=1", "--specs=4", "--cells", "default", "group 4"]
    first = run("ablation", *few, "--share=1/2")
    assert "| default |" in first and "| group 4 |" not in first
    (before,) = tmp_path.glob("figures/*/search/default-1.json")
    stamp = before.stat().st_mtime_ns
    table = run("ablation", *few, f"--plot={tmp_path / 'plot.png'}").splitlines()
    assert "| default |" in table[3] and len(table) == 4  # a plot shows what is there
    table = [line for line in run("ablation", *few).splitlines() if line.startswith("| ")]
    names = [line.split(" | ")[0].removeprefix("| ") for line in table]
    assert names[-6:-3] == ["base", "default", "group 4"]
    assert names[-3:] == ["difference from default", "---", "group 4"]
    assert before.stat().st_mtime_ns == stamp
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_main_job_compares_methods(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    place = ["--figures", str(tmp_path / "figures"), "--output", str(tmp_path / "runs")]
    monkeypatch.syspath_prepend(str(FOLDER))
    measured = importlib.import_module("measured")
    monkeypatch.setattr(measured, "TUNING_SPECS", 4)
    few = ["--methods", "dual", "plain", "--seeds=1", "--specs=4", "--set=steps=1"]
    few += ["--set=eval.held_out_inputs=0"]
    printed = run("main_job", *place, *few)
    for title in ("At temperature 1", "Each model at its own best decoding", "By skill, dual"):
        assert title in printed
    assert printed.count("| dual |") == 2 and printed.count("| plain |") == 4
    assert printed.count("| difference from dual |") == 2
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        "base.json",
        "dual-1.json",
        "plain-1.json",
    }


def test_precision_compares_three(run: Any) -> None:
    found = last_line(run("precision", "--size=builtin", "--prompts=1", "--rounds=1", "--group=2"))
    assert set(found) == {
        f"{what} {how}"
        for what in ("pictures", "captions")
        for how in ("sampled", "scored", "learned")
    }
    for row in found.values():
        assert row["autocast"] > 0 and row["bfloat16"] > 0
        for mean, largest in (row["error_autocast"], row["error_bfloat16"]):
            assert 0 < mean <= largest < 3


@needs_browser
def test_a_report_is_opened(run: Any) -> None:
    printed = run("report", "--pictures=4", "--side=24", "--rounds=1")
    assert printed.count("painted") == 2 and "nan" not in printed
