"""The model that a tuned one was made from, as its card may name it, and its licence."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    ModelCard,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HTTPError

README = "README.md"

#: For which the hub is waited for.
HUB_SECONDS = 3
#: A folder in the hub's cache, which holds a model of this name.
CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/")
#: What reading a card raises: no file, no YAML in front, or fields that are none of a card's.
UNREADABLE = (OSError, ValueError, TypeError, yaml.YAMLError)


@dataclass(frozen=True)
class Base:
    """What a card says of the model that was trained."""

    name: str
    """`builtin`, a hub name, or a folder's own name: where it lies is nobody's business."""
    hub: str | None
    """Its name on the hub, or that of the model it was made from; None where none is known."""
    licence: dict[str, str]
    """The front matter's `license`, `license_name` and `license_link`."""

    @property
    def licence_known(self) -> bool:
        """Tell whether a card of the base says what its licence is."""
        return self.licence.get("license_name") != "see-the-base"


def base_of(path: str) -> Base:
    """Describe the model at `path`: `builtin`, a folder, or a hub name.

    The licence is the project's for `builtin`, else what the base's own card says, if that is in
    the folder, in the hub's cache or on the hub; else the card says to see the base.
    """
    if path == "builtin":
        return Base("builtin", None, {"license": "apache-2.0"})
    folder = Path(path)
    if not folder.is_dir():
        return Base(path, path, _licence(_on_hub(path), path))
    found = _front_matter(folder / README)
    if cached := CACHED.search(f"{folder.absolute().as_posix()}/"):
        hub = name = "/".join(cached.groups())
    else:
        hub, name = _only(found.get("base_model")), folder.resolve().name
    return Base(name, hub, _licence(found, hub))


@functools.cache  # a run asks once, also where the hub does not answer
def _on_hub(name: str) -> dict[str, Any]:
    """Return the front matter of a hub model's card; empty where it is not to be had."""
    try:
        file = try_to_load_from_cache(name, README)
        if not isinstance(file, str):
            # asked first, as a download tries again and again where the hub does not answer
            get_hf_file_metadata(hf_hub_url(name, README), timeout=HUB_SECONDS)
            file = hf_hub_download(name, README)
    except (OSError, ValueError, HTTPError):  # offline, no such card, or no right to read it
        return {}
    return _front_matter(Path(file))


def _front_matter(file: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty where there is none that can be read."""
    try:
        return ModelCard(file.read_text(encoding="utf-8")).data.to_dict()
    except UNREADABLE:
        return {}


def _only(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    return value if isinstance(value, str) else None


def _licence(found: dict[str, Any], hub: str | None) -> dict[str, str]:
    keys = ("license", "license_name", "license_link")
    known = {key: found[key] for key in keys if isinstance(found.get(key), str)}
    if "license" in known:
        return known
    link = {"license_link": f"https://huggingface.co/{hub}"} if hub else {}
    return {"license": "other", "license_name": "see-the-base", **link}
