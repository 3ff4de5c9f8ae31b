"""report.py: one page from whole, partial, broken and hostile run folders."""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from viceversa.report import charts, runs
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


def sample(
    prompt: str,
    right: tuple[bool | None, bool | None] = (None, None),
    names: tuple[str, str] = ("base-000.png", "tuned-000.png"),
    **more: str,
) -> dict[str, Any]:
    """A row of samples.jsonl; what was right, and the pictures' names, before and after."""
    ends = zip(("base", "tuned"), names, right, strict=True)
    made = {who: {"image": f"samples/{name}", "right": ok} for who, name, ok in ends}
    return {"direction": "t2i", **more, "input_text": prompt, **made}


def samples() -> list[dict[str, Any]]:
    prompts = (SCRIPT, "prompt 1", "prompt 2")
    return [sample(prompt, (False, True), kind="single") for prompt in prompts]


def rollouts() -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"group_size": 3, "rewards": [-1.5, -1.25, -1.0]}
    drawn: dict[str, Any] = {"direction": "t2i", "input_text": SCRIPT}
    drawn["outputs"] = [
        {"reward": -1.5, "image": "rollouts/worst.png", "right": None},
        {"reward": -1.25, "image": "rollouts/worst.png", "right": False},
        {"reward": -1.0, "image": "rollouts/best.png", "right": True},
    ]
    written: dict[str, Any] = {"direction": "i2t", "input_image": "rollouts/best.png"}
    written["outputs"] = [
        {"reward": -1.25, "text": "two of them", "right": True},
        {"reward": -1.0, "text": 'a "blue" <b>ring</b>', "right": True},
        {"reward": -1.5, "text": "", "right": False},
    ]
    return [{"step": i, **shared, **side} for i in range(40) for side in (drawn, written)]


def looks() -> list[dict[str, Any]]:
    """Two inputs followed, at three steps."""
    drawn = {"direction": "t2i", "number": 0, "input_text": "a green ring"}
    written = {"direction": "i2t", "number": 0, "input_image": "rollouts/best.png"}
    found: list[dict[str, Any]] = []
    for step in (0, 5, 10):
        image = {"reward": -2 + step / 10, "image": "rollouts/best.png", "right": step > 0}
        text = {"reward": -1.0, "text": f"seen at {step}", "right": False}
        found.append({"step": step, **drawn, "rewards": [image["reward"]], "outputs": [image]})
        found.append({"step": step, **written, "rewards": [-1.0], "outputs": [text]})
    return found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "my-run")


def make_run(run: Path) -> Path:
    """Write a run folder that has everything."""
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
    write_lines(run / "samples/followed.jsonl", looks())
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

    VOID = ("meta", "img", "br", "link", "input")

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
    page = re.sub(r'</?span( class="ends")?>', "", page_of(run_dir))
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


def test_what_the_watch_saw_is_drawn_by_step(run_dir: Path) -> None:
    assert "judged by the base</figcaption" not in page_of(run_dir)
    seen = [
        {"step": step, "t2i": {"base_likelihood": -0.8 + step / 100}, "i2t": {}}
        for step in (1, 2, 99)  # the last one of no step
    ]
    write_lines(run_dir / "watch.jsonl", seen)
    page = page_of(run_dir)
    assert "<figcaption>Held-out prompts, judged by the base" in page
    assert "<figcaption>Held-out pictures, judged by the base" not in page
    run = runs.read_run(run_dir)
    drawn = [row["t2i/held_out"] for row in run.steps if "t2i/held_out" in row]
    assert drawn == pytest.approx([-0.79, -0.78])


#: The strip, the gallery, groups (three outputs and an input picture each) and what was followed.
PICTURES = 3 * 2 + 2 * 3 + 40 * 3 + 40 + 3 + 1


def test_a_page_links_the_pictures_of_its_folder(run_dir: Path) -> None:
    page = write_report(run_dir)
    tags = Tags(page.read_text(encoding="utf-8")).found
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert len(images) == PICTURES
    assert all((page.parent / (image["src"] or "")).is_file() for image in images)
    assert all(image["alt"] and image["loading"] == "lazy" for image in images)
    elsewhere = write_report(run_dir, output=run_dir.parent / "pages/mine.html")
    tags = Tags(elsewhere.read_text(encoding="utf-8")).found
    sources = {attrs["src"] or "" for tag, attrs in tags if tag == "img"}
    assert sources == {f"../my-run/{image['src']}" for image in images}
    assert all((elsewhere.parent / source).is_file() for source in sources)


def test_names_of_pictures_are_quoted(uncurved: Path) -> None:
    """Neither a scheme, nor a query, nor the end of the attribute."""
    names = ["rollouts/javascript:alert(1)?.png", 'rollouts/a"b#c%20.png']
    for name in names:
        picture(uncurved / name)
    outputs = [{"reward": 0, "image": name} for name in names]
    write_lines(uncurved / "rollouts.jsonl", [{"step": 1, "direction": "t2i", "outputs": outputs}])
    sources = [attrs.get("src") for _, attrs in Tags(page_of(uncurved)).found]
    assert "rollouts/javascript%3Aalert%281%29%3F.png" in sources
    assert "rollouts/a%22b%23c%2520.png" in sources


def test_a_single_file_needs_nothing_else(run_dir: Path) -> None:
    target = write_report(run_dir, single_file=True)
    assert target == run_dir / "report-single.html"
    page = target.read_text(encoding="utf-8")
    tags = Tags(page).found
    images = [attrs["src"] or "" for tag, attrs in tags if tag == "img"]
    assert len(images) == PICTURES
    kinds = {source.partition(",")[0] for source in images}
    assert kinds == {"data:image/png;base64", "data:image/webp;base64"}  # small; 384 pixels wide
    assert not {tag for tag, _ in tags} & {"link", "iframe", "object"}
    for _, attrs in tags:
        for key in ("src", "href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:"))
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_the_policy_names_the_one_script_and_style(run_dir: Path) -> None:
    page = page_of(run_dir)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    policy = html.unescape(policy)
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    for tag, attrs in Tags(page).found:
        assert not [name for name in attrs if name == "style" or name.startswith("on")], tag


def test_untrusted_text_is_escaped(uncurved: Path) -> None:
    page = page_of(uncurved)
    assert page.count("<script") == 1 and "<b>ring" not in page
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
    assert "29 of 50" in page and page.count("<h3>Step ") == 79 and ">2 prompts." in page


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


@pytest.mark.parametrize("kept", runs.SOURCES)
def test_any_one_file_is_enough(run_dir: Path, kept: str) -> None:
    for name in runs.SOURCES:
        if name != kept:
            (run_dir / name).unlink()
    page = page_of(run_dir)
    assert all((f"{name} is missing." in page) == (name != kept) for name in runs.SOURCES)
    Tags(page)


def test_base_alone_has_no_difference(uncurved: Path) -> None:
    (uncurved / "eval.json").write_text(json.dumps({"base": {"t2i": block(0.398)}}))
    page = page_of(uncurved)
    assert "0.398 → –" in page and "<td>–</td></tr>" in page


def test_values_of_the_wrong_type_do_not_stop_it(run_dir: Path) -> None:
    rows = [{"step": "x"}, {"step": 1, "loss": float("nan"), "t2i/verified": "?"}, {"step": 2}]
    write_lines(run_dir / "metrics.jsonl", rows)
    group = {"step": None, "outputs": [3], "rewards": "?", "input_text": 4, "direction": None}
    write_lines(run_dir / "rollouts.jsonl", [group, {}])
    write_lines(run_dir / "samples/samples.jsonl", [{"input_text": None, "base": 3}, {}])
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
    (uncurved / "samples/followed.jsonl").unlink()
    outputs = [{"reward": 0, "image": name}]
    write_lines(uncurved / "rollouts.jsonl", [{"step": 1, "direction": "t2i", "outputs": outputs}])
    rows = [sample("p", names=(f"../{name}", f"../{name}"))]
    write_lines(uncurved / "samples/samples.jsonl", rows)
    page = page_of(uncurved)
    assert page.count(note) == 3 and "<img" not in page


def test_groups_are_ranked_by_reward_the_newest_first(uncurved: Path) -> None:
    page = page_of(uncurved)
    steps = [int(step) for step in re.findall(r"<h3>Step (\d+)", page)]
    assert steps == [step for step in range(39, -1, -1) for _ in range(2)]
    first = page[page.index("<h3>Step 39 · picture") :].split("</article>")[0]
    texts = re.findall(r'<p class="text q">(.*?)</p>', first)
    assert texts == ["a &#34;blue&#34; &lt;b&gt;ring&lt;/b&gt;", "two of them", "<em>no words</em>"]
    assert re.findall(r"#(\d)\n<b>(-\d\.\d+)", first) == [
        ("1", "-1.000"),
        ("2", "-1.250"),
        ("3", "-1.500"),
    ]


def test_groups_of_older_runs_show_their_best_and_worst(uncurved: Path) -> None:
    row = {"step": 1, "direction": "i2t", "rewards": [-2.0, -1.0]}
    row |= {"best": {"reward": -1.0, "text": "good"}, "worst": {"reward": -2.0, "text": "bad"}}
    write_lines(uncurved / "rollouts.jsonl", [row])
    page = page_of(uncurved)
    assert re.findall(r"<span>(best|worst)\n<b>(.*?)</b>", page) == [
        ("best", "-1.000"),
        ("worst", "-2.000"),
    ]


def test_every_sample_is_there_with_what_it_is_filtered_by(uncurved: Path) -> None:
    rights = [(False, True), (True, False), (True, True), (False, False), (None, True)]
    rows = [
        sample(f"prompt {i}", right, kind=f"kind {i % 2}") for i in range(20) for right in rights
    ]
    write_lines(uncurved / "samples/samples.jsonl", rows)
    page = page_of(uncurved)
    assert ">100 prompts." in page and page.count('<h3 class="q">prompt ') == 100
    for outcome in ("now right", "now wrong", "right in both", "wrong in both"):
        assert page.count(f'data-outcome="{outcome}"') == 20
        assert f">{outcome} (20)</option>" in page
    assert page.count('data-kind="kind 1"') == 50


def test_followed_inputs_are_shown_step_by_step(uncurved: Path) -> None:
    page = page_of(uncurved)
    assert re.findall(r"<option>(.*?)</option>", page) == [
        "draw: a green ring",
        "caption: picture 1",
    ]
    assert re.findall(r'data-step="(\d+)"', page) == ["0", "5", "10"] * 2
    assert "<b>Step 5</b>: mean reward -1.500, 1 of 1 right" in page
    (uncurved / "samples/followed.jsonl").write_text('{"step": 3}\n{"step"')
    assert "Step by step" not in page_of(uncurved)
    (uncurved / "samples/followed.jsonl").unlink()
    assert "followed.jsonl" not in page_of(uncurved)  # older runs have none


def test_an_output_keeps_its_place_through_training(uncurved: Path) -> None:
    """Whatever its rank, which is said beside it."""
    given = {"direction": "i2t", "number": 0, "input_image": "rollouts/best.png"}
    rewards = {0: [-3.0, -1.0, -2.0], 5: [-1.0, -3.0, -2.0]}
    looks = [
        {"step": step, **given, "rewards": by_sample}
        | {"outputs": [{"reward": r, "text": f"sample {n}"} for n, r in enumerate(by_sample)]}
        for step, by_sample in rewards.items()
    ]
    write_lines(uncurved / "samples/followed.jsonl", looks)
    frames = page_of(uncurved).split('<div class="frame"')[1:]
    for frame, ranks in zip(frames, ("312", "132"), strict=True):
        shown = frame.split("</ol>")[0]
        assert re.findall(r'<p class="text q">(sample \d)', shown) == [
            "sample 0",
            "sample 1",
            "sample 2",
        ]
        assert "".join(re.findall(r"<span>#(\d)", shown)) == ranks


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
    assert runs._steps(rows, []) == [rows[2], rows[1]]


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


def glanced(page: str) -> list[tuple[str, str]]:
    """Return the prompt and the first picture of each drawing on the first screen."""
    strips = re.findall(r'<ul class="glance".*?</ul>', page, re.DOTALL)
    return re.findall(r'src="([^"]+)".*?<p>(.*?)</p>', "".join(strips), re.DOTALL)


def test_the_first_screen_shows_drawings_from_all_over_the_gallery(uncurved: Path) -> None:
    rows = [sample(f"prompt {i}") for i in range(12)]
    rows[4]["tuned"]["image"] = "samples/none.png"
    write_lines(uncurved / "samples/samples.jsonl", rows)
    found = glanced(page_of(uncurved))
    assert {src for src, _ in found} == {"samples/base-000.png"}
    assert [prompt for _, prompt in found] == [f"prompt {i}" for i in (0, 1, 3, 6, 8, 10)]
    (uncurved / "samples/samples.jsonl").unlink()
    assert "glance" not in re.sub(r"<style>.*?</style>", "", page_of(uncurved), flags=re.DOTALL)


def test_the_first_screen_shows_each_kind_once(uncurved: Path) -> None:
    """However often they take turns: to count evenly would meet the same ones again."""
    rows = [sample(f"prompt {i}", kind=f"kind {i % 3}") for i in range(9)]
    write_lines(uncurved / "samples/samples.jsonl", rows)
    assert [prompt for _, prompt in glanced(page_of(uncurved))] == [f"prompt {i}" for i in range(3)]


def test_a_measure_without_a_change_shows_a_plain_dash(uncurved: Path) -> None:
    figures = {"base": 0.5, "tuned": 0.75, "change": {}}
    scores = {"held_out": {"t2i": {"training": {"entropy": figures}}}}
    (uncurved / "eval.json").write_text(json.dumps(scores))
    page = page_of(uncurved)
    assert '<td>0.500</td><td>0.750</td>\n<td>– <span class="ends"></span></td>' in page
    assert "[–, –]" not in page


def test_a_run_on_own_data_shows_its_held_out_drawings_first(uncurved: Path) -> None:
    (uncurved / "samples/samples.jsonl").unlink()
    scores = {"held_out": {"sentence": "Drawing got better."}}
    (uncurved / "eval.json").write_text(json.dumps(scores))
    drawn = {who: {"image": "rollouts/best.png"} for who in ("base", "tuned")}
    written = {who: {"text": "a bus"} for who in ("base", "tuned")}
    rows = [{"direction": "i2t", "input_image": "rollouts/best.png", **written}]
    rows += [{"direction": "t2i", "input_text": SCRIPT, **drawn}, {"direction": "t2i", **drawn}]
    write_lines(uncurved / "samples/held_out.jsonl", rows)
    page = page_of(uncurved)
    found = [(src, html.unescape(prompt)) for src, prompt in glanced(page)]
    assert found == [("rollouts/best.png", SCRIPT), ("rollouts/best.png", "")]
    assert SCRIPT not in page
