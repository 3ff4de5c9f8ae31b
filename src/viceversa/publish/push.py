"""Send a model folder to the hub: what is sent is listed first, and training's own state stays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from rich.filesize import decimal
from rich.table import Table

from viceversa.config import ConfigError

#: What stays here: files with which training goes on, hidden ones, and all that lies in folders.
STAY = [
    "optimizer.pt",
    "optimizer.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "trainer_state.json",
    "training_args.bin",
    "checksums.json",
    "scorer.safetensors",
    "known_rewards_*.safetensors",
    ".*",
    "*/*",
]
WEIGHTS = (".safetensors", ".bin")


class PushError(RuntimeError):
    """The hub did not take the folder. The message is one line that says why."""


def files_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a model folder that are sent, and those that stay here.

    Raises ConfigError for a folder that holds no model, and for LoRA on a base that others lack.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is no folder; name a checkpoint of a run")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    sent = list(filter_repo_objects(names, ignore_patterns=STAY))
    known = {"config.json", "adapter_config.json"} & set(sent)
    if not known or not any(name.endswith(WEIGHTS) for name in sent):
        saved = sorted(path.name for path in folder.glob("checkpoint-*"))
        hint = f"name one of its checkpoints: {', '.join(saved)}" if saved else "name a checkpoint"
        raise ConfigError(f"{str(folder)!r} holds no model; {hint}")
    if base := local_base(folder):
        raise ConfigError(
            f"{str(folder)!r} is LoRA on {base!r}, a folder that others do not have: push the "
            f"whole model, which `viceversa merge {folder} --output merged` makes"
        )
    left = [name for name in names if name not in sent]
    return [folder / name for name in sent], [folder / name for name in left]


def local_base(folder: Path) -> str | None:
    """Return the base of a LoRA checkpoint where that is a folder of this machine; else None."""
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = settings.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    if not isinstance(base, str) or base == "builtin":
        return None
    return base if Path(base).is_absolute() or Path(base).exists() else None


def files_table(files: Sequence[Path]) -> Table:
    """List the files that are sent, with their sizes."""
    sizes = {path.name: path.stat().st_size for path in files}
    table = Table(title=f"to be sent: {len(files)} files, {decimal(sum(sizes.values()))}")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for name, size in sizes.items():
        table.add_row(name, decimal(size))
    return table


def check_name(name: str) -> None:
    """Raise ConfigError for what is no name of a repository, `owner/name`."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(f"the name is {name!r}; {error}") from error
    if "/" not in name:
        raise ConfigError(f"the name is {name!r}; write owner/name")


def push(folder: Path, name: str, private: bool, revision: str | None) -> str:
    """Send a model folder to the repository `owner/name`, made if need be; return its address.

    `revision` is a branch, made if need be. Raises ConfigError where the token may not do it or a
    private model would land in a public repository, PushError where the hub or the way to it fails.
    """
    api = HfApi()
    try:
        made = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise ConfigError(
                f"{name} is there and public, and --private asks for a private one: make it "
                "private on the hub first, or choose another name"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            ignore_patterns=STAY,
            commit_message=f"Upload {folder.name} with viceversa",
        )
    except ConfigError:  # a ValueError, too
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _in_one_line(error, name) from error
    return f"{made}/tree/{revision}" if revision else str(made)


def _in_one_line(error: Exception, name: str) -> Exception:
    """Say in one line what the hub refused, or why it could not be asked."""
    why, status = str(error.__cause__ or error), None
    if isinstance(error, HfHubHTTPError):
        why, status = error.server_message or str(error), error.response.status_code
    said = why.partition("\n")[0] or type(error).__name__
    if status == 401:
        return ConfigError(f"the hub does not know the token ({said}): run `hf auth login` again")
    if status == 403:
        return ConfigError(f"the token may not write {name} ({said}): take one that may")
    return PushError(f"{name} was not sent: {said}" + (f" (status {status})" if status else ""))
