"""Changes with their intervals, and who taught whom."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from viceversa.report.page import write_report
from viceversa.report.paired import paired_change
from viceversa.report.scores import score_groups
from viceversa.report.skills import skills
from viceversa.scenes.evaluate import by_kind
from viceversa.training.ending import figures_table

N = 200


def outcomes(accuracy: float, n: int = N, seed: int = 0) -> list[bool]:
    return list(np.random.default_rng(seed).permutation(n) < accuracy * n)


def figure(seed: int = 0, **accuracies: float) -> dict[str, Any]:
    """A task's figures: each kind right at the share given."""
    kinds = [k for k in accuracies for _ in range(N)]
    right = [bool(r) for a in accuracies.values() for r in outcomes(a, seed=seed)]
    return by_kind(kinds, right, [f"{k} {i % N}" for i, k in enumerate(kinds)])


def test_a_change_is_the_mean_over_kinds_and_its_interval_holds_it() -> None:
    before, after = (
        figure(two=0.2, position=0.5)["kinds"],
        figure(1, two=0.6, position=0.5)["kinds"],
    )
    change = paired_change(before, [after])
    assert change is not None
    assert change.value == pytest.approx(0.2)
    assert change.low < 0.2 < change.high
    # two independent samples of 200 a kind: the sum of their variances, by hand
    error = np.sqrt((0.2 * 0.8 + 0.6 * 0.4 + 2 * 0.25) / N) / 2
    assert (change.high - change.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_what_stays_right_input_by_input_leaves_no_doubt() -> None:
    kinds = figure(two=0.4)["kinds"]
    change = paired_change(kinds, [kinds])
    assert change is not None
    assert (change.value, change.low, change.high) == (0, 0, 0)


def test_outputs_of_one_input_count_as_one() -> None:
    def kinds(right: list[bool], distinct: int) -> dict[str, Any]:
        inputs = [str(i % distinct) for i in range(N)]
        return by_kind(["two"] * N, right, inputs)["kinds"]

    old, new = [False] * N, [i % 10 < 5 for i in range(N)]
    many, few = (paired_change(kinds(old, d), [kinds(new, d)]) for d in (N, 10))
    assert many is not None and few is not None
    assert few.high - few.low > 2 * (many.high - many.low)


def test_three_seeds_are_two_degrees_of_freedom() -> None:
    """Seeds that differ by far widen the interval by Student's t, not by the normal's 1.96."""
    before = figure(two=0.5)["kinds"]
    after = [figure(seed, two=a)["kinds"] for seed, a in enumerate((0.5, 0.6, 0.7), 1)]
    change = paired_change(before, after)
    assert change is not None
    assert change.value == pytest.approx(0.1)
    half = 4.303 * 0.1 / np.sqrt(3)  # t of 2 degrees of freedom, 97.5 %
    assert (change.high - change.low) / 2 == pytest.approx(half, rel=0.2)


def test_runs_are_compared_seed_by_seed() -> None:
    """Seeds that are far apart, each as much better than its other: hardly a doubt."""
    worse = [figure(seed, two=a)["kinds"] for seed, a in enumerate((0.3, 0.5, 0.7), 1)]
    better = [figure(seed, two=a)["kinds"] for seed, a in enumerate((0.4, 0.6, 0.8), 1)]
    change = paired_change(worse, better)
    assert change is not None
    assert change.value == pytest.approx(0.1)
    assert change.low > 0.05 and change.high < 0.15
    crossed = paired_change(worse, better[::-1])
    assert crossed is not None and crossed.low < -0.3


def test_other_inputs_cannot_be_compared() -> None:
    before = by_kind(["two"] * 3, [True] * 3, ["a", "b", "c"])["kinds"]
    with pytest.raises(ValueError, match="two: 3 inputs before and 200 after"):
        paired_change(before, [figure(two=0.5)["kinds"]])
    old = {"two": {"accuracy": 0.5}}  # of a version that kept no outcomes
    assert paired_change(old, [old]) is None


def scores() -> dict[str, Any]:
    return {
        "base": {
            "t2i": figure(position=0.2, colours=0.8, attribution=0.1, single=0.6, two=0.9),
            "i2t": figure(position=0.8, colours=0.3, attribution=0.1, single=0.7, two=0.9),
            "questions": figure(yes=0.9),
        },
        "tuned": {
            "t2i": figure(position=0.5, colours=0.8, attribution=0.4, single=0.75, two=0.9),
            "i2t": figure(position=0.8, colours=0.6, attribution=0.1, single=0.7, two=0.6),
            "questions": figure(yes=0.9),
        },
    }


def test_who_taught_whom() -> None:
    found = {row.name: {t: f.verdict for t, f in row.figures.items()} for row in skills(scores())}
    assert next(iter(found)) == "all skills"
    assert found["all skills"] == {"t2i": "", "i2t": ""}
    assert found["position"] == {"t2i": "taught by captions", "i2t": ""}
    assert found["colours"] == {"t2i": "", "i2t": "taught by drawing"}
    assert found["attribution"] == {"t2i": "beyond both", "i2t": ""}
    assert found["single"] == {"t2i": "up", "i2t": ""}
    assert found["two"] == {"t2i": "", "i2t": "lost"}
    assert found["yes"] == {"questions": ""}


def test_the_table_holds_every_skill_in_eighty_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(figures_table(scores()))
    text = console.export_text()
    assert "0.200 → 0.500 (+0.30 ± 0.0" in text
    assert "taught by captions" in text
    assert "better: " in text and "no change that can be told" in text
    for name in ("all skills", "position", "attribution", "questions", "yes"):
        assert name in text
    assert "…" not in text
    console.print(figures_table({"base": scores()["base"]}))
    text = console.export_text()
    assert "95 % interval over inputs" in text and "0.200 [0.150, 0.261]" in text


def test_the_report_draws_an_arrow_a_skill(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(json.dumps(scores()))
    page = write_report(tmp_path).read_text()
    chart = page[page.index("Each skill, before and after") :]
    for name in ("all skills", "position", "colours", "attribution", "single", "two"):
        assert f">{name}</text>" in chart
    assert "position, drawing" in page and "taught by captions" in page
    (tmp_path / "eval.json").write_text(json.dumps({"base": scores()["base"]}))
    assert "Each skill, before and after" not in write_report(tmp_path).read_text()


def test_the_page_marks_changes_by_their_paired_interval(tmp_path: Path) -> None:
    """Most inputs stay as they were: sure of the change, though the two intervals overlap."""
    right = [i < 0.5 * N for i in range(N)]
    more = [i < 110 for i in range(N)]
    inputs = [str(i) for i in range(N)]
    old, new = (by_kind(["two"] * N, r, inputs) for r in (right, more))
    noisy = figure(1, two=0.5499)  # as much more, by chance on other inputs
    assert old["interval"][1] > new["interval"][0]
    found = {"base": {"t2i": old, "i2t": figure(two=0.5)}, "tuned": {"t2i": new, "i2t": noisy}}
    rows = {row["label"]: row for row in score_groups(found)[0]["rows"]}
    assert (rows["drawing"]["marked"], rows["captions"]["marked"]) == (True, False)
    assert rows["drawing"]["change"] == rows["captions"]["change"] == "+0.050"
    (tmp_path / "eval.json").write_text(json.dumps(found), encoding="utf-8")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert f'+0.050 * <span class="ends">{rows["drawing"]["change_ends"]}' in page
