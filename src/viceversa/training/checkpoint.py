"""Checkpoints that are whole: sealed with checksums when written, proved before a run goes on.

A checkpoint is written aside, sealed, and moved into place. It is whole if and only if every file
that the seal names is there as it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import xxhash

from viceversa.files import to_disk, write_whole
from viceversa.publish.base import README

#: file -> [bytes, checksum by xxh3_128]; written last.
SEAL = "checksums.json"
#: Without one of each, a run cannot go on as if it had never stopped.
NEEDED = (("optimizer.pt", "optimizer.bin"), ("scheduler.pt",), ("trainer_state.json",))


def seal(folder: Path) -> None:
    """Write down what the files of a finished checkpoint hold, all of it on the disk.

    The model card is left out: figures are added to it later, and people write in it.
    """
    sums = {}
    for path in _files(folder):
        to_disk(path)
        if path == folder / README:
            continue
        sums[path.relative_to(folder).as_posix()] = [path.stat().st_size, _checksum(path)]
    write_whole(folder / SEAL, json.dumps(sums, indent=1))
    to_disk(folder)


def put(aside: Path, place: Path) -> None:
    """Move a sealed checkpoint to its place, instead of what is there."""
    shutil.rmtree(place, ignore_errors=True)
    os.replace(aside, place)
    to_disk(place.parent)


def damage(folder: Path, to_resume: bool = True) -> str | None:
    """Say what is wrong with a checkpoint, in a few words; None where it is whole.

    `to_resume`: it also has to hold what training goes on with.
    """
    try:
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        found = {name: (int(size), str(checksum)) for name, (size, checksum) in sums.items()}
    except FileNotFoundError:
        return f"it has no {SEAL}" if any(folder.iterdir()) else "it is empty"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    for names in NEEDED if to_resume else ():
        if not any(name in found for name in names):
            return f"it was saved without {names[0]}"
    for name, (size, checksum) in found.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes of {size}"
            if _checksum(path) != checksum:
                return f"{name} is not what was saved"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def checkpoints(out: Path) -> dict[int, Path]:
    """List the checkpoint folders of a run, the earliest step first; whole or not."""
    named = ((re.fullmatch(r"checkpoint-(0|[1-9]\d*)", path.name), path) for path in out.glob("*"))
    found = {int(match[1]): path for match, path in named if match and path.is_dir()}
    return dict(sorted(found.items()))


def step_of(checkpoint: Path) -> int:
    """Return the optimizer steps that were taken when it was saved."""
    return int(checkpoint.name.partition("-")[2])


def last_whole(out: Path) -> tuple[Path | None, list[str]]:
    """Find the last whole checkpoint of a run, and what is wrong with each later one."""
    known = checkpoints(out)
    others = sorted(p.name for p in out.glob("checkpoint-*") if p not in known.values())
    wrong = [f"{name} is of no step" for name in others]
    for folder in reversed(known.values()):
        why = damage(folder)
        if why is None:
            return folder, wrong
        wrong.append(f"{folder.name} is damaged: {why}")
    return None, wrong


def keep_last(out: Path, step: int, limit: int | None, best: int | None = None) -> None:
    """Delete all but the last `limit` checkpoints up to `step`, and that of step `best`.

    A limit of None or 0 keeps every one.
    """
    earlier = [number for number in checkpoints(out) if number <= step]
    for number in earlier[:-limit] if limit else []:
        if number != best:
            shutil.rmtree(out / f"checkpoint-{number}", ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
