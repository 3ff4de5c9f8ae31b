"""What the documents show is what the source says."""

from __future__ import annotations

import json
import pkgutil
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from test_architecture import ORDER
from viceversa.cli import COMMANDS, main
from viceversa.config import RECIPES, recipe_names
from viceversa.models.loading import builtin_path
from viceversa.plan.plan import GIB
from viceversa.pretrain.recipe import PretrainConfig

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "src" / "viceversa" / "models"
PAGE = (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["janus", "emu3", "chameleon", "single"])
def test_lengths_of_adapters(name: str) -> None:
    said = re.search(rf"`models/{name}\.py` \((\d+)", PAGE)
    assert said is not None
    assert int(said[1]) == len((MODELS / f"{name}.py").read_text().splitlines())


def test_methods_are_where_the_page_says() -> None:
    """`in emu3.py`, `in single.py`: a definition of that name is there."""
    rows = re.findall(r"^\| `(\w+).*\| in `(\w+\.py)`", PAGE, re.MULTILINE)
    assert len(rows) > 6
    for method, file in rows:
        assert f"def {method}(" in (MODELS / file).read_text(), method


PAGES = [
    "README.md",
    "RESULTS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_what_a_page_names_is_there(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Paths from the root, links, modules and what is in them, and the options of commands."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", "")
    for path in re.findall(
        r"(?<![\w/.-])(?:benchmarks|docs|examples|notebooks|src|tests)/[\w./-]*\w", text
    ):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert ((ROOT / page).parent / link).exists(), link
    for name in re.findall(r"\bviceversa(?:\.\w+)+", text):
        pkgutil.resolve_name(name)
    for command, words in re.findall(rf"\bviceversa ({'|'.join(COMMANDS)})\b([^`\n|#]*)", text):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = re.findall(r"--[a-z-]+", capsys.readouterr().out)
        assert set(re.findall(r"--[a-z-]+", words)) <= set(known), f"viceversa {command}{words}"


def test_the_script_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for fewer steps and inputs, and no evaluation."""
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert "steps=20" in script
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names: dict[str, Any] = {}
    less = {"eval.specs_per_kind": 0, "data.prompts_per_step": 4}
    shorter = script.replace("steps=20", f"steps=2, options={less}")
    exec(shorter, names)
    assert [len(names[n]) for n in ("pictures", "captions")] == [4, 4]
    assert (tmp_path / "runs/red/checkpoint-2").is_dir()
    assert names["run"].report.is_file()


def test_every_metric_is_explained() -> None:
    """What the step, the losses and the Trainer note by name has a row in docs/metrics.md."""
    table = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(?:t2i/|i2t/)?(\w+)`", table))
    source = "".join(
        (ROOT / "src/viceversa" / name).read_text(encoding="utf-8")
        for name in ("rl/step.py", "rl/losses.py", "training/trainer.py")
    )
    noted = set(re.findall(r"\"(\w+)\"\]? ?[:=] (?:Mean|Sum|Max)\(", source))
    noted |= set(re.findall(r"\"(\w+)\": [^\n]*\.sum\(\)", source))
    assert len(noted) > 20
    assert noted <= explained


def test_the_signals_are_metrics() -> None:
    """What docs/health.md tells to look at is in docs/metrics.md, under that name."""
    table = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/health.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:t2i/|i2t/)(\w+)`", page))
    assert len(named) > 5
    assert named <= set(re.findall(r"`(?:t2i/|i2t/|replay/)?(\w+)`", table))


def test_the_architecture_is_the_order() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    _, _, packages = page.partition("| package | what it does |")
    rows = [line.split("|")[1] for line in packages.splitlines() if line.startswith("| `")]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == ORDER[:-1]
    for path in re.findall(r"`((?:rl|training|inference|scenes)/\w+\.py)`", page):
        assert (ROOT / "src/viceversa" / path).is_file(), path
    for path in re.findall(r"[\w/]+\.py", (ROOT / "docs/flow.svg").read_text(encoding="utf-8")):
        assert (ROOT / "src/viceversa" / path).is_file(), path


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


PLANNED = [name for name in recipe_names() if not name.startswith("builtin")]
FULL = "janus-pro-7b-full-fsdp2"


def planned(folder: Path, words: str) -> dict[str, Any]:
    """What `viceversa plan` says, every size in GiB."""
    main(["plan", *words.split(), "--json", str(folder / "plan.json")])
    found = json.loads((folder / "plan.json").read_text())
    for phase in found["phases"]:
        phase["memory"] = {part: size / GIB for part, size in phase["memory"].items()}
        phase["peak"] = sum(phase["memory"].values())
    phases = {phase["name"]: phase for phase in found["phases"]}
    return {**found, "phases": phases, "most": phases[found["peak_phase"]]}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANNED)
def test_a_recipe_says_what_its_plan_says(name: str, tmp_path: Path) -> None:
    head = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0]
    command = re.search(rf"viceversa plan (--config {name} .*)", head)
    assert command is not None
    found = planned(tmp_path, command[1])
    said = " ".join(head.replace("#", " ").split())
    for words in (
        f"peak {found['most']['peak']:.1f} GiB of ",
        f"backward pass {found['phases']['backward']['peak']:.1f} GiB;",
        f"{found['trainable'] / 1e6:,.1f} M parameters trained, ",
        f"{found['frozen'] / 1e6:,.1f} M frozen",
    ):
        assert words in said


@pytest.mark.slow
def test_scaling_says_what_the_plan_says(tmp_path: Path) -> None:
    inputs = "--set data.prompts_per_step=512 --set data.images_per_step=512"
    one, eight, many = (
        planned(tmp_path, words)
        for words in (
            "--config janus-pro-7b-lora --gpu h100",
            f"--config {FULL} --gpu h100 --processes 8",
            f"--config {FULL} --gpu h100 --processes 64 {inputs}",
        )
    )
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    every = (one, eight, many)
    assert {x["peak_phase"] for x in every} == {"t2i sampling"}
    held = [x["most"]["memory"]["weights"] + x["most"]["memory"]["optimizer"] for x in every]
    backward = [x["phases"]["backward"]["peak"] for x in every]
    rows = {
        "peak on one H100 80 GB": [
            f"{x['most']['peak']:.0f} GiB, sampling pictures" for x in every
        ],
        "of that, weights and optimizer": [f"{size:.1f} GiB" for size in held],
        "backward pass": [f"{size:.1f} GiB" for size in backward],
    }
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in page
    fewer = planned(tmp_path, "--config janus-pro-7b-lora --gpu h100 --set sampling.batch_rows=64")
    kept = f"--config {FULL} --gpu h100 --processes 8 --set reward.scorer=frozen"
    snapshot = planned(tmp_path, kept)["most"]["memory"]["snapshots"]
    said = " ".join(page.split())
    for words in (
        f"| trained | {one['trainable'] / 1e6:,.1f} M LoRA weights |",
        f"| {eight['trainable'] / 1e6:,.0f} M weights, sharded |",
        f"its optimizer takes {one['most']['memory']['optimizer']:.1f} GiB",
        f"Of the peak, {one['most']['memory']['KV cache']:.0f} GiB are the cache of 128 rows",
        f"batch_rows=64` takes {fewer['most']['peak']:.0f} GiB in all.",
        f"first: {eight['phases']['loading']['peak']:.1f} GiB on each GPU for a moment",
        f"({2 * eight['trainable'] / GIB:.1f} GiB). `schedule=alternate` has one",
        f"in shards ({snapshot:.1f} GiB each on a GPU)",
    ):
        assert words in said, words


def test_the_page_says_what_the_bundled_model_was_shown() -> None:
    """The table of docs/scenes.md, the recipe of `pretrain` and the record beside the weights."""
    page = (ROOT / "docs/scenes.md").read_text(encoding="utf-8")
    record = json.loads((builtin_path() / "pretrain.json").read_text())["config"]
    for what, verb in (("drawn", "draw"), ("read", "read")):
        row = re.search(rf"^\| weight among (\d+) pictures to {verb} \|(.*)\|$", page, re.MULTILINE)
        assert row is not None
        weights = [float(cell) for cell in row[2].split("|")]
        recipe = asdict(PretrainConfig())
        assert weights == record[f"{what}_weights"] == list(recipe[f"{what}_weights"])
        assert int(row[1]) == record[f"{what}_per_step"] == recipe[f"{what}_per_step"]
