"""A run folder, read: whatever is missing or damaged is a note, and the rest is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viceversa.report.reading import number, read_lines, read_object, section

SOURCES = (
    "config.yaml",
    "env.json",
    "metrics.jsonl",
    "eval.json",
    "samples/samples.jsonl",
    "rollouts.jsonl",
)
#: What a watched run saw of held-out inputs.
LOOKS = "watch.jsonl"


@dataclass(frozen=True)
class Run:
    """What a run folder holds, but for the galleries."""

    folder: Path
    config: dict[str, Any]
    env: dict[str, Any]
    steps: list[dict[str, Any]]
    """Of metrics.jsonl, each step once, in order; with the watch's looks, as `t2i/held_out`."""
    scores: dict[str, Any]
    """Of eval.json."""
    notes: dict[str, list[str]]
    """What is wrong with a file, by its name."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def reward(self) -> str:
        return str(section(self.config, "reward").get("name", ""))

    @property
    def unit(self) -> str:
        """Return the unit of rewards."""
        return "nats per token" if self.reward in ("", "dual") else "reward"

    def facts(self) -> dict[str, str]:
        """Return the run in a few words, by what they say."""
        done = f"{self.steps[-1]['step']:.0f}" if self.steps else "unknown"
        planned = number(self.config.get("steps"))
        if self.steps and planned is not None:
            done += f" of {planned:.0f}"
            done += " (the run is not finished)" if self.steps[-1]["step"] < planned else ""
        each = [s for row in self.steps if (s := number(row.get("seconds"))) is not None]
        seconds = number(self.env.get("seconds")) or max(each, default=None)
        return {
            "model": str(section(self.config, "model").get("path", "unknown")),
            "schedule": str(self.config.get("schedule", "unknown")),
            "reward": str(section(self.config, "reward").get("name", "unknown")),
            "loss": str(section(self.config, "loss").get("name", "unknown")),
            "steps": done,
            "wall time": "unknown" if seconds is None else _duration(seconds),
        }


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises FileNotFoundError where it is missing or holds no run's files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {str(folder)!r} does not exist")
    if not any((folder / name).is_file() for name in SOURCES):
        raise FileNotFoundError(f"run folder {str(folder)!r} holds none of {', '.join(SOURCES)}")
    notes: dict[str, list[str]] = {}
    config, notes["config.yaml"] = read_object(folder, "config.yaml")
    env, notes["env.json"] = read_object(folder, "env.json")
    scores, notes["eval.json"] = read_object(folder, "eval.json")
    if unmeasured := section(env, "unmeasured"):
        told = [str(why) for why in unmeasured.values()]
        notes["eval.json"] = told + notes["eval.json"] * (folder / "eval.json").exists()
    metrics, notes["metrics.jsonl"] = read_lines(folder, "metrics.jsonl")
    looks: list[dict[str, Any]] = []
    if (folder / LOOKS).exists():  # short runs have none
        looks, notes[LOOKS] = read_lines(folder, LOOKS)
    return Run(folder, config, env, _steps(metrics, looks), scores, notes)


def _steps(metrics: list[dict[str, Any]], looks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort metrics by step. A resumed run writes some steps twice: the later line counts."""
    rows = {step: row for row in metrics if (step := number(row.get("step"))) is not None}
    for look in looks:
        step = number(look.get("step"))
        if step in rows:
            seen = {d: section(look, d).get("base_likelihood") for d in ("t2i", "i2t")}
            rows[step] = {**rows[step], **{f"{d}/held_out": value for d, value in seen.items()}}
    return [rows[step] for step in sorted(rows)]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
