"""Every command and every piece of Python in the documents runs, or says why it does not."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import snippets
from original_folders import know_narrow_modules
from snippets import PAGES, ROOT, SHELL, Block, blocks_of, every_block
from viceversa.cli import COMMANDS
from viceversa.config import RECIPES, recipe_names

#: Blocks that need what a test does not have. Find another way before this grows.
MOST_NOT_RUN = 9
BLOCKS = list(every_block())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    snippets.make_world(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    snippets.make_runs(folder)
    return folder


def run_page(page: str, folder: Path, long: bool) -> int:
    """Run the blocks of a page in order; return how many. Not `long`: those that are quick."""
    names: dict[str, Any] = {"__name__": page}
    done, trained = 0, False
    for block in blocks_of(page):
        if block.marker:
            continue
        trained = trained or (block.is_long and block.language == "python")
        if not long and (block.is_long or (trained and block.language == "python")):
            continue  # what follows uses what was trained
        if block.language == "python":
            snippets.run_python(block, names)
        else:
            snippets.run_commands(block, folder)
        done += 1
    return done


def has(page: str, long: bool) -> bool:
    return any(b.is_long == long for b in blocks_of(page) if not b.marker)


def enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: Any, page: str) -> None:
    """Go to a folder with what a reader has, and with runs where the page speaks of any."""
    shutil.copytree(request.getfixturevalue("world"), tmp_path, dirs_exist_ok=True)
    text = (ROOT / page).read_text(encoding="utf-8")
    if "runs/" in text or "CHECKPOINT" in text or "--resume" in text:
        shutil.copytree(request.getfixturevalue("runs"), tmp_path, dirs_exist_ok=True)
    know_narrow_modules(monkeypatch)
    monkeypatch.chdir(tmp_path)


#: Pages that train with commands of half a minute.
SLOW = ("docs/audit-to-benchmark.md",)
QUICK = [
    pytest.param(page, False, marks=[pytest.mark.slow] if page in SLOW else [])
    for page in PAGES
    if has(page, long=False)
]
TRAINED = [(page, True) for page in PAGES if has(page, long=True)]


@pytest.mark.parametrize(
    ("page", "long"), [*QUICK, *(pytest.param(*p, marks=pytest.mark.docs) for p in TRAINED)]
)
def test_blocks_run(
    page: str,
    long: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Those that train are a tier of their own."""
    enter(monkeypatch, tmp_path, request, page)
    assert run_page(page, tmp_path, long) > 0


@pytest.mark.docs
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.is_fresh for b in blocks_of(p))])
def test_blocks_run_in_a_clone(page: str, tmp_path: Path) -> None:
    """They install what they need from the package index."""
    snippets.run_in_a_clone(page, tmp_path)


@pytest.mark.parametrize(
    "block",
    [b for b in BLOCKS if b.language in SHELL and b.source is None],
    ids=lambda block: block.place,
)
def test_options_are_the_commands(block: Block) -> None:
    """Also of blocks that are not run: names, types and what --set sets."""
    for words in block.commands():
        snippets.parse(words)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_help_are_commands(command: str) -> None:
    text = COMMANDS[command].__doc__ or ""
    examples = re.findall(rf"^ +viceversa ({command}\b.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        snippets.parse(shlex.split(example))


@pytest.mark.parametrize("name", recipe_names())
def test_commands_of_recipes_are_commands(name: str) -> None:
    head = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    examples = re.findall(r"viceversa ((?:train|plan)\b[^\n(]*)", head)
    assert examples
    for example in examples:
        snippets.parse(shlex.split(example.rstrip(")")))


def test_few_blocks_are_not_run() -> None:
    reasons = Counter(b.reason for b in BLOCKS if b.reason is not None)
    assert all(reason.startswith("needs ") for reason in reasons)
    assert sum(reasons.values()) <= MOST_NOT_RUN
    assert all(b.reason or b.source or b.is_fresh for b in BLOCKS if b.marker)


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.source is not None], ids=lambda block: block.place
)
def test_an_excerpt_is_the_source(block: Block) -> None:
    assert block.source is not None
    source = (ROOT / block.source).read_text(encoding="utf-8")
    assert snippets.shown_in(block.text, source)
    assert not snippets.shown_in(block.text.replace("class ", "def ", 1) + "nowhere\n", source)
    # pasted and run, it does what it defines
    assert "def main(" not in block.text or block.text.endswith('__main__":\n    main()\n')


def test_a_block_inside_a_list_is_one() -> None:
    found = {b.place: b for b in BLOCKS if b.page == "docs/releasing.md"}
    assert len(found) == 2 and all(b.text[0] != " " for b in found.values())
    tried = [block for block in found.values() if block.commands()]
    assert [block.commands()[0][:3] for block in tried] == [["train", "--steps", "2"]]


def test_a_command_that_is_wrong_is_found(tmp_path: Path) -> None:
    def block(text: str, marker: str = "") -> Block:
        return Block("page", 1, "bash", text, marker)

    with pytest.raises(ValueError, match="rm"):
        block("rm -r runs\n").commands()
    wrong = block("torchrun -m -- viceversa train --stepps 3\n", "not run: needs GPUs")
    ((*words,),) = wrong.commands()
    with pytest.raises(SystemExit):
        snippets.parse(words)
    with pytest.raises(Exception, match="loss"):
        snippets.parse(["train", "--set", "loss.nam=simpo"])
    with pytest.raises(AssertionError, match="ends with 2"):
        snippets.run_commands(block("viceversa score --pairs nowhere.jsonl\n"), tmp_path)
