"""Options from YAML files, packaged recipes and `section.field=value`; and back into a file."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from viceversa.config.checks import ConfigError, build, check
from viceversa.config.options import Config
from viceversa.config.paths import LONGEST_NAME
from viceversa.files import write_whole

#: Recipes that come with the package; a config's path may be the bare name of one.
RECIPES = Path(__file__).parents[1] / "recipes"

# A file that a run wrote: YAML that is cut is YAML still, so its end is marked.
FIRST_LINE = "# All options of a run. The last line is three dots.\n"
LAST_LINE = "\n..."


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-5 as a number, as people mean it."""


class _Dumper(yaml.SafeDumper):
    """YAML that quotes the text 1e-5, so that it is read as text again."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )


def load_config(
    path: str | Path | None, overrides: Iterable[str | tuple[str, Any]] = (), of_run: bool = False
) -> Config:
    """Return the Config of a YAML file and overrides.

    An override is `section.field=value` in YAML, or a pair of `section.field` and the value itself.
    `path` may be the bare name of a packaged recipe; None is the defaults. Raises ConfigError for
    an unreadable file, for what `build` and `check` refuse and, where the file is `of_run`, written
    by a run, for one that is cut.
    """
    config = build(read_options(path, overrides, of_run))
    check(config)
    return config


def with_options(config: Config, overrides: Iterable[str | tuple[str, Any]]) -> Config:
    """Return a copy of `config` with overrides.

    Raises ConfigError for an unreadable override and for what `build` and `check` refuse.
    """
    changed = build(merged(to_dict(config), read_options(None, overrides)))
    check(changed)
    return changed


def read_options(
    path: str | Path | None, overrides: Iterable[str | tuple[str, Any]] = (), of_run: bool = False
) -> dict[str, Any]:
    """Return the options that a YAML file and overrides name, by section.

    Raises ConfigError for an unreadable file or override; names and values are `build`'s to check.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_yaml(file_of(Path(path)), of_run)
    for override in overrides:
        key, value = override if isinstance(override, tuple) else _split(override)
        *parents, leaf = key.strip().split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"override {override!r}: {parent!r} is not a section")
        node[leaf] = value
    return tree


def _split(override: str) -> tuple[str, Any]:
    key, sep, text = override.partition("=")
    if not sep:
        raise ConfigError(f"override {override!r} has no '='; write section.field=value")
    return key, _parse(text, f"override {override!r}")


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `tree` with the leaves of `over` in place of its own."""
    both = dict(tree)
    for key, value in over.items():
        mine = both.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            value = merged(mine, value)
        both[key] = value
    return both


def recipe_names() -> list[str]:
    """Return the names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def file_of(path: Path) -> Path:
    """Return the file that a name stands for: a bare name that is no file is a packaged recipe's.

    Raises ConfigError for a bare name that is neither.
    """
    if path.parent != Path() or path.suffix or len(os.fsencode(path)) > LONGEST_NAME:
        return path
    if path.is_file():
        return path
    if path.name not in recipe_names():
        known = ", ".join(recipe_names())
        raise ConfigError(f"config {str(path)!r} is no file, and no recipe; recipes: {known}")
    return RECIPES / f"{path.name}.yaml"


def _read_yaml(path: Path, of_run: bool = False) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"config file {str(path)!r} does not exist") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file {str(path)!r} is not YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error}") from error
    if (of_run or text.startswith(FIRST_LINE)) and LAST_LINE not in text:
        raise ConfigError(f"config file {str(path)!r} is cut: its last line, ..., is missing")
    tree = _parse(text, f"config file {str(path)!r}") or {}
    if not isinstance(tree, dict):
        raise ConfigError(f"config file {str(path)!r} holds no fields")
    return tree


def _parse(text: str, what: str) -> Any:
    """Read YAML of sections, lists, text and numbers. Raises ConfigError, naming `what`."""
    try:
        value = yaml.load(text, _Loader)
        json.dumps(value)  # no dates, no sets, nothing that holds itself
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{what} is not YAML of text and numbers: {error}") from error
    return value


def to_dict(config: Config) -> dict[str, Any]:
    """Return every option, by section."""
    return dataclasses.asdict(config)


def save_config(config: Config, path: Path) -> None:
    """Write every option, and an end without which the file is refused as cut."""
    text = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, explicit_end=True)
    write_whole(path, FIRST_LINE + text)
