"""report.py: one page from whole, partial, broken and hostile run folders."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from viceversa.report import charts
from viceversa.report import page as report
from viceversa.report.page import write_report

SCRIPT = "<script>alert('a red circle')</script>"
STEPS = 30


def block(accuracy: float, **kinds: float) -> dict[str, Any]:
    def one(value: float) -> dict[str, Any]:
        return {"accuracy": value, "interval": [value - 0.02, value + 0.02]}

    return {**one(accuracy), "kinds": {kind: {**one(v), "n": 100} for kind, v in kinds.items()}}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 30), side: int = 24) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def metrics() -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "seconds": 2.0 * step,
            "loss": 0.1,
            "grad_norm": 1.0 + step,
            "t2i/reward_mean": -1.2 + step / 100,
            "i2t/reward_mean": -3.0,
            "t2i/verified": 0.4,
            "t2i/ranking": None,
            "t2i/reward_gap": 0.2,
        }
        for step in range(1, STEPS + 1)
    ]


def samples() -> list[dict[str, Any]]:
    row = {"kind": "single", "base": "base-000.png", "tuned": "tuned-000.png"}
    rights = {"base_right": False, "tuned_right": True}
    return [{**row, **rights, "prompt": SCRIPT if i == 0 else f"prompt {i}"} for i in range(3)]


def rollouts() -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"group_size": 3, "rewards": [-1.5, -1.25, -1.0]}
    drawn: dict[str, Any] = {"direction": "t2i", "input_text": SCRIPT}
    drawn["best"] = {"reward": -1.0, "image": "rollouts/best.png", "right": True}
    drawn["worst"] = {"reward": -1.5, "image": "rollouts/worst.png", "right": None}
    written: dict[str, Any] = {"direction": "i2t", "input_image": "rollouts/best.png"}
    written["best"] = {"reward": -1.0, "text": 'a "blue" <b>ring</b>', "right": True}
    written["worst"] = {"reward": -1.5, "text": "", "right": False}
    return [{"step": i, **shared, **side} for i in range(40) for side in (drawn, written)]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run = tmp_path / "my-run"
    for name in ("samples/base-000.png", "rollouts/best.png", "rollouts/worst.png"):
        picture(run / name)
    picture(run / "samples/tuned-000.png", side=384)
    config = {"model": {"path": "builtin"}, "reward": {"name": "dual"}, "loss": {"name": "grpo"}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "schedule": "joint", "steps": 50}))
    (run / "env.json").write_text(
        json.dumps({"seed": 7, "seconds": 3720, "argv": ["train", "a b"]})
    )
    tuned = {
        "t2i": block(0.457, single=0.8),
        "i2t": block(0.83),
        "questions": block(0.7, count=0.6),
    }
    base = {"t2i": {**block(0.398, single=0.7), "held_out": block(0.111)}, "i2t": block(0.828)}
    scores = {"base": base, "tuned": tuned, "settings": {"split": "test"}}
    (run / "eval.json").write_text(json.dumps(scores))
    write_lines(run / "metrics.jsonl", metrics())
    write_lines(run / "samples/samples.jsonl", samples())
    write_lines(run / "rollouts.jsonl", rollouts())
    return run


@pytest.fixture
def uncurved(run_dir: Path) -> Path:
    """Without metrics: curves are the slow part."""
    (run_dir / "metrics.jsonl").unlink()
    return run_dir


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every start tag of a page; an unclosed or misnested element is an error."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_the_figures(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert "0.398 [0.38, 0.42]" in page and "0.457 [0.44, 0.48]" in page and "+0.059 *" in page
    assert "0.398 → 0.457" in page
    assert "+0.002<" in page  # captions: the intervals overlap, so no mark
    assert "95 % intervals over inputs" in page and "Questions by kind" in page
    assert "Held out" in page and "0.111" in page
    assert "30 of 50 (the run is not finished)" in page and "1 h 2 min" in page
    assert "builtin" in page and "grpo" in page and "&#39;a b&#39;" in page
    assert "Base: 0 of 3" in page and "Tuned: 3 of 3" in page
    assert "<b>-1.000</b>" in page and "✓ right" in page and "✗ wrong" in page
    assert "baseline" not in page and "is missing" not in page


def test_curves_with_data_are_drawn_and_others_left_out(run_dir: Path) -> None:
    page = page_of(run_dir)
    assert page.count("<figcaption>Reward, p") == 2
    assert "<figcaption>Verified right" in page and "<figcaption>Gradient norm" in page
    assert "outranks a wrong one" not in page  # all null
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all(f'id="{target}"' in page for target in re.findall(r'href="#([^"]+)"', page))


def test_page_is_self_contained_and_well_formed(run_dir: Path) -> None:
    page = page_of(run_dir)
    tags = Tags(page).found
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == 2 * 3 + 12 * 2 + 12
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
    for _, attrs in tags:
        for key in ("src", "href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:"))
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_untrusted_text_is_escaped(uncurved: Path) -> None:
    page = page_of(uncurved)
    assert "<script" not in page and "<b>ring" not in page
    assert "&lt;script&gt;alert(&#39;a red circle&#39;)" in page


def test_only_the_report_is_written_and_it_repeats(run_dir: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    before = files()
    target = write_report(run_dir)
    page = target.read_bytes()
    assert target == run_dir / "report.html"
    assert files() == {**before, target: page}
    write_report(run_dir)
    assert files() == {**before, target: page}


def test_cut_last_lines_are_named_and_the_rest_is_shown(run_dir: Path) -> None:
    names = ("metrics.jsonl", "rollouts.jsonl", "samples/samples.jsonl")
    for name in names:
        (run_dir / name).write_bytes((run_dir / name).read_bytes()[:-9])
    page = page_of(run_dir)
    assert all(f"{name}: 1 line was cut off or damaged, and left out." in page for name in names)
    assert "29 of 50" in page and "24 of 79" in page and "2 of 2 prompts" in page


def test_damaged_objects_are_named(uncurved: Path) -> None:
    names = ("config.yaml", "env.json", "eval.json")
    for damage, note in (
        ('{"base": {"t2i": [', "cannot be read: it is cut off or damaged."),
        ("[1, 2]", "holds no fields."),
    ):
        for name in names:
            (uncurved / name).write_text(damage, encoding="utf-8")
        page = page_of(uncurved)
        assert all(f"{name} {note}" in page for name in names)


@pytest.mark.parametrize("kept", report.SOURCES)
def test_any_one_file_is_enough(run_dir: Path, kept: str) -> None:
    for name in report.SOURCES:
        if name != kept:
            (run_dir / name).unlink()
    page = page_of(run_dir)
    assert all((f"{name} is missing." in page) == (name != kept) for name in report.SOURCES)
    Tags(page)


def test_base_alone_has_no_difference(uncurved: Path) -> None:
    (uncurved / "eval.json").write_text(json.dumps({"base": {"t2i": block(0.398)}}))
    page = page_of(uncurved)
    assert "0.398 → –" in page and "<td>–</td></tr>" in page


def test_values_of_the_wrong_type_do_not_stop_it(run_dir: Path) -> None:
    rows = [{"step": "x"}, {"step": 1, "loss": float("nan"), "t2i/verified": "?"}, {"step": 2}]
    write_lines(run_dir / "metrics.jsonl", rows)
    group = {"step": None, "best": 3, "rewards": "?", "input_text": 4, "direction": None}
    write_lines(run_dir / "rollouts.jsonl", [group, {}])
    write_lines(run_dir / "samples/samples.jsonl", [{"prompt": None, "base": 3}, {}])
    odd = {"base": {"t2i": {"accuracy": None, "interval": 1, "kinds": {"single": 3}}}, "tuned": []}
    (run_dir / "eval.json").write_text(json.dumps(odd))
    (run_dir / "config.yaml").write_text("model: 3\nreward:\nsteps: many\n")
    page = page_of(run_dir)
    assert "loss is not finite at 1 of 2 steps." in page
    assert "eval.json holds no figures." in page


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("../outside.png", "outside the run folder"),
        ("rollouts/link.png", "outside the run folder"),
        ("rollouts/none.png", "is not there"),
        ("config.yaml", "cannot be read as a picture"),
        ("nul\0.png", "cannot be read as a picture"),
    ],
)
def test_pictures_stay_inside_the_folder(uncurved: Path, name: str, note: str) -> None:
    outside = uncurved.parent / "outside.png"
    picture(outside)
    (uncurved / "rollouts/link.png").symlink_to(outside)
    best = {"reward": 0, "image": name}
    write_lines(uncurved / "rollouts.jsonl", [{"step": 1, "direction": "t2i", "best": best}])
    write_lines(uncurved / "samples/samples.jsonl", [{"prompt": "p", "base": f"../{name}"}])
    page = page_of(uncurved)
    assert page.count(note) == 2 and "<img" not in page


def test_the_newest_groups_of_both_directions_are_shown(uncurved: Path) -> None:
    both = [{"step": 1, "direction": "i2t"}] * 3
    drawn = [{"step": step, "direction": "t2i"} for step in range(2, 99)]
    write_lines(uncurved / "rollouts.jsonl", both + drawn)
    steps = [int(step) for step in re.findall(r"<h3>Step (\d+)", page_of(uncurved))]
    assert steps == [*range(98, 77, -1), 1, 1, 1]


def test_samples_are_capped_and_evenly_spaced(uncurved: Path) -> None:
    rows = [{"prompt": f"prompt {i}", "base": "base-000.png"} for i in range(96)]
    write_lines(uncurved / "samples/samples.jsonl", rows)
    page = page_of(uncurved)
    assert "48 of 96 prompts" in page
    assert "<h3>prompt 94</h3>" in page and "<h3>prompt 95</h3>" not in page


@pytest.mark.parametrize(
    ("reward", "told"), [("verifier", "reads labels"), ("random", "is random")]
)
def test_baseline_runs_say_so(uncurved: Path, reward: str, told: str) -> None:
    (uncurved / "config.yaml").write_text(yaml.safe_dump({"reward": {"name": reward}}))
    page = page_of(uncurved)
    assert "A baseline run." in page and told in page and "nats per token" not in page


def test_moving_average_by_hand() -> None:
    # window 2: 3; (3 + 5) / 2; (5 + 1) / 2
    points = [(1.0, 3.0), (2.0, 5.0), (3.0, 1.0)]
    assert charts._moving_average(points, 2) == [(1.0, 3.0), (2.0, 4.0), (3.0, 3.0)]


def test_a_resumed_step_counts_once(run_dir: Path) -> None:
    rows = [{"step": 1, "grad_norm": 9.0}, {"step": 2}, {"step": 1, "grad_norm": 4.0}]
    assert report._steps(rows) == [rows[2], rows[1]]


def test_folder_that_is_no_run_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds none of config\.yaml"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", sorted(Path(report.__file__).parent.glob("*.py")))
def test_no_torch_is_imported(file: Path) -> None:
    """Nor anything of the package: the page needs a run folder alone."""
    imported = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    other = {name for name in imported if not name.startswith("viceversa.report")}
    assert not {name.partition(".")[0] for name in other} & {"torch", "transformers", "viceversa"}


def test_inputs_are_counted_by_kind(uncurved: Path) -> None:
    """Names are escaped; a damaged record loses its part alone."""
    rows = [{"kind": "truncated", "skipped": True, "count": 7, "names": [SCRIPT, "b.png"]}]
    counts = {"inputs": 40, "skipped": 7, "kinds": rows}
    record = {"inputs": {"i2t": counts, "t2i": {"inputs": 3, "kinds": "?"}}}
    (uncurved / "env.json").write_text(json.dumps(record))
    page = page_of(uncurved)
    assert "Picture to caption: 40 inputs used,\n7 skipped." in page
    assert "Prompt to picture: 3 inputs used," in page
    assert '<th scope="row">truncated</th><td>skipped</td><td>7</td>' in page
    assert SCRIPT not in page
