"""The code blocks of the documents, and a folder in which their commands run.

A block is run as it stands, but for fewer steps and outputs. A comment before it says what is not:

    <!-- not run: needs REASON -->    its commands' options are parsed, no more
    <!-- excerpt: PATH -->            it stands in that file, cut where it says `...`
    <!-- in a fresh clone -->         with the page's others, in a clone with its own environment
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hub
import launchers
from original_folders import original_folder, original_weights
from viceversa import cli
from viceversa.cli import COMMANDS, main
from viceversa.cli.runs import Options
from viceversa.config import load_config, recipe_names
from viceversa.models.loading import builtin_path
from viceversa.scenes.language import caption
from viceversa.scenes.render import render_image
from viceversa.scenes.spec import draw_specs

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", "RESULTS.md"]
PAGES += sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))
SHELL = ("bash", "sh")
#: Programs that a script begins with.
SCRIPTED = ("torchrun ", "accelerate ", "pytest ", "python benchmarks/")
IN_A_CLONE = "in a fresh clone"

FENCE = re.compile(
    r"(?:<!-- (?P<marker>[^\n]*) -->\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)

#: What a run of a document's command takes less of.
QUICK = {
    "data.prompts_per_step": 4,
    "data.images_per_step": 4,
    "data.scenes_size": 64,
    "sampling.group_size": 2,
    "eval.specs_per_kind": 1,
    "eval.held_out_per_kind": 1,
    "eval.held_out_inputs": 2,
    "eval.held_out_group": 2,
    "data.cache_dir": "cache",
}
FEWER_STEPS = ["--steps", "2", *(f"--set={name}={value}" for name, value in QUICK.items())]
#: In place of released weights: a model of their class.
STAND_IN = ["--model", "path/to/janus"]
FEWER = {
    "train": FEWER_STEPS,
    "evaluate": ["--specs", "1"],
    "audit": ["--inputs", "8", "--group-size", "2"],
}
#: Commands that take minutes even so, and what needs the models that they leave.
LONG = {"train", "plan", "pretrain", "push"}
#: What a page's commands stand on where it makes no environment itself.
ENVIRONMENT = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e ."
#: Plans that were made: they write nothing, and pages show the same ones.
PLANNED: set[str] = set()
#: Commands whose end takes minutes whatever the options: they are parsed here, and their code runs
#: in tests/pretrain.
PARSED = {"pretrain"}


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    marker: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run, or None."""
        kind, _, words = self.marker.partition(": ")
        return words if kind == "not run" else None

    @property
    def source(self) -> str | None:
        """The file of which it is an excerpt, or None."""
        kind, _, words = self.marker.partition(": ")
        return words if kind == "excerpt" else None

    def commands(self) -> list[list[str]]:
        """Return the words of each of its `viceversa` commands.

        Raises ValueError for a line that is another command, where the block is to be run.
        """
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words:
                continue
            if not self.marker and not self.is_script and words[0] != "viceversa":
                raise ValueError(f"{self.place} runs {words[0]!r}: mark it as not run, and why")
            for at, word in enumerate(words):
                if word.rpartition("/")[2] == "viceversa" and words[at + 1] in COMMANDS:
                    # an array of the shell's is options that another line writes out
                    found.append([w for w in words[at + 1 :] if "[@]" not in w])
        return found

    @property
    def is_script(self) -> bool:
        """Whether it calls other programs than `viceversa`: see `launchers`."""
        return self.text.startswith(("#!", *SCRIPTED))

    @property
    def is_fresh(self) -> bool:
        """Whether it is run in a clone with an environment of its own."""
        return self.marker == IN_A_CLONE

    @property
    def is_long(self) -> bool:
        """Whether it takes minutes: it trains, or plans a large model."""
        if self.language == "python":
            return "vv.train(" in self.text
        return any(words[0] in LONG for words in self.commands()) or self.is_script


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page that hold commands or Python, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        if match["language"] in (*SHELL, "python"):
            line = text.count("\n", 0, match.start()) + 1
            code = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(Block(page, line, match["language"], code, match["marker"] or ""))
    return found


def every_block() -> Iterator[Block]:
    for page in PAGES:
        yield from blocks_of(page)


def shown_in(text: str, source: str) -> bool:
    """Tell whether each part of an excerpt stands whole in the source, in this order."""
    place = 0
    for part in re.split(r"^ *\.\.\.\n", text, flags=re.MULTILINE):
        place = source.find(part.strip("\n"), place)
        if place < 0:
            return False
        place += len(part.strip("\n"))
    return True


def make_world(folder: Path) -> None:
    """Write what a reader has at hand, under the names that the documents give it."""
    specs = draw_specs(0, 3, "train")
    texts = [caption(spec) for spec in specs]
    shutil.copytree(builtin_path(), folder / "path/to/janus")
    original_folder(folder / "Janus-Pro-1B", original_weights(), "model.safetensors")
    (folder / "photos").mkdir()
    (folder / "val2014").mkdir()
    for number, spec in enumerate(specs):
        render_image(spec).save(folder / f"photos/{number}.png")
        render_image(spec).save(folder / f"val2014/{number}.png")
    rows = [{"text": text, "image": f"photos/{n}.png"} for n, text in enumerate(texts)]
    asked = {"text": "Is there a circle in the image?", "label": "yes"}
    files = {
        "prompts.txt": "".join(f"{text}\n" for text in texts),
        "recipe.yaml": "loss:\n  name: simpo\n",
        "questions.txt": "is there a circle?\nhow many squares are there?\n",
        "color_val.txt": "".join(f"{text}\n" for text in texts[:2]),
        "pairs.jsonl": lines(rows),
        "evaluation_metadata.jsonl": lines(
            [{"tag": "colors", "include": [], "prompt": text} for text in texts[:2]]
        ),
        "coco_pope_random.json": lines(
            [{"question_id": n, "image": f"{n}.png", **asked} for n in range(2)]
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    prompts = folder / "ELLA/dpg_bench/prompts"
    prompts.mkdir(parents=True)
    for number, text in enumerate(texts[:2]):
        (prompts / f"{number}.txt").write_text(text, encoding="utf-8")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_runs(folder: Path) -> None:
    """Train the runs that the documents speak of as there already."""
    for run, options in (("latest", []), ("mine", ["--lora"])):
        into = ["--output", str(folder / "runs" / run), *options]
        assert main(["train", *into, *FEWER_STEPS, "--set=eval.specs_per_kind=0"]) == 0


def shortened(words: list[str], folder: Path) -> list[str]:
    """Return a command with fewer steps and outputs, and checkpoints that are there."""
    command, *rest = [_there(word, folder) for word in words]
    fewer = FEWER.get(command, [])
    if command == "train" and any(word.startswith("janus-pro-") for word in rest):
        fewer = [*fewer, *STAND_IN]
    if "--resume" in rest:
        fewer = ["--steps", "3"]
    for name in [word for word in fewer if word.startswith("--") and "=" not in word]:
        while name in rest:
            at = rest.index(name)
            del rest[at : at + 2]
    return [command, *rest, *fewer]


def _there(word: str, folder: Path) -> str:
    """Name the last checkpoint of a run in place of one that a shorter run does not reach."""
    if word == "CHECKPOINT":
        word = "runs/mine/checkpoint-1"
    run, found, _ = word.partition("/checkpoint-")
    if not found:
        return word
    saved = sorted((folder / run).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return str(Path(run) / saved[-1].name) if saved else word


def run_commands(block: Block, folder: Path) -> None:
    """Run each command of a block in `folder`, the current one. Raises AssertionError."""
    if block.is_script:
        for _ in range(2 if block.text.startswith("#!") else 1):  # a job, and the one after it
            assert launchers.run_script(block.text, folder) == 0, block.place
        return
    for words in block.commands():
        if words[0] in PARSED or shlex.join(words) in PLANNED:
            parse(words)
            continue
        if words[0] == "plan":
            PLANNED.add(shlex.join(words))
        run = pushed if words[0] == "push" else main
        code = run(shortened(words, folder))
        assert code == 0, f"{block.place}: {shlex.join(words)} ends with {code}"


def pushed(words: list[str]) -> int:
    """Run a command against a stand-in for the hub, in a process: its address is read once."""
    with hub.running() as server:
        env = hub.environment(server, Path("hf"), "good")
        command = [sys.executable, "-m", "viceversa", *words]
        code = subprocess.run(command, env=env, timeout=300).returncode
        assert code or "--dry-run" in words or server.repos, words
    return code


def run_in_a_clone(page: str, folder: Path) -> None:
    """Run the blocks of a page that want one, in order, in one shell. Raises CalledProcessError.

    Where they make no environment, it is made first. What they write to /tmp goes to `folder`.
    """
    texts = [b.text for b in blocks_of(page) if b.is_fresh]
    if "-m venv" not in "".join(texts):
        texts.insert(0, ENVIRONMENT)
    script = "\n".join(texts).replace("/tmp/", f"{folder}/")
    (folder / "script.sh").write_text(script)
    subprocess.run(["git", "clone", "-q", ROOT, folder / "clone"], check=True)
    # not the environment of these tests
    path = [p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(sys.prefix)]
    env = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    subprocess.run(
        ["bash", "-e", "-x", folder / "script.sh"],
        cwd=folder / "clone",
        env={**env, "PATH": os.pathsep.join(path)},
        check=True,
        timeout=1800,
    )


def run_python(block: Block, names: dict[str, Any]) -> None:
    """Run a block with the names that earlier ones of its page left."""
    text = re.sub(r"\bsteps=\d+", "steps=2", block.text)
    text = re.sub(r"\bcheckpoint-\d+", "checkpoint-2", text)
    options = "options={" + "".join(f"{k!r}: {v!r}, " for k, v in QUICK.items())
    if "options={" in text:
        text = text.replace("options={", options)
    else:
        text = text.replace("steps=2", f"steps=2, {options}}}")
    exec(compile(text, block.place, "exec"), names)


def parse(words: list[str]) -> None:
    """Parse a command without running it, and check what it sets.

    Raises SystemExit, ConfigError.
    """
    chosen = cli._parse(words)  # the command with its arguments, not yet run
    given: Any = [*chosen.args, *chosen.keywords.values()]  # type: ignore[attr-defined]
    for options in given:
        if isinstance(options, Options):
            recipe = str(options.config) in recipe_names()  # or a file of the reader's own
            load_config(options.config if recipe else None, options.overrides)
