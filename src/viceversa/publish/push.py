"""Send a model folder to the hub: what is sent is listed first, and training's own state stays."""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from rich.filesize import decimal
from rich.table import Table

from viceversa.config import ConfigError
from viceversa.publish.base import README

#: Files with which training goes on, and which nobody needs to use the model.
OF_TRAINING = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state.*\.pth|trainer_state\.json"
    r"|training_args\.bin|checksums\.json|scorer\.safetensors|known_rewards_\d+\.safetensors|\..*"
)
WEIGHTS = (".safetensors", ".bin")


class PushError(RuntimeError):
    """The hub did not take the folder. The message is one line that says why."""


@dataclass(frozen=True)
class Parcel:
    """The files of a model folder that are sent, with their sizes in bytes, and those that stay."""

    folder: Path
    files: dict[str, int]
    left: tuple[str, ...]

    @property
    def size(self) -> int:
        """Return the bytes that are sent."""
        return sum(self.files.values())


def parcel_of(folder: Path) -> Parcel:
    """Choose what of a model folder is sent: all but training's state, hidden files and folders.

    Raises ConfigError for a folder that holds no model, and for LoRA on a base that others lack.
    """
    if not folder.is_dir():
        raise ConfigError(f"{str(folder)!r} is no folder; name a checkpoint of a run")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    kept = [name for name in names if not OF_TRAINING.fullmatch(name)]
    known = {"config.json", "adapter_config.json"} & set(kept)
    if not known or not any(name.endswith(WEIGHTS) for name in kept):
        saved = sorted(path.name for path in folder.glob("checkpoint-*"))
        hint = f"name one of its checkpoints: {', '.join(saved)}" if saved else "name a checkpoint"
        raise ConfigError(f"{str(folder)!r} holds no model; {hint}")
    if base := local_base(folder):
        raise ConfigError(
            f"{str(folder)!r} is LoRA on {base!r}, a folder that others do not have: push the "
            f"whole model, which `viceversa merge {folder} --output merged` makes"
        )
    left = tuple(name for name in names if name not in kept)
    return Parcel(folder, {name: (folder / name).stat().st_size for name in kept}, left)


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


def parcel_table(parcel: Parcel) -> Table:
    """List the files that are sent, with their sizes."""
    table = Table(title=f"to be sent: {len(parcel.files)} files, {decimal(parcel.size)}")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    for name, size in parcel.files.items():
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


def check_token() -> None:
    """Raise ConfigError where the hub cannot be asked: without a token, or offline."""
    if HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be sent: unset it")
    if get_token() is None:
        raise ConfigError(
            "there is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may "
            "write"
        )


def push(parcel: Parcel, name: str, private: bool, revision: str | None) -> str:
    """Send the files to the repository `owner/name`, which is made if need be; return its address.

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
            folder_path=parcel.folder,
            revision=revision,
            allow_patterns=[glob.escape(file) for file in parcel.files],
            commit_message=f"Upload {parcel.folder.name} with viceversa",
        )
    except ConfigError:  # a ValueError, too
        raise
    except HfHubHTTPError as error:
        raise _of_hub(error, name) from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        why = str(error.__cause__ or error).partition("\n")[0]
        raise PushError(f"{name} was not sent: {why or type(error).__name__}") from error
    return f"{made}/tree/{revision}" if revision else str(made)


def _of_hub(error: HfHubHTTPError, name: str) -> Exception:
    """Say in one line what the hub refused."""
    status = error.response.status_code
    said = error.server_message or str(error).partition("\n")[0]
    if status == 401:
        return ConfigError(f"the hub does not know the token ({said}): run `hf auth login` again")
    if status == 403:
        return ConfigError(f"the token may not write {name} ({said}): take one that may")
    return PushError(f"{name} was not sent: {said} (status {status})")


__all__ = ["README", "Parcel", "PushError", "check_name", "check_token", "parcel_of", "push"]
