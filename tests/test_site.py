"""The site builds, says what the source says, and loads nothing from elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from pydantic import Field

import viceversa as vv
from viceversa.cli import COMMANDS
from viceversa.config import Config, recipe_names

ROOT = Path(__file__).resolve().parent.parent


def load_hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def names_of(section: Any, before: str = "") -> set[str]:
    """Every option of a config by its full name."""
    found = set()
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        inner = dataclasses.is_dataclass(value)
        found |= names_of(value, f"{field.name}.") if inner else {before + field.name}
    return found


def test_the_reference_has_every_option() -> None:
    page = hooks.configuration_page()
    shown = re.findall(r"^\| `([\w.]+)` \| [^|]+ \| [^|]+ \| [^|]{5,} \|$", page, re.MULTILINE)
    assert set(shown) == names_of(Config())
    assert len(shown) == len(set(shown))
    assert "| `loss.beta` | number, at least 0 | `5.0` | SimPO's scale" in page
    assert "| `data.streaming` | true or false | `false` |" in page
    for name in recipe_names():
        assert f"\n### {name}\n" in page


def test_an_option_that_says_too_little_is_found() -> None:
    class Odd:
        __pydantic_fields__ = {  # noqa: RUF012
            "silent": Field(default=1),
            "strange": Field(default=None, description="What it does."),
        }

    Odd.__pydantic_fields__["strange"].annotation = set[int]
    fields = hooks.fields_of(Odd)
    with pytest.raises(ValueError, match="silent"):
        hooks.row_of("odd.silent", fields["silent"])
    with pytest.raises(TypeError, match="strange"):
        hooks.row_of("odd.strange", fields["strange"])


def test_links_hold_in_the_repository_and_on_the_site() -> None:
    told = "[a](../RESULTS.md#training) [b](metrics.md) [c](https://x.org/RESULTS.md) [d](#here)"
    made = "[a](results.md#training) [b](metrics.md) [c](https://x.org/RESULTS.md) [d](#here)"
    assert hooks.relinked(told, "docs") == made
    assert hooks.relinked("[e](docs/scenes.md)", "") == "[e](scenes.md)"
    for path in hooks.PAGES:
        assert (ROOT / path).is_file()


def test_the_commands_are_shown() -> None:
    page = hooks.commands_page()
    for name in COMMANDS:
        assert f"\n## {name}\n\n```text\nusage: viceversa {name} " in page
    assert "\x1b" not in page
    assert max(len(line) for line in page.splitlines() if line.startswith("  ")) <= 100


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", text):
            assert "//" not in tag or 'rel="canonical"' in tag, f"{page}: {tag}"
    results = (tmp_path / "results" / "index.html").read_text(encoding="utf-8")
    row = next(
        x for x in (ROOT / "RESULTS.md").read_text().splitlines() if x.startswith("| dual |")
    )
    assert row.split("|")[2].strip() in results
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert (tmp_path / "notebooks" / path.name).read_bytes() == path.read_bytes()
        assert f'"notebooks/{path.name}"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    python = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    for name in set(vv.__all__) - {"__version__"}:
        assert f'id="viceversa.{name}"' in python or f'href="#viceversa.{name}"' in python, name
