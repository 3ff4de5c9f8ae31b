"""The model that a tuned one was made from, as its card may name it, and its licence."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

README = "README.md"

#: For which the hub is waited for.
HUB_SECONDS = 3
#: A folder of the hub's cache, which holds a model of this name.
CACHED = re.compile(r"^models--([^/]+?)--([^/]+)$")


@dataclass(frozen=True)
class Base:
    """What a card says of the model that was trained."""

    name: str
    """`builtin`, a hub name, or a folder's own name: where it lies is nobody's business."""
    hub: str | None
    """Its name on the hub; None where it has none that is known."""
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
    if folder.is_dir():
        found = _front_matter(folder / README)
        hub = _hub_name(folder) or _only(found.get("base_model"))
        name = _hub_name(folder) or folder.resolve().name
    else:
        found, hub, name = _cached(path) or _fetched(path), path, path
    return Base(name, hub, _licence(found, hub))


def _hub_name(folder: Path) -> str | None:
    """Return the hub name of a folder `models--owner--name/snapshots/commit`; None of others."""
    for part in folder.absolute().parts:
        if match := CACHED.match(part):
            return f"{match[1]}/{match[2]}"
    return None


def _cached(name: str) -> dict[str, Any]:
    try:
        file = try_to_load_from_cache(name, README)
    except HFValidationError:
        return {}
    return _front_matter(Path(file)) if isinstance(file, str) else {}


@functools.cache  # a run asks once, also where the hub does not answer
def _fetched(name: str) -> dict[str, Any]:
    """Return the front matter of a card on the hub; empty where that cannot be asked."""
    try:
        return _front_matter(Path(hf_hub_download(name, README, etag_timeout=HUB_SECONDS)))
    except (OSError, ValueError):  # offline, no such model or card, or no right to read it
        return {}


def _front_matter(file: Path) -> dict[str, Any]:
    """Return the front matter of a card; empty where there is none that can be read."""
    try:
        text = file.read_text(encoding="utf-8")
        return ModelCard(text).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):
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
