"""The command `push`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from viceversa.cli.console import console
from viceversa.config import ConfigError


def push(
    checkpoint: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> int:
    """Send a model and its card to the Hugging Face hub.

    Lists what is sent, with sizes, then sends it. Optimizer and random state stay here. Takes the
    token of `hf auth login` or HF_TOKEN. Exit code 1 where the hub fails.

    Try:
        viceversa push runs/latest/checkpoint-240 owner/name --dry-run
        viceversa push runs/latest/checkpoint-240 owner/name --private
        viceversa push merged owner/name --revision v2

    Args:
        checkpoint: A checkpoint of a run, or a folder that `merge` or `export` made.
        name: The repository, `owner/name`; it is made where there is none.
        private: Make it private; a public one of that name is refused.
        revision: A branch, made where there is none (default: main).
        dry_run: Only list what would be sent; needs no token.
    """
    from huggingface_hub import get_token

    from viceversa.publish import push as pushing
    from viceversa.publish.base import README
    from viceversa.training.checkpoint import SEAL, damage

    pushing.check_name(name)
    files, left = pushing.files_of(checkpoint)
    if not dry_run and get_token() is None:
        raise ConfigError(
            "there is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may "
            "write"
        )
    if (checkpoint / SEAL).exists() and (why := damage(checkpoint, to_resume=False)):
        raise ConfigError(f"{str(checkpoint)!r} is damaged: {why}")
    console.print(pushing.files_table(files))
    if left:
        told = f"left here: {', '.join(path.name for path in left)}"
        console.print(told, highlight=False, markup=False, soft_wrap=True)
    if checkpoint / README not in files:
        console.print("there is no README.md, so the page on the hub will be empty")
    if dry_run:
        return 0
    try:
        url = pushing.push(checkpoint, name, private, revision)
    except pushing.PushError as error:
        print(f"viceversa: {error}", file=sys.stderr)
        return 1
    console.print(f"model  {url}", highlight=False, soft_wrap=True)
    return 0
