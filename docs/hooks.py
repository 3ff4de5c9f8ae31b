"""Hooks of the site: pages made from the source, and links that hold in the repository and here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import posixpath
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from viceversa.config import RECIPES, Config, RewardTerm, recipe_names

ROOT = Path(__file__).resolve().parent.parent

#: Files of the repository that are pages here.
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "LOG.md": "log.md",
    "CHANGELOG.md": "changelog.md",
    "src/viceversa/config/options.py": "configuration.md",
    "src/viceversa/cli/__init__.py": "commands.md",
}

#: Files that a reader of the site downloads, at the same place there.
NOTEBOOKS = [f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
PAGES |= {name: name for name in NOTEBOOKS}

TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    dict[str, Any]: "names and values",
    list[RewardTerm]: "list of rewards",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the source."""
    made = {"configuration.md": configuration_page(), "commands.md": commands_page()}
    for name in ("RESULTS.md", "LOG.md", "CHANGELOG.md"):
        made[PAGES[name]] = relinked((ROOT / name).read_text(encoding="utf-8"), "")
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name in NOTEBOOKS:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    return relinked(markdown, "docs")


def relinked(markdown: str, folder: str) -> str:
    """Turn links to files of the repository, seen from `folder`, into links to pages."""

    def page(found: re.Match[str]) -> str:
        target, hash_, anchor = found[1].partition("#")
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in PAGES:
            target = PAGES[path]
        elif not folder and path.startswith("docs/"):
            target = path.removeprefix("docs/")
        return f"]({target}{hash_}{anchor})"

    return re.sub(r"\]\(((?!\w+:|#)[^)\s]+)\)", page, markdown)


def configuration_page() -> str:
    """Write the reference of all options, from the fields of `viceversa.config.Config`."""
    parts = [CONFIGURATION]
    sections, alone = [], []
    for name, info in fields_of(Config).items():
        if dataclasses.is_dataclass(info.annotation):
            sections.append((name, info.annotation))
        else:
            alone.append(row_of(name, info))
    parts.append("## At the top\n\n" + table(alone))
    for name, section in sections:
        rows = [row_of(f"{name}.{field}", info) for field, info in fields_of(section).items()]
        parts.append(f"## {name}\n\n{' '.join((section.__doc__ or '').split())}\n\n{table(rows)}")
    parts.append("## Recipes\n\nThey come with the package: `viceversa train --config NAME`.")
    for name in recipe_names():
        text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
        parts.append(f"### {name}\n\n```yaml\n{text}```")
    return "\n\n".join(parts) + "\n"


CONFIGURATION = """# Configuration

Every option of a run, made from the source. A YAML file holds them by section:

```yaml
steps: 100
loss:
  name: simpo
```

`viceversa train --config FILE` takes it; `--set loss.name=simpo` sets one on the command line;
`vv.train(..., options={"loss.name": "simpo"})` from Python. A run writes all of them to
`config.yaml` in its folder. An unknown name, or a value outside its bounds, is an error before any
work. An option that you leave out has the default below, unless a recipe says otherwise: the
built-in model takes the recipe `builtin`, a released model the one of its name, and any other model
on a GPU what fits it."""


def fields_of(section: Any) -> dict[str, FieldInfo]:
    """Return the fields of a section by name, those of its bases as the bases describe them."""
    found: dict[str, FieldInfo] = {}
    for kind in section.__mro__:
        for name, info in getattr(kind, "__pydantic_fields__", {}).items():
            if name not in found or not found[name].description:
                found[name] = info
    return found


def row_of(name: str, info: FieldInfo) -> tuple[str, str, str, str]:
    """Return one option: its name, type, default and what it does.

    Raises TypeError for a type without a word for it, ValueError for a field without a docstring.
    """
    if not info.description:
        raise ValueError(f"{name} has no docstring")
    about = " ".join(info.description.split())
    return f"`{name}`", type_words(name, info), default_words(info), about


def type_words(name: str, info: FieldInfo) -> str:
    """Say what an option takes, and its bounds."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(info.annotation))
    for kind, words in TYPES.items():
        if info.annotation == kind:
            bounds = [bound_words(limit) for limit in info.metadata]
            return ", ".join([words, *(bound for bound in bounds if bound)])
    raise TypeError(f"{name} is a {info.annotation}: say in TYPES what that is")


def bound_words(limit: Any) -> str:
    for name, words in (("ge", "at least"), ("le", "at most")):
        if hasattr(limit, name):
            return f"{words} {getattr(limit, name):,}"
    return ""


def default_words(info: FieldInfo) -> str:
    default = info.default
    if default is PydanticUndefined:
        default = info.get_default(call_default_factory=True, validated_data={})
    if default in ("", {}, []):
        return "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def table(rows: list[tuple[str, str, str, str]]) -> str:
    head = ("option", "type", "default", "what it does")
    cells = [head, ("---",) * 4, *rows]
    return "\n".join(f"| {' | '.join(c.replace('|', chr(92) + '|') for c in r)} |" for r in cells)


def commands_page() -> str:
    """Write what every command says to --help."""
    from viceversa.cli import COMMANDS

    parts = ["# Commands\n\nWhat `viceversa COMMAND --help` says, made from the source."]
    parts += [f"## {name}\n\n```text\n{help_of(name)}\n```" for name in COMMANDS]
    return "\n\n".join(parts) + "\n"


def help_of(command: str) -> str:
    """Return the help of a command, as wide as the page."""
    from viceversa.cli import main

    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())
