"""`viceversa audit`: on the built-in world, on pairs, on unpaired inputs; wrong inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders import random_chameleon, random_emu3, save
from small_memory import few_rows_fit
from viceversa import models
from viceversa.audit import groups
from viceversa.audit.audit import audit, of_labelled, scenes_of
from viceversa.audit.groups import Judge
from viceversa.audit.measures import ACCURACY, GAIN, MIXED, MORE, RANKING, SPREAD
from viceversa.audit.pairs import corrupt, score
from viceversa.cli import main
from viceversa.config import ModelConfig
from viceversa.measure.pairs import pair_rewards
from viceversa.models.base import Adapter
from viceversa.scenes.examples import examples_of
from viceversa.scenes.language import caption
from viceversa.scenes.render import render
from viceversa.scenes.rewards import verified
from viceversa.scenes.spec import draw_specs
from viceversa.types import DIRECTIONS, opposite

SPECS = draw_specs(1, 2, "test")
TEXTS = [caption(s) for s in SPECS]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with photos/, prompts.txt and pairs.jsonl."""
    (tmp_path / "photos").mkdir()
    lines = []
    for i, (spec, text) in enumerate(zip(SPECS, TEXTS, strict=True)):
        Image.fromarray(render(spec)).save(tmp_path / "photos" / f"{i:02d}.png")
        lines.append(json.dumps({"text": text, "image": f"photos/{i:02d}.png"}))
    (tmp_path / "photos" / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "prompts.txt").write_text("\n".join([*TEXTS, ""]))
    return tmp_path


def figures(place: Path, *words: str) -> dict[str, Any]:
    out = place / "audit.json"
    assert main(["audit", *words, "--output", str(out)]) == 0
    assert not list(place.glob(".*partial"))
    return json.loads(out.read_text())


def test_on_the_built_in_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("builtin", "--inputs=7", "--group-size=4", "--seed=2")
    found = figures(tmp_path, *words)
    assert list(found["sources"]) == ["scenes"]
    for direction in ("t2i", "i2t"):
        measured = found["sources"]["scenes"][direction]
        best = [name for name in measured if name.startswith("best of")]
        assert best == ["best of 1 is right", "best of 2 is right", "best of 4 is right"]
        assert 0 <= measured[MIXED]["low"] <= measured[MIXED]["high"] <= 1
        assert f"{ACCURACY}/colours" in measured and f"{MORE}/colours" in measured
        names = [c["name"] for c in found["verdict"]["checks"][direction]]
        assert names == [RANKING, MIXED, GAIN, MORE]
    assert found["settings"] == {
        "group_size": 4,
        "inputs": 7,
        "t2i_own": 0,
        "i2t_own": 0,
        "seed": 2,
    }
    printed = capsys.readouterr().out
    assert "verdict: " in printed and "knows more" in printed
    assert "builtin on its dual reward, reward.t2i_own=0, reward.i2t_own=0" in printed
    assert figures(tmp_path, *words) == found  # the same seed, the same figures
    assert figures(tmp_path, *words, "--own=1")["sources"] != found["sources"]


def test_a_recipes_reward_is_audited(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each direction by its own weight, the model as the recipe loads it; --own counts for more."""
    recipe, load = place / "mine.yaml", models.load_adapter
    recipe.write_text(
        "model: {path: mine, dtype: bfloat16, image_size: 24}\nreward: {t2i_own: 0.5, i2t_own: 1}\n"
    )
    asked: list[ModelConfig] = []
    monkeypatch.setattr(models, "load_adapter", lambda m: asked.append(m) or load(ModelConfig()))
    words = ("--pairs", str(place / "pairs.jsonl"), "--inputs=8")
    found = figures(place, *words, "--config", str(recipe))
    assert asked == [ModelConfig("mine", "bfloat16", 24)] and found["model"] == "mine"
    assert (found["settings"]["t2i_own"], found["settings"]["i2t_own"]) == (0.5, 1)
    assert (
        "mine on its dual reward, reward.t2i_own=0.5, reward.i2t_own=1" in capsys.readouterr().out
    )
    of = {own: figures(place, "builtin", *words, f"--own={own}")["sources"] for own in (0, 0.5, 1)}
    for direction, own in (("t2i", 0.5), ("i2t", 1)):
        mine = found["sources"]["pairs"][direction]
        assert mine == of[own]["pairs"][direction] != of[0]["pairs"][direction]
    both = figures(place, "builtin", *words, "--config", str(recipe), "--own=1")
    assert both["sources"] == of[1] and both["settings"]["t2i_own"] == 1


def test_on_pairs(place: Path) -> None:
    found = figures(place, "--pairs", str(place / "pairs.jsonl"))
    drawing, captions = (found["sources"]["pairs"][d] for d in ("t2i", "i2t"))
    kinds = {name for name in drawing if name.startswith(f"{RANKING}/")}
    assert kinds == {f"{RANKING}/{kind}" for kind in ("blurred", "shuffled", "exchanged")}
    assert {f"{RANKING}/swapped", f"{RANKING}/colour"} <= set(captions)
    assert drawing[RANKING]["value"] > 0.8 and captions[RANKING]["value"] > 0.6
    knows = [m[f"{ACCURACY}/swapped"]["value"] for m in (drawing, captions)]
    assert captions[f"{MORE}/swapped"]["value"] == pytest.approx(knows[0] - knows[1])


def test_on_unpaired_inputs(place: Path) -> None:
    inputs = ["--prompts", str(place / "prompts.txt"), "--images", str(place / "photos")]
    found = figures(place, *inputs, "--inputs=4", "--group-size=4")
    for direction in ("t2i", "i2t"):
        spread = found["sources"]["unpaired"][direction][SPREAD]
        assert spread["value"] > 1 and spread["inputs"] <= 4
    alone = figures(place, *inputs[:2], "--inputs=3", "--group-size=2")
    assert list(alone["sources"]["unpaired"]) == ["t2i"]
    assert any("captions: not measured" in c for c in alone["verdict"]["cautions"])


@pytest.mark.parametrize("build", [random_emu3, random_chameleon])
def test_other_models_on_ones_own_inputs(build: Any) -> None:
    adapter: Adapter = build()
    size = adapter.image_size
    pictures = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    texts = ["a cat", "two cats", "a red cat", "a cat left of a dog"]
    found = audit(Judge(adapter, group_size=2), (texts, pictures), texts, list(pictures))
    assert set(found) == {"pairs", "unpaired"}
    json.dumps(found, default=asdict)


def test_pairs_are_scored_as_rewards_are(builtin: Adapter) -> None:
    """Row by row the dual reward; with the second term the sum of both likelihoods over |x|."""
    pictures = torch.stack([torch.from_numpy(render(s)).permute(2, 0, 1) for s in SPECS])
    found = corrupt(TEXTS, pictures, 0)
    scored = score(builtin, found)
    rows = [0, 3, len(found) - 1]
    texts = [found[r].text for r in rows]
    pixels = torch.stack([found[r].pixels for r in rows])
    read, drawn = (pair_rewards(builtin, d, texts, pixels).numpy() for d in ("t2i", "i2t"))
    n, m = scored.tokens[rows], builtin.image_tokens
    assert scored.rewards("t2i", 0, m)[rows] == pytest.approx(read, abs=1e-4)
    assert scored.rewards("i2t", 0, m)[rows] == pytest.approx(drawn, abs=1e-4)
    assert scored.rewards("t2i", 1, m)[rows] * n == pytest.approx(read * n + drawn * m, abs=1e-2)
    assert scored.rewards("i2t", 1, m)[rows] * m == pytest.approx(read * n + drawn * m, abs=1e-2)


def test_labels_as_rewards_are_perfect(builtin: Adapter) -> None:
    """The verifier in the reward's place ranks 1.0, a random one about 0.5."""
    judge, specs, rng = Judge(builtin, group_size=4), scenes_of(21, 0), np.random.default_rng(0)
    kinds, names = [s.kind for s in specs], [caption(s) for s in specs]
    rights = {d: verified(judge.sample(examples_of(d, specs))) for d in DIRECTIONS}
    for mine in DIRECTIONS:
        right, judged = (np.asarray(rights[d]) for d in (mine, opposite(mine)))
        assert right.any() and not right.all()
        perfect = of_labelled(right.astype(float), right, judged, kinds, names)
        random = of_labelled(rng.random(right.shape), right, judged, kinds, names)
        assert perfect[RANKING].value == 1.0
        assert perfect["best of 4 is right"].value == pytest.approx(right.any(1).mean())
        assert random[RANKING].value == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group-size=1"], "--group-size is 1; it must be at least 2"),
        (["--inputs=1"], "--inputs is 1; it must be at least 2"),
        (["--own=-1"], "--own is -1"),
        (["--config", "nowhere"], "config 'nowhere' is no file, and no recipe"),
        (["--config", "labels.yaml"], "its reward.name is 'verifier', and the audit is of `dual`"),
        (["--pairs", "nowhere.jsonl"], "--pairs is 'nowhere.jsonl'; there is no such file"),
        (["--pairs", "alike.jsonl"], "it takes two pairs of different text"),
        (["--pairs", "lost.jsonl"], "lost.png"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--prompts", "empty.txt"], "empty.txt"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "void"], "--images is 'void'; it holds no picture"),
        (["--output", "void"], "--output is 'void', a folder"),
        (["nowhere"], "model.path is 'nowhere'"),
    ],
)
def test_inputs_that_cannot_be(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "labels.yaml").write_text("reward: {name: verifier}")
    (tmp_path / "empty.txt").write_text("\n\n")
    Image.new("RGB", (24, 24), "red").save(tmp_path / "a.png")
    (tmp_path / "alike.jsonl").write_text('{"text": "a", "image": "a.png"}\n' * 2)
    rows = ('{"text": "a", "image": "a.png"}', '{"text": "b", "image": "lost.png"}')
    (tmp_path / "lost.jsonl").write_text("\n".join(rows))
    assert main(["audit", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "audit.json").exists()


def test_a_model_of_other_pictures_wants_ones_own_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = random_chameleon()
    save(adapter, tmp_path / "model")
    out = tmp_path / "audit.json"
    assert main(["audit", str(tmp_path / "model"), "--output", str(out)]) == 2
    assert "give --pairs, or --prompts and --images" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, viceversa.cli; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
def test_what_memory_holds_is_found_once(builtin: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not again for each direction and each wording."""
    judge, examples = Judge(builtin, group_size=2), examples_of("t2i", scenes_of(4, 0))
    whole = judge.sample(examples)
    rewards = judge.rate(whole)
    refused = few_rows_fit(monkeypatch, groups, fits=2)
    unread: list[int] = []
    honest = groups.dual_reward

    def tight(adapter: Any, sampled: Any, instruction: str, rows: int, *args: Any) -> Any:
        if rows > 3:
            unread.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return honest(adapter, sampled, instruction, rows, *args)

    monkeypatch.setattr(groups, "dual_reward", tight)
    for _ in range(2):
        sampled = judge.sample(examples)
        assert torch.equal(sampled.completions.completion_ids, whole.completions.completion_ids)
        np.testing.assert_allclose(judge.rate(sampled), rewards, atol=1e-4)
    assert refused == unread == [8, 4]
