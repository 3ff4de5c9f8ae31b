"""What the documents show is what the source says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "src" / "viceversa" / "models"
PAGE = (ROOT / "docs" / "new-model.md").read_text(encoding="utf-8")


def blocks() -> list[list[str]]:
    """Runs of lines of each python block, cut where it says `...`."""
    found = []
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        parts = re.split(r"^ *\.\.\.\n", block, flags=re.MULTILINE)
        found.append([part.strip("\n") for part in parts])
    return found


def shown_in(parts: list[str], source: str) -> bool:
    """Each part is there whole, in this order."""
    place = 0
    for part in parts:
        place = source.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True


def test_code_is_the_sources() -> None:
    emu3, models = ((MODELS / name).read_text() for name in ("emu3.py", "__init__.py"))
    assert [len(parts) > 1 for parts in blocks()] == [True, True]
    for parts, source in zip(blocks(), (emu3, models), strict=True):
        assert shown_in(parts, source), parts
    assert not shown_in(["    def nowhere(self)"], emu3)


@pytest.mark.parametrize("name", ["janus", "emu3", "chameleon", "single"])
def test_lengths_of_adapters(name: str) -> None:
    said = re.search(rf"`models/{name}\.py` \((\d+)", PAGE)
    assert said is not None
    assert int(said[1]) == len((MODELS / f"{name}.py").read_text().splitlines())


def test_methods_are_where_the_page_says() -> None:
    """`in emu3.py`, `in single.py`: a definition of that name is there."""
    rows = re.findall(r"^\| `(\w+).*\| in `(\w+\.py)`", PAGE, re.MULTILINE)
    assert len(rows) > 6
    for method, file in rows:
        assert f"def {method}(" in (MODELS / file).read_text(), method
