"""What a run keeps of itself: its folder, inputs, figures, samples and surroundings."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from viceversa.config import Config, load_config, save_config
from viceversa.data.image_ids import ImageIds
from viceversa.data.sources import Source
from viceversa.files import read_rows, write_whole
from viceversa.measure.held_out import HeldOut
from viceversa.measure.look import Look
from viceversa.measure.outputs import texts_and_pictures
from viceversa.models.base import Adapter
from viceversa.report.galleries import FOLLOWED, HELD_OUT, SAMPLES
from viceversa.report.page import write_report
from viceversa.report.runs import LOOKS
from viceversa.training.checkpoint import SEAL, step_of
from viceversa.training.ending import say_outcome, say_places
from viceversa.training.environment import environment
from viceversa.training.groups import save_group, save_input, save_picture
from viceversa.training.lock import Lock
from viceversa.types import Direction, ScoredRollout

#: Groups of each direction that a run keeps for its report.
RECORDED_GROUPS = 12
GALLERY_PER_KIND = 3
#: Of each kind of trouble with inputs; skipped.jsonl has them all.
NAMES_SHOWN = 5


class Recorder:
    """Writes the run folder. Other processes than the first write nothing."""

    def __init__(
        self, out: Path, config: Config, enabled: bool = True, checkpoint: Path | None = None
    ):
        self.out, self.config, self.enabled = out, config, enabled
        self.began = time.time()
        self.eval: dict[str, Any] = {}
        self.env: dict[str, Any] = {}
        self.every = max(1, config.steps // RECORDED_GROUPS)
        self._recorded: dict[Direction, int] = {}
        self._seconds_before = 0.0
        self.sources: dict[Direction, Source] = {}
        self.image_ids: ImageIds | None = None
        self.checkpoint = checkpoint
        """The last good one, which this run wrote or goes on from."""
        self.best: Path | None = None
        """The best by the base's judgement, where the run was watched."""
        self.world: Any = None
        self.draws_pixels = True

    def start(self, sources: dict[Direction, Source], console: Console, lock: Lock) -> None:
        """Make the folder, or put it back to where it was when the checkpoint was saved."""
        options = self.out / "config.yaml"
        if self.checkpoint is None:
            self._make_folder(lock)
            save_config(self.config, options)
        else:
            self._rewind(step_of(self.checkpoint), console)
            self._read_figures(console)
            if self.config.steps > load_config(options, of_run=True).steps:
                save_config(self.config, options)  # fewer are this call's alone
        self.sources = sources
        self.env = {**environment(), "seed": self.config.seed}
        self._note_inputs(console)
        self._write("env.json", self.env)

    def _make_folder(self, lock: Lock) -> None:
        """Make the run's folder; a run that is there already is moved aside, unless it lives."""
        if lock.path.exists():
            lock.take()
        if (self.out / "config.yaml").exists():
            self.out.rename(self.out.with_name(f"{self.out.name}-{time.strftime('%Y%m%d-%H%M%S')}"))
        (self.out / "images").mkdir(parents=True, exist_ok=True)
        lock.take()

    def _note_inputs(self, console: Console) -> None:
        """Counts by kind for env.json and the console, every one in skipped.jsonl."""
        counts = {d: count_inputs(source) for d, source in self.sources.items()}
        told = input_lines(self.env.get("inputs", {}))  # a streaming set's grow
        self.env["inputs"] = counts
        for line in input_lines(counts):
            if line not in told:
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        rows = (
            {"direction": direction, **asdict(note)}
            for direction, source in self.sources.items()
            for note in source.notes
        )
        self._write_rows("skipped.jsonl", rows)

    def _rewind(self, step: int, console: Console) -> None:
        """Drop the lines after the checkpoint, and cut ones; the clock goes on from it."""
        for name, last in (
            ("metrics.jsonl", step),
            (LOOKS, step),
            (FOLLOWED, step),
            ("rollouts.jsonl", step - 1),
        ):
            path = self.out / name
            rows, cut = read_rows(path)
            if cut:
                told = f"{path} has {cut} line{'s' * (cut != 1)} that cannot be read: left out"
                console.print(told, highlight=False, markup=False, soft_wrap=True)
            rows = [row for row in rows if _step(row) <= last]
            if path.exists():
                self._write_rows(name, rows)
            if name == "metrics.jsonl" and rows:
                self._seconds_before = rows[-1].get("seconds", 0.0)

    def _read_figures(self, console: Console) -> None:
        """Keep the base's figures where they and its gallery are whole; else make both again."""
        index, figures = self.out / SAMPLES, self.out / "eval.json"
        rows, cut = read_rows(index)
        try:
            found = json.loads(figures.read_text(encoding="utf-8"))
            if found.keys() == {"held_out"}:
                return  # nothing of the built-in world is measured
            there = [(self.out / row["base"]["image"]).is_file() for row in rows]
            if there and all(there) and not cut:
                self.eval = {name: found[name] for name in ("base", "settings")}
                return
        except FileNotFoundError:
            return  # nothing is measured yet
        except (ValueError, TypeError, KeyError):
            pass
        index.unlink(missing_ok=True)
        told = f"{figures} or {index} is damaged: the base is evaluated again"
        console.print(told, highlight=False, markup=False, soft_wrap=True)

    def seconds(self) -> float:
        """Since the run began, interruptions left out."""
        return round(self._seconds_before + time.time() - self.began, 2)

    def evaluate(self, name: str, adapter: Adapter) -> None:
        """Figures and a gallery of `base` or `tuned`, same specs and seeds.

        The gallery comes first: where eval.json has the figures of a model, its gallery is whole.
        """
        if not self.enabled:
            return
        self._gallery(name, adapter)
        self.eval[name] = self.world.evaluate(adapter, self.config.eval)
        self.eval["settings"] = asdict(self.config.eval)
        self._write("eval.json", self.eval)

    def _gallery(self, name: str, adapter: Adapter) -> None:
        drawn = self.world.gallery(adapter, self.config.eval, GALLERY_PER_KIND)
        right = self.world.monitor(drawn).flatten().tolist()
        rows, _ = read_rows(self.out / SAMPLES)
        rows = rows or [save_input(self.out, "", example) for example in drawn.examples]
        for i, (row, pixels, ok) in enumerate(zip(rows, drawn.pixels, right, strict=True)):
            image = save_picture(self.out, f"samples/{name}-{i:03d}.png", pixels)
            row[name] = {"image": image, "right": ok}
        self._write_rows(SAMPLES, rows)

    def keep_held_out(self, found: HeldOut) -> None:
        """Write what base and tuned made of held-out inputs, then the figures."""
        rows: list[dict[str, Any]] = []
        (self.out / "samples").mkdir(exist_ok=True)
        for direction in found.base:
            both = (texts_and_pictures(o[direction]["training"]) for o in (found.base, found.tuned))
            for number, (old, new) in enumerate(zip(*both, strict=True)):
                name = f"samples/held-out-{direction}-{number:03d}"
                row = {**save_input(self.out, f"{name}.png", old[0]), "number": number}
                for who, (_, text, pixels) in (("base", old), ("tuned", new)):
                    row[who] = {"text": text}
                    if pixels is not None:
                        row[who] = {"image": save_picture(self.out, f"{name}-{who}.png", pixels)}
                rows.append(row)
        self._write_rows(HELD_OUT, rows)
        self.eval["held_out"] = found.figures
        self._write("eval.json", self.eval)

    def keep_look(self, found: Look, best: bool) -> None:
        """Write down a look at the model in training."""
        self.append(LOOKS, {**found.record(), "best": best})

    def best_look(self) -> tuple[int | None, float]:
        """Return the step and the progress of the best look so far, if its checkpoint is there."""
        rows, _ = read_rows(self.out / LOOKS)
        for row in reversed(rows):
            if row.get("best") and (self.out / f"checkpoint-{row['step']}").is_dir():
                return row["step"], row["progress"]
        return None, 0.0

    def note_best(self, best: Path | None, collapse: str) -> None:
        """Note the best checkpoint; after a collapse it is the one that the run ends with."""
        self.best = best
        self.env["best_checkpoint"] = best and best.name
        if collapse:
            self.env["stopped_on_collapse"] = collapse
            self.checkpoint = best

    def record_rollout(self, step: int, scored: ScoredRollout) -> None:
        """Keep the first group of this rollout, all of its outputs, now and then for the report."""
        direction = scored.rollout.direction
        if not self.enabled or step - self._recorded.get(direction, -self.every) < self.every:
            return
        self._recorded[direction] = step
        name = f"images/{step:06d}-{direction}"
        self.append("rollouts.jsonl", save_group(self.out, name, step, scored, 0))

    def keep_looked_at(self, step: int, scored: ScoredRollout) -> None:
        """Keep the outputs of the first `watch.shown` inputs of a look."""
        if not self.enabled:
            return
        direction = scored.rollout.direction
        (self.out / FOLLOWED).parent.mkdir(exist_ok=True)
        for number in range(min(self.config.watch.shown, len(scored.rollout.examples))):
            name = f"samples/followed/{direction}-{number}-{step:06d}"
            row = save_group(self.out, name, step, scored, number)
            self.append(FOLLOWED, {"number": number, **row})

    def append(self, name: str, row: dict[str, Any]) -> None:
        if self.enabled:
            with (self.out / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def finish(self, console: Console, interrupted: bool) -> None:
        if not self.enabled:
            return
        self.env |= {"seconds": self.seconds(), "interrupted": interrupted}
        if self.image_ids is not None:
            hits, misses = self.image_ids.hits, self.image_ids.misses
            self.env["image_ids"] = {"from_cache": hits, "computed": misses}
        self._note_inputs(console)
        self._write("env.json", self.env)
        page = write_report(self.out)
        say_outcome(console, self.eval, self.env.get("unmeasured", {}))
        if self.best is not None and self.best != self.checkpoint:
            told = f"best by the base's judgement: {self.best}"
            console.print(told, highlight=False, soft_wrap=True)
        say_places(
            console,
            self.config,
            self.eval,
            self.checkpoint,
            page,
            self.draws_pixels,
            interrupted,
            failed="ended_by" in self.env,
        )

    def left(self) -> str:
        """Name the last good checkpoint, in words."""
        if self.checkpoint is None:
            return "no checkpoint was saved"
        if not (self.checkpoint / SEAL).is_file():
            return "no checkpoint is left"
        return f"the last good checkpoint is {self.checkpoint}"

    def _write(self, name: str, record: dict[str, Any]) -> None:
        write_whole(self.out / name, json.dumps(record, indent=1))

    def _write_rows(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        write_whole(self.out / name, "".join(json.dumps(row) + "\n" for row in rows))


def _step(row: dict[str, Any]) -> float:
    step = row.get("step")
    return step if isinstance(step, int) else math.inf


def count_inputs(source: Source) -> dict[str, Any]:
    """Count the inputs used, and those left out or changed, by kind, with some names."""
    kinds: dict[tuple[bool, str], list[str]] = {}
    for note in source.notes:
        kinds.setdefault((note.skipped, note.kind), []).append(note.name)
    ordered = sorted(kinds.items(), key=lambda kind: (not kind[0][0], -len(kind[1]), kind[0][1]))
    return {
        "inputs": source.used,
        "skipped": len(source.skipped),
        "kinds": [
            {"kind": kind, "skipped": skipped, "count": len(names), "names": names[:NAMES_SHOWN]}
            for (skipped, kind), names in ordered
        ],
    }


def input_lines(inputs: dict[str, Any]) -> list[str]:
    """Return one line a kind, for the console."""
    things = {"t2i": "prompt", "i2t": "picture"}
    lines = []
    for direction, counts in inputs.items():
        for row in counts["kinds"]:
            what = "skipped" if row["skipped"] else "changed"
            more = ", …" if row["count"] > len(row["names"]) else ""
            names = ", ".join(row["names"]) + more
            thing = things[direction] + "s" * (row["count"] != 1)
            lines.append(f"{what} {row['count']} {thing}, {row['kind']}: {names}")
    return lines
