"""`viceversa push` against a stand-in for the hub, over HTTP, in a process of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub
from builders import random_janus, save
from viceversa.publish.push import files_of, files_table
from viceversa.training.checkpoint import seal

OF_TRAINING = ["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json"]
OF_TRAINING += ["training_args.bin", "scorer.safetensors", ".lock"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model beside what training keeps, sealed as a run seals it."""
    folder = tmp_path_factory.mktemp("run") / "checkpoint-2"
    adapter = random_janus()
    save(adapter, folder)
    for name in OF_TRAINING:
        (folder / name).write_text("of training")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a card\n")
    (folder / "logs").mkdir()
    (folder / "logs" / "model.safetensors").touch()
    seal(folder)
    return folder


@pytest.fixture
def server() -> Iterator[hub.Hub]:
    with hub.running() as found:
        yield found


def run(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def pushed(words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run(["-m", "viceversa", "push", *words], env)


def test_a_model_is_sent_and_no_more(checkpoint: Path, server: hub.Hub, tmp_path: Path) -> None:
    env = hub.environment(server, tmp_path, "good")
    done = pushed([str(checkpoint), "me/tiny", "--private"], env)
    assert done.returncode == 0, done.stderr
    repo = server.repos["me/tiny"]
    assert repo.private
    sent = repo.branches["main"]
    here = {path.name: path.read_bytes() for path in checkpoint.iterdir() if path.is_file()}
    assert here.keys() - sent.keys() == {*OF_TRAINING, "checksums.json"}
    assert {"model.safetensors", "README.md", "config.json"} <= sent.keys()
    assert all(sent[name] == here[name] for name in sent)
    for name in sent:
        assert name in done.stdout
    assert f"model  {server.url}/me/tiny" in done.stdout


@pytest.mark.slow
def test_what_was_sent_is_loaded_by_its_name(
    checkpoint: Path, server: hub.Hub, tmp_path: Path
) -> None:
    env = hub.environment(server, tmp_path, "good")
    done = pushed([str(checkpoint), "me/tiny"], env)
    assert done.returncode == 0, done.stderr
    load = "import viceversa as vv; print(vv.load('me/tiny').adapter.model.num_parameters())"
    loaded = run(["-c", load], env)
    assert loaded.returncode == 0, loaded.stderr
    assert int(loaded.stdout) == random_janus().model.num_parameters()


def test_a_revision_is_a_branch_and_a_second_push_adds_to_what_is_there(
    checkpoint: Path, server: hub.Hub, tmp_path: Path
) -> None:
    env = hub.environment(server, tmp_path, "good")
    server.repos["me/tiny"] = hub.Repo(False, {"main": {"notes.txt": b"mine"}})
    for _ in range(2):
        done = pushed([str(checkpoint), "me/tiny", "--revision", "v2"], env)
        assert done.returncode == 0, done.stderr
    assert f"{server.url}/me/tiny/tree/v2" in done.stdout
    branches = server.repos["me/tiny"].branches
    assert branches["main"] == {"notes.txt": b"mine"}
    assert {"notes.txt", "model.safetensors"} <= branches["v2"].keys()


def test_rewards_that_training_knows_stay_here(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "known"))
    (folder / "known_rewards_0.safetensors").touch()
    sent, left = files_of(folder)
    assert folder / "known_rewards_0.safetensors" in left
    assert {path.name for path in sent} == {path.name for path in files_of(checkpoint)[0]}


def test_a_dry_run_lists_and_asks_the_hub_nothing(
    checkpoint: Path, server: hub.Hub, tmp_path: Path
) -> None:
    done = pushed(
        [str(checkpoint), "me/tiny", "--dry-run"], hub.environment(server, tmp_path, None)
    )
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout and "MB" in done.stdout
    assert "left here: .lock, checksums.json, optimizer.pt" in done.stdout
    assert server.asked == [] and server.repos == {}


@pytest.mark.parametrize(
    ("token", "code", "said"),
    [
        (None, 2, "there is no token for the hub: run `hf auth login`, or set HF_TOKEN"),
        ("unknown", 2, "the hub does not know the token"),
        ("reader", 2, "the token may not write me/tiny"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    checkpoint: Path, server: hub.Hub, tmp_path: Path, token: str | None, code: int, said: str
) -> None:
    done = pushed([str(checkpoint), "me/tiny"], hub.environment(server, tmp_path, token))
    assert done.returncode == code
    assert done.stderr.startswith("viceversa: ") and said in done.stderr
    assert done.stderr.count("\n") == 1
    assert server.repos == {}


def test_a_hub_that_does_not_answer_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    done = pushed([str(checkpoint), "me/tiny"], hub.environment(None, tmp_path, "good"))
    assert done.returncode == 1
    assert done.stderr.startswith("viceversa: me/tiny was not sent: ")
    assert done.stderr.count("\n") == 1


def test_a_private_model_is_not_put_in_a_public_place(
    checkpoint: Path, server: hub.Hub, tmp_path: Path
) -> None:
    server.repos["me/tiny"] = hub.Repo(private=False)
    words = [str(checkpoint), "me/tiny", "--private"]
    done = pushed(words, hub.environment(server, tmp_path, "good"))
    assert done.returncode == 2 and "is there and public" in done.stderr
    assert server.repos["me/tiny"].branches == {"main": {}}


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    from viceversa.cli import main

    assert main(["push", *words, "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_what_is_no_model_to_send_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no model; name one of its checkpoints: checkpoint-2" in refused(
        [str(checkpoint.parent), "me/tiny"], capsys
    )
    assert "is no folder" in refused([str(tmp_path / "none"), "me/tiny"], capsys)
    assert "write owner/name" in refused([str(checkpoint), "tiny"], capsys)
    assert "the name is 'me/ti ny'" in refused([str(checkpoint), "me/ti ny"], capsys)
    damaged = tmp_path / "checkpoint-4"
    damaged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (damaged / name).write_text("whole")
    seal(damaged)
    sent, _ = files_of(damaged)
    assert [path.name for path in sent] == ["config.json", "model.safetensors"]
    assert files_table(sent).title == "to be sent: 2 files, 10 bytes"
    (damaged / "model.safetensors").write_text("w")
    assert "is damaged: model.safetensors has 1 bytes of 5" in refused(
        [str(damaged), "me/tiny"], capsys
    )


@pytest.mark.parametrize(("base", "fine"), [("{here}", False), ("a/b", True), ("builtin", True)])
def test_lora_on_a_folder_of_this_machine_is_to_be_merged_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: str, fine: bool
) -> None:
    base = base.replace("{here}", str(tmp_path))
    settings = {"base_model_name_or_path": base}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(2000))
    if fine:
        assert files_table(files_of(tmp_path)[0]).title == "to be sent: 2 files, 2.0 kB"
    else:
        told = refused([str(tmp_path), "me/tiny"], capsys)
        assert "others do not have" in told and f"viceversa merge {tmp_path}" in told


@pytest.mark.parametrize(("answers", "licence"), [(True, "mit"), (False, "other")])
def test_the_licence_of_a_base_on_the_hub_is_asked_for(
    server: hub.Hub, tmp_path: Path, answers: bool, licence: str
) -> None:
    """Once; where the hub does not answer, the card says to see the base, and soon."""
    card = b"---\nlicense: mit\n---\n# Base\n"
    server.repos["owner/base"] = hub.Repo(False, {"main": {"README.md": card}})
    script = (
        "import time\n"
        "from viceversa.publish.base import base_of\n"
        "began = time.monotonic()\n"
        "for name in ('owner/base', 'owner/base', 'owner/none'):\n"
        "    print(base_of(name).licence['license'])\n"
        "assert time.monotonic() - began < 15, 'waited for the hub'"
    )
    done = run(["-c", script], hub.environment(server if answers else None, tmp_path, None))
    assert done.returncode == 0 and done.stdout.split() == [licence, licence, "other"], done.stderr
    assert sum("owner/base" in asked for asked in server.asked) == 3 * answers  # HEAD, HEAD, GET
