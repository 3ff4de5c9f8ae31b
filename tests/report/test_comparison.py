"""Several runs on one page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from test_report import SCRIPT, Tags, block, make_run, write_lines
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
    ends = {"base": "base-000.png", "tuned": "tuned-000.png", "tuned_right": False}
    write_lines(
        second / "samples/samples.jsonl", [{"prompt": SCRIPT, **ends}, {"prompt": "alone", **ends}]
    )
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
    assert "alone" in cards[3] and cards[3].count("<img ") == 2
    images = [attrs["src"] or "" for tag, attrs in Tags(page).found if tag == "img"]
    assert all((target.parent / source).is_file() for source in images)
    assert SCRIPT not in page


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
