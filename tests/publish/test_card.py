"""The model card beside a checkpoint: what it says, and that it stays with the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from builders import random_janus
from measured_figures import HELD_OUT, WORLD
from test_cli import QUICK, save
from viceversa.cli import main
from viceversa.config import Config, ConfigError, load_config
from viceversa.publish.base import base_of
from viceversa.publish.card import Form, add_figures, card_as, make_card, write_card
from viceversa.training.checkpoint import SEAL, damage
from viceversa.training.recorder import Recorder
from viceversa.training.run import _tell_card

INPUTS = {
    "t2i": {"inputs": 4096, "skipped": 3, "held_out": 64},
    "i2t": {"inputs": 12, "skipped": 0, "held_out": 0},
}


def card(*overrides: str, form: Any = "full") -> ModelCard:
    config = load_config(None, ["steps=200", *overrides])
    return ModelCard(make_card(config, 100, INPUTS, form, "JanusForConditionalGeneration"))


def options(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])


def test_it_says_base_data_and_recipe() -> None:
    found = card(
        "model.path=owner/base",
        "data.prompts=hf://me/prompts:train",
        "loss.beta=2",
        "train.learning_rate=1e-5",
        "reward.batch_rows=8",
    )
    front = found.data.to_dict()
    assert front["base_model"] == "owner/base" and front["base_model_relation"] == "finetune"
    assert front["datasets"] == ["me/prompts"]
    assert front["library_name"] == "transformers"
    assert "viceversa" in front["tags"]
    text = found.text
    assert "[owner/base](https://huggingface.co/owner/base)" in text
    assert "100 of 200 steps" in text and "No labels and no reward model took part" in text
    assert "| prompts | `hf://me/prompts:train` | 4,096 | 3 | 64 |" in text
    assert "| pictures | the built-in world | 12 | 0 | 0 |" in text
    # what changes no result is left out
    assert options(text) == {"loss": {"beta": 2.0}, "train": {"learning_rate": 1e-5}}
    assert "Nothing was measured" in text and "arXiv:2506.07963" in text


def test_another_reward_is_named_and_no_more_is_claimed() -> None:
    text = card("reward.name=verifier").text
    assert "The reward was `verifier`." in text and "No labels" not in text


def test_a_long_text_with_a_slash_is_no_path() -> None:
    said = "Say what you see and/or read. " * 20
    found = options(card(f"sampling.instruction={said!r}").text)
    assert found["sampling"]["instruction"] == said


def test_lora_and_the_original_layout_are_told_apart(tmp_path: Path) -> None:
    lora = card("model.path=owner/base", "lora.rank=8", form="lora")
    assert lora.data.to_dict()["library_name"] == "peft"
    assert lora.data.to_dict()["base_model_relation"] == "adapter"
    assert "LoRA of rank 8" in lora.text and "viceversa merge" in lora.text
    write_card(tmp_path, str(lora))
    forms: dict[Form, str | None] = {"merged": "transformers", "original": None}
    for form, library in forms.items():
        text = card_as(tmp_path, form, "JanusForConditionalGeneration")
        assert text is not None
        made = ModelCard(text)
        assert made.data.to_dict().get("library_name") == library
        assert made.data.to_dict()["base_model_relation"] == "finetune"
        assert "viceversa merge" not in made.text and "LoRA of rank 8" in made.text
        assert ("official code" in made.text) == (form == "original")


def test_no_place_of_this_machine_is_named(tmp_path: Path) -> None:
    model = tmp_path / "home" / "my-model"
    model.mkdir(parents=True)
    (tmp_path / "home" / "photos").mkdir()
    settings = Config(output_dir=str(tmp_path / "runs"))
    settings.model.path = str(model)
    settings.data.prompts = str(tmp_path / "home" / "prompts.txt")
    settings.data.images = f"hf://{tmp_path / 'home' / 'photos'}:train"
    settings.data.cache_dir = str(tmp_path / "cache")
    settings.reward.options = {"model": str(model), "power": 2}
    settings.train = {"logging_dir": str(tmp_path / "logs")}
    text = make_card(settings, 1, INPUTS, "full", "Model")
    assert str(tmp_path) not in text and "home" not in text
    for name in ("`my-model`", "`prompts.txt`", "`photos:train`"):
        assert name in text
    assert options(text)["reward"] == {"options": {"model": "my-model", "power": 2}}


def test_the_licence_is_the_bases_or_the_card_says_to_see_it(tmp_path: Path) -> None:
    assert base_of("builtin").licence == {"license": "apache-2.0"}
    unknown = base_of("owner/never-downloaded")
    assert unknown.licence["license"] == "other" and not unknown.licence_known
    assert unknown.licence["license_link"] == "https://huggingface.co/owner/never-downloaded"
    assert "see the base" in card("model.path=owner/never-downloaded").text
    cached = tmp_path / "models--owner--base" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    assert (base_of(str(cached)).hub, base_of(str(cached)).name) == ("owner/base", "owner/base")
    for front, licence in (("license: mit", "mit"), ("{[", "other")):
        (cached / "README.md").write_text(f"---\n{front}\n---\n# Base\n")
        assert base_of(str(cached)).licence["license"] == licence
    # a model that was tuned before hands on what its own card says
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: owner/base\n---\n# x\n")
    found = base_of(str(tmp_path))
    assert (found.hub, found.licence, found.name) == (
        "owner/base",
        {"license": "mit"},
        tmp_path.name,
    )


def test_a_folder_that_was_tuned_before_is_told_from_its_base(tmp_path: Path) -> None:
    """No link calls a folder of this machine by the address of the base on the hub."""
    tuned = tmp_path / "checkpoint-100"
    tuned.mkdir()
    (tuned / "README.md").write_text("---\nbase_model: owner/base\n---\n# x\n")
    text = card(f"model.path={tuned}").text
    assert "`checkpoint-100` (made from [owner/base](https://huggingface.co/owner/base)), " in text
    assert "[checkpoint-100]" not in text


def test_figures_are_added_once_they_are_measured(tmp_path: Path) -> None:
    add_figures(tmp_path, WORLD)
    assert not list(tmp_path.iterdir())  # without a card
    write_card(tmp_path, f"{card()}\nA line of the user's own.\n")
    add_figures(tmp_path, {})
    assert "Nothing was measured" in (tmp_path / "README.md").read_text()
    for figures in (HELD_OUT, {**WORLD, **HELD_OUT}):
        add_figures(tmp_path, figures)
    found: Any = ModelCard.load(tmp_path / "README.md")
    assert "Nothing was measured" not in found.text and "the user's own" in found.text
    assert "| drawing | 0.500 | 0.750 | +0.250 ±" in found.text
    assert found.text.count(HELD_OUT["held_out"]["sentence"]) == 1
    results = {r.task_type: r.metric_value for r in found.data.eval_results or []}
    assert results["text-to-image"] == 0.75 and results["image-to-text"] == 0.4
    assert found.data.model_name == "builtin-viceversa"


def test_the_best_checkpoint_says_whose_the_figures_are(tmp_path: Path) -> None:
    best, last = (tmp_path / f"checkpoint-{step}" for step in (1, 2))
    for folder in (best, last):
        folder.mkdir()
        write_card(folder, str(card()))
    run: Any = Recorder(tmp_path, Config(), checkpoint=last)
    run.best, run.eval = best, WORLD
    _tell_card(run, 2)
    told = (best / "README.md").read_text()
    assert "are in the card of `checkpoint-2`" in told and "Nothing was measured" not in told
    assert "0.750" in (last / "README.md").read_text() and "0.750" not in told


def test_a_card_that_was_broken_by_hand_is_left_alone_or_named(tmp_path: Path) -> None:
    broken = "---\n{[\n---\n# mine\n"
    write_card(tmp_path, broken)
    add_figures(tmp_path, WORLD)
    assert (tmp_path / "README.md").read_text() == broken
    assert card_as(tmp_path, "merged", "Model") == broken  # no card of this package
    write_card(tmp_path, str(card()).replace("---\n", broken[:6] + "\n", 1))
    with pytest.raises(ConfigError, match=r"README\.md begins with lines that are no YAML"):
        card_as(tmp_path, "merged", "Model")


def test_every_checkpoint_has_one_and_merging_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of LoRA, whose library writes a card of its own that names the folder of the base."""
    monkeypatch.chdir(tmp_path)
    save(random_janus(), tmp_path / "model")
    more = ["--set=eval.specs_per_kind=0", "--set=train.save_steps=1", "--set=data.scenes_size=64"]
    words = ["train", "--model", "model", "--output", "run", "--steps", "2", "--lora"]
    assert main([*words, *QUICK, *more, "--set=eval.held_out_inputs=8"]) == 0
    first, last = (tmp_path / "run" / f"checkpoint-{step}" for step in (1, 2))
    sentence = json.loads((tmp_path / "run" / "eval.json").read_text())["held_out"]["sentence"]
    texts = [(folder / "README.md").read_text() for folder in (first, last)]
    for step, text in enumerate(texts, start=1):
        assert f"{step} of 2 steps" in text and "library_name: peft" in text
        assert "| prompts | the built-in world | 64 | 0 | 8 |" in text
        assert str(tmp_path) not in text
    # the model that was measured is the last one; its seal still holds
    assert sentence in texts[1] and "Nothing was measured" in texts[0]
    assert damage(last) is None and "README.md" not in json.loads((last / SEAL).read_text())
    (tmp_path / "merged.partial").mkdir()  # of a merge that was killed
    (tmp_path / "merged.partial" / "old.txt").touch()
    assert main(["merge", "run/checkpoint-2", "--output", "merged"]) == 0
    assert not (tmp_path / "merged" / "old.txt").exists()
    assert not (tmp_path / "merged.partial").exists()
    whole = (tmp_path / "merged" / "README.md").read_text()
    assert "library_name: transformers" in whole and sentence in whole
