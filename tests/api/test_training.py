"""Train from Python: inputs and rewards without a name, resumed runs, several rewards, the hub."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from huggingface_hub import HfApi
from rich.console import Console
from transformers import TrainerCallback

import viceversa as vv
from builders import random_janus, save
from processes import WAIT, launch
from viceversa.api import training
from viceversa.api.training import import_path
from viceversa.config import load_config
from viceversa.data.given import name_of
from viceversa.scenes.language import caption
from viceversa.scenes.render import render_image
from viceversa.scenes.rewards import verifier
from viceversa.scenes.spec import draw_specs

SPECS = draw_specs(0, 1, "train")[:4]
PROMPTS = [caption(spec) for spec in SPECS]
PICTURES = [render_image(spec) for spec in SPECS]
QUICK: dict[str, Any] = {
    "data.prompts_per_step": 2,
    "data.images_per_step": 2,
    "data.scenes_size": 64,
    "sampling.group_size": 4,
    "sampling.max_caption_tokens": 8,
    "eval.specs_per_kind": 0,
    "eval.held_out_group": 2,
    "train.save_steps": 1,
    "train.use_cpu": True,
    "train.learning_rate": 0.003,
}


def redness(rollout: vv.Rollout) -> torch.Tensor:
    assert rollout.pixels is not None
    return rollout.pixels[:, 0].float().mean((1, 2)).view(-1, rollout.group_size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, saved."""
    place = tmp_path_factory.mktemp("model")
    save(random_janus(), place)
    return place


def train(model: Any, out: Path, **given: Any) -> vv.Run:
    given["options"] = {**QUICK, **given.get("options", {})}
    console = Console(file=io.StringIO())
    return vv.train(model, output=out, console=console, **given)


def weights(run: vv.Run) -> dict[str, torch.Tensor]:
    assert run.checkpoint is not None
    return dict(vv.load(run.checkpoint).adapter.model.state_dict())


def numbers(run: vv.Run) -> list[dict[str, float]]:
    """The metrics, but for times and shares of the run."""
    kept = ({k: v for k, v in row.items() if "second" not in k} for row in run.metrics)
    return [{k: v for k, v in row.items() if k != "epoch"} for row in kept]


def test_a_reward_of_ones_own_trains_checkpoints_resumes_and_reports(
    folder: Path, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"prompts": PROMPTS, "reward": redness, "schedule": "t2i"}
    whole = train(vv.load(folder), tmp_path / "whole", steps=4, **asked)
    assert [row["step"] for row in whole.metrics] == [1, 2, 3, 4]
    assert whole.checkpoint == tmp_path / "whole" / "checkpoint-4"
    assert "redness" in whole.report.read_text(encoding="utf-8")
    # the same script, stopped after two steps and started again
    train(vv.load(folder), tmp_path / "two", steps=2, **asked)
    resumed = train(vv.load(folder), tmp_path / "two", steps=4, resume=True, **asked)
    assert numbers(resumed) == numbers(whole)
    for (name, one), other in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(one, other), name


def test_training_moves_the_loaded_model_and_goes_on_from_it(folder: Path, tmp_path: Path) -> None:
    model = vv.load(folder, lora=2)
    before = model.score(PROMPTS, PICTURES).text_given_image
    first = train(model, tmp_path / "first", images=PICTURES, schedule="i2t", steps=2)
    assert first.checkpoint is not None
    assert model.config.path == str(first.checkpoint)
    loaded = vv.load(first.checkpoint)
    after = model.score(PROMPTS, PICTURES).text_given_image
    assert torch.equal(after, loaded.score(PROMPTS, PICTURES).text_given_image)
    assert not torch.equal(after, before)
    # a second run starts where the first ended, and says so
    second = train(model, tmp_path / "second", images=PICTURES, schedule="i2t", steps=1)
    text = (tmp_path / "second" / "config.yaml").read_text(encoding="utf-8")
    assert f"path: {first.checkpoint}" in text
    assert second.checkpoint is not None
    # and the second goes on with the model that it trained
    more = {"images": PICTURES, "schedule": "i2t", "steps": 2}
    third = train(model, tmp_path / "second", resume=True, **more)
    assert third.checkpoint == tmp_path / "second" / "checkpoint-2"


def test_inputs_in_memory_train_as_the_same_files_do(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(PICTURES):
        picture.save(tmp_path / "photos" / f"{i}.png")
    named = {"prompts": tmp_path / "prompts.txt", "images": str(tmp_path / "photos")}
    rows = datasets.Dataset.from_dict({"text": PROMPTS, "image": PICTURES})
    runs = [
        train(str(folder), tmp_path / "files", steps=2, **named),
        train(str(folder), tmp_path / "lists", steps=2, prompts=PROMPTS, images=PICTURES),
        train(str(folder), tmp_path / "rows", steps=2, prompts=rows, images=rows),
    ]
    assert numbers(runs[0]) == numbers(runs[1]) == numbers(runs[2])


def test_a_resumed_run_asks_for_what_it_began_with(folder: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"prompts": PROMPTS, "schedule": "t2i"}
    train(str(folder), tmp_path / "run", steps=1, **asked)
    again = {**asked, "steps": 2, "resume": True}
    with pytest.raises(vv.ConfigError, match=r"data.prompts is 'given in Python: 3, digest"):
        train(str(folder), tmp_path / "run", **{**again, "prompts": PROMPTS[:3]})
    with pytest.raises(vv.ConfigError, match=r"schedule is 'i2t', and the run in .* has 't2i'"):
        train(str(folder), tmp_path / "run", **{**again, "schedule": "i2t"})
    with pytest.raises(vv.ConfigError, match=r"reward.name is 'redness', .* has 'dual'"):
        train(str(folder), tmp_path / "run", **again, reward=_scriptlike(redness))
    del again["prompts"]
    with pytest.raises(vv.ConfigError, match="go on with it from Python"):
        train(str(folder), tmp_path / "run", **again)
    with pytest.raises(vv.ConfigError, match="does not exist"):
        train(str(folder), tmp_path / "nowhere", **again)


def _scriptlike(function: Any) -> Any:
    """The function as a script or notebook would have it: without a module to import it from."""

    def redness(rollout: vv.Rollout) -> torch.Tensor:
        return function(rollout)

    return redness


def test_several_rewards_add_up_with_their_weights(folder: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def brightness(rollout: vv.Rollout) -> torch.Tensor:
        assert rollout.pixels is not None
        seen.append(rollout.pixels.float().mean((1, 2, 3)).view(-1, rollout.group_size))
        return seen[-1]

    rewards = {"random": 0.5, brightness: 2.0}
    asked: dict[str, Any] = {"prompts": PROMPTS, "reward": rewards, "schedule": "t2i"}
    run = train(str(folder), tmp_path / "run", steps=1, **asked)
    assert len(seen) == 1
    alone = train(
        str(folder), tmp_path / "one", steps=1, prompts=PROMPTS, reward="random", schedule="t2i"
    )
    gap = run.metrics[0]["t2i/reward_mean"] - 0.5 * alone.metrics[0]["t2i/reward_mean"]
    assert gap == pytest.approx(2 * float(seen[0].mean()), rel=1e-4)


def test_a_reward_of_another_shape_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(vv.ConfigError, match=r"<lambda> returned a tensor of shape \(3,\)"):
        train(
            str(folder),
            tmp_path / "run",
            steps=1,
            prompts=PROMPTS,
            schedule="t2i",
            reward=lambda rollout: torch.zeros(3),
        )


def test_an_error_in_a_reward_is_raised_with_a_note_that_names_it(
    folder: Path, tmp_path: Path
) -> None:
    def clip(rollout: vv.Rollout) -> torch.Tensor:
        return torch.zeros(1)[3]

    given: dict[str, Any] = {"prompts": PROMPTS, "schedule": "t2i", "steps": 1}
    with pytest.raises(IndexError) as caught:
        train(str(folder), tmp_path / "run", reward=clip, **given)
    line = clip.__code__.co_firstlineno + 1
    note = f"reward clip failed on t2i outputs, at {__file__}, line {line}"
    assert caught.value.__notes__ == [note]


def test_a_function_is_named_by_where_it_can_be_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert import_path(verifier) == "viceversa.scenes.rewards:verifier"
    assert import_path(_scriptlike(verifier)) == "redness"
    assert import_path(lambda rollout: rollout) == "lambda"
    (tmp_path / "mine.py").write_text("def clip(rollout):\n    return rollout\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine  # type: ignore[import-not-found]

    assert import_path(mine.clip) == "mine:clip"
    del sys.modules["mine"]


SETTINGS = "what was not set, for 1 M parameters on a GPU: lora.rank=16"


def decide_aloud(patch: pytest.MonkeyPatch) -> None:
    """Have every run decide something, as it does for a model of one's own on a GPU."""
    honest = training.resolve
    patch.setattr(training, "resolve", lambda *given: (honest(*given)[0], SETTINGS))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_says_what_was_decided(
    rank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide_aloud(monkeypatch)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(training, "run_training", lambda *given: tmp_path)
    console = Console(file=io.StringIO(), width=200)
    vv.train("builtin", output=tmp_path, console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == (f"{SETTINGS}\n" if rank == "0" else "")


@pytest.mark.slow
def test_of_two_processes_one_prints(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, pytest, viceversa as vv\n"
        f"sys.path += {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}\n"
        "from test_training import QUICK, decide_aloud\n"
        "decide_aloud(pytest.MonkeyPatch())\n"
        f"more = {{'train.ddp_timeout': {WAIT}, 'data.scenes_size': 64}}\n"
        f"vv.train({str(folder)!r}, steps=2, output='run', options={{**QUICK, **more}})\n"
    )
    launch(str(script), cwd=tmp_path)
    told = " ".join((tmp_path / "output.txt").read_text().split())
    for words in (SETTINGS, "step 2/2", "held out, without labels", "report run/report.html"):
        assert told.count(words) == 1, words


def test_callbacks_and_the_monitor_see_the_run(folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    def monitor(rollout: vv.Rollout) -> torch.Tensor:
        return torch.ones(len(rollout.examples), rollout.group_size, dtype=torch.bool)

    run = train(
        str(folder),
        tmp_path / "run",
        steps=2,
        prompts=PROMPTS,
        schedule="t2i",
        callbacks=[Watch()],
        monitor=monitor,
    )
    assert steps == [1, 2]
    assert [row["t2i/verified"] for row in run.metrics] == [1.0, 1.0]


def test_a_config_is_taken_as_it_is_and_options_go_over_it(folder: Path, tmp_path: Path) -> None:
    config = vv.Config(schedule="t2i", steps=1)
    config.loss.name = "simpo"
    run = train(str(folder), tmp_path / "run", config=config, prompts=PROMPTS)
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    assert "name: simpo" in text
    assert "prompts_per_step: 2" in text


def test_the_trainer_makes_its_inputs_and_arguments_from_the_config(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vv.Config(steps=2, output_dir=str(tmp_path))
    config.data.scenes_size, config.data.prompts_per_step, config.data.images_per_step = 8, 2, 2
    config.sampling.group_size, config.sampling.max_caption_tokens = 4, 8
    config.model.path = "someone/janus"
    trainer = vv.DualRewardTrainer(vv.load(folder).adapter, config)
    trainer.train()
    assert trainer.state.global_step == 2
    uploads: list[dict[str, Any]] = []

    class Repository:
        repo_id = "someone/tuned"

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: Repository)
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **given: uploads.append(given))
    trainer.args.hub_model_id = "someone/tuned"
    trainer.push_to_hub()
    assert uploads[0]["folder_path"] == str(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "base_model: someone/janus" in card
    assert "viceversa" in card and "arXiv:2506.07963" in card
    assert (tmp_path / "model.safetensors").exists()
    # a new trainer goes on from the checkpoint
    config.steps = 3
    again = vv.DualRewardTrainer(vv.load(folder).adapter, config)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 3


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[vv.Config, Any]]:
    """What training is given, without training."""
    seen: list[tuple[vv.Config, Any]] = []

    def kept(settings: vv.Config, console: Any, resume: bool, given: Any) -> Path:
        seen.append((settings, given))
        return Path("nowhere")

    monkeypatch.setattr(training, "run_training", kept)
    return seen


def test_a_config_s_own_model_is_trained(asked: Any) -> None:
    mine = load_config(None, ["model.path=mine"])
    vv.train(config=mine)
    vv.train(config=vv.Config(), options={"model.path": "mine"})
    vv.train("other", config=mine)
    vv.train(config=vv.Config())
    assert [settings.model.path for settings, _ in asked] == ["mine", "mine", "other", "builtin"]


def test_rewards_of_one_name_are_told_apart(asked: Any) -> None:
    one, two = (lambda rollout: rollout), (lambda rollout: rollout)

    def dual(rollout: Any) -> Any:
        return rollout

    vv.train(config=vv.Config(), reward={one: 1.0, two: 0.5, "dual": 1.0, dual: 2.0})
    ((settings, given),) = asked
    names = [term.name for term in settings.reward.terms()]
    assert len(set(names)) == 4 and names[2] == "dual"
    assert [given.rewards.get(name) for name in names] == [one, two, None, dual]
    with pytest.raises(vv.ConfigError, match=r"reward is \{\}; name one"):
        vv.train(reward={})


def test_a_name_may_hold_any_character(asked: Any) -> None:
    vv.train(
        config=vv.Config(),
        output="runs/\U0001f600",
        options={"sampling.instruction": "\U0001f600?"},
    )
    ((settings, _),) = asked
    assert settings.output_dir == "runs/\U0001f600"
    assert settings.sampling.instruction == "\U0001f600?"


def test_inputs_are_named_by_where_one_ends() -> None:
    assert name_of(["ab", "c"]) != name_of(["a", "bc"])
    assert name_of(["\ud800"]) != name_of(["a"])
