"""What a run was made with: versions, commit, machine."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = [
    "viceversa",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "pillow",
    "tokenizers",
]


def environment() -> dict[str, Any]:
    """Versions, commit, machine and command of this run."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "argv": sys.argv,
    }


@functools.cache  # it does not change while this process runs
def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    here = Path(__file__).resolve()

    def said(*command: str) -> str:
        asked = [git, "-C", str(here.parent), *command]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()

    # installed inside another project's folder, this file is none of that repository's
    return (said("ls-files", here.name) and said("rev-parse", "HEAD")) or None
