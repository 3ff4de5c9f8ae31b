"""Hub datasets, and dataset folders on disk, named in one word: `hf://owner/name/config:split`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from viceversa.config import ConfigError, DataConfig

PREFIX = "hf://"


def parse_hub(name: str) -> tuple[str, str | None, str]:
    """Return path, config and split of `hf://owner/name[/config][:split]` or `hf:///folder[:split]`."""
    path, _, split = name.removeprefix(PREFIX).partition(":")
    config = None
    if not path.startswith(("/", ".")):
        owner, _, rest = path.partition("/")
        title, _, tail = rest.partition("/")
        path, config = f"{owner}/{title}".rstrip("/"), tail or None
    return path, config, split or "train"


def load_hub(name: str, streaming: bool, option: str) -> Any:
    """Load a dataset, memory-mapped, or iterable where streaming.

    Raises ConfigError, naming `option`, for whatever keeps it from being loaded.
    """
    import datasets  # slow to import, and seldom needed

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path, config, split = parse_hub(name)
    try:
        return datasets.load_dataset(path, config, split=split, streaming=streaming)
    except Exception as error:  # builders, network and file systems each have their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{option} is {name!r}; it cannot be loaded: {reason}") from error


def columns_of(dataset: Any) -> dict[str, Any]:
    """Return column name -> feature; a stream that declares none is asked for its first row."""
    features = dataset.features
    if features is None:
        features = dataset._resolve_features().features
    return dict(features or {})


def check_reference(data: DataConfig, option: str, columns: Iterable[str] = ()) -> None:
    """Raise ConfigError where the inputs that `data.<option>` names lack the reference column."""
    wanted, names = data.reference_column, list(columns)
    if not wanted or wanted in names:
        return
    told = f"has columns {names}: choose one" if names else "has no columns: leave it out"
    raise ConfigError(
        f"data.reference_column is {wanted!r}, but data.{option} {getattr(data, option)!r} {told}"
    )
