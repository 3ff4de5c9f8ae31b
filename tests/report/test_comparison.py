"""Several runs on one page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from test_report import SCRIPT, Tags, block, make_run, picture, sample, write_lines
from viceversa.cli import main
from viceversa.report.charts import CSS_COLOURS, run_style
from viceversa.report.comparison import distinct_names, write_comparison


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two runs that differ in their loss, their figures and one prompt."""
    first, second = (make_run(tmp_path / name) for name in ("first", "second"))
    config = yaml.safe_load((second / "config.yaml").read_text())
    config |= {"loss": {"name": "simpo"}, "output_dir": "elsewhere"}
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    scores = json.loads((second / "eval.json").read_text())
    scores["tuned"]["t2i"] = block(0.512, single=0.9)
    (second / "eval.json").write_text(json.dumps(scores))
    rows = [sample(prompt, (None, prompt == "alone")) for prompt in (SCRIPT, "alone")]
    write_lines(second / "samples/samples.jsonl", rows)
    return [first, second]


def test_results_stand_side_by_side(two: list[Path]) -> None:
    target = write_comparison(two)
    assert target == two[0].parent / "comparison.html"
    page = re.sub(r'</?span( class="ends")?>|</?small>', "", target.read_text(encoding="utf-8"))
    (row,) = re.findall(r'<th scope="row">drawing</th>\n<td>(.*?)</tr>', page, re.DOTALL)[:1]
    assert re.findall(r"0\.\d{3} \[.*?\]", row) == ["0.457 [0.44, 0.48]", "0.512 [0.49, 0.53]"]
    assert row.count("base 0.398") == 2 and "+0.059 *" in row and "+0.114 *" in row


def test_options_that_differ_are_named_and_others_not(two: list[Path]) -> None:
    page = write_comparison(two).read_text(encoding="utf-8")
    options = page[page.index("<summary>Options that differ") :].split("</details>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', options) == ["loss.name"]
    assert "<td>grpo</td><td>simpo</td>" in options


def test_curves_are_a_line_a_run(two: list[Path]) -> None:
    page = write_comparison(two).read_text(encoding="utf-8")
    assert page.count("<figcaption>Reward, prompt to picture") == 1
    for place in range(2):
        colour = CSS_COLOURS[run_style(place)[0]]
        rules = re.findall(rf"\.(\w+) {{ fill: none;[^}}]*stroke: {re.escape(colour)};", page)
        assert len(rules) == 1 and f'class="{rules[0]}"' in page
    assert len({run_style(place) for place in range(32)}) == 32


def test_pictures_of_a_prompt_stand_together(two: list[Path]) -> None:
    target = write_comparison(two)
    page = target.read_text(encoding="utf-8")
    cards = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert len(cards) == 4  # three prompts of the first, one more of the second
    assert cards[0].count("<img ") == 3 and "&lt;script&gt;" in cards[0]
    assert 'data-outcome="some right"' in cards[0]
    assert 'data-run0="right"' in cards[0] and 'data-run1="wrong"' in cards[0]
    assert '<label>second <select name="run1">' in page and 'name="run0"' not in page
    assert "alone" in cards[3] and cards[3].count("<img ") == 2
    images = [attrs["src"] or "" for tag, attrs in Tags(page).found if tag == "img"]
    assert all((target.parent / source).is_file() for source in images)
    assert SCRIPT not in page


def own_data_run(run: Path, said: str, *prompts: str) -> Path:
    """Write what a run on a user's own data keeps: it has no samples.jsonl."""
    picture(run / "samples/made.png")
    rows: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts):
        drawn = {who: {"image": "samples/made.png"} for who in ("base", "tuned")}
        rows.append({"direction": "t2i", "number": number, "input_text": prompt, **drawn})
        photo = f"samples/in-{number}.png"
        picture(run / photo, colour=(len(prompt), 0, 0))
        texts = {who: {"text": f"{who} {said}: {prompt}"} for who in ("base", "tuned")}
        rows.append({"direction": "i2t", "number": number, "input_image": photo, **texts})
    write_lines(run / "samples/held_out.jsonl", rows)
    (run / "env.json").write_text("{}")
    return run


def test_runs_on_own_data_show_the_same_input_side_by_side(tmp_path: Path) -> None:
    """In both directions, whatever its place in each run's file."""
    first = own_data_run(tmp_path / "first", "one", "a bus", SCRIPT, "a boat")
    second = own_data_run(tmp_path / "second", "two", "a boat", "a bus")
    page = write_comparison([first, second]).read_text(encoding="utf-8")
    cards = re.findall(r"<article.*?</article>", page, re.DOTALL)
    assert len(cards) == 6 and 'data-task="Captions"' in page
    (bus,) = (card for card in cards if '<h3 class="q">a bus' in card)
    assert re.findall(r"<figcaption>(\w+)", bus) == ["base", "first", "second"]
    assert bus.count("<img ") == 3 and "mark" not in bus
    (boat,) = (card for card in cards if "tuned one: a boat" in card)
    said = re.findall(r'<p class="text q">(.*?)</p>', boat)
    assert said == ["base one: a boat", "tuned one: a boat", "tuned two: a boat"]
    assert boat.count("<img ") == 1 and SCRIPT not in page


def test_damaged_runs_are_compared_as_far_as_they_go(two: list[Path]) -> None:
    (two[1] / "eval.json").write_text("{")
    (two[1] / "metrics.jsonl").unlink()
    page = write_comparison(two, single_file=True).read_text(encoding="utf-8")
    assert "second: eval.json cannot be read" in page
    assert "No metric was recorded by two runs." in page and 'src="data:' in page


def test_names_are_as_long_as_tells_them_apart() -> None:
    assert distinct_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert distinct_names([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert distinct_names([Path("/b/run")] * 2) == ["run (1)", "run (2)"]


def test_the_command_compares_and_refuses_in_one_line(
    two: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    page = two[0].parent / "new/page.html"
    assert main(["report", *map(str, two), "--output", str(page)]) == 0
    assert page.is_file() and str(page) in capsys.readouterr().out
    assert main(["report", str(two[0]), str(two[0] / "../first")]) == 2
    assert "comes twice" in capsys.readouterr().err
    assert main(["report", str(two[0]), str(two[0].parent / "none")]) == 2
    assert "none' does not exist" in capsys.readouterr().err
    assert main(["report", *map(str, two), "--output", str(two[0])]) == 2
    assert "a folder; name a file" in capsys.readouterr().err
    with pytest.raises(ValueError, match="two runs or more"):
        write_comparison(two[:1])
