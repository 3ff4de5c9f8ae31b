"""One process at a time writes a run folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from viceversa.config import ConfigError

LOCK = ".lock"
_log = logging.getLogger(__name__)


class Lock:
    """The right to write a folder, from `take` to the end of the block, or of the process.

    The system lets go of it, so that a process that is killed leaves nothing to clean up.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK
        self._file: TextIO | None = None

    def take(self) -> None:
        """Lock the folder that has this name now; one that had it before is let go of.

        Raises ConfigError, which names the other process, where another one writes the folder.
        """
        try:
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            folder = str(self.path.parent)
            raise ConfigError(f"output_dir is {folder!r}; cannot lock it: {error}") from error
        if self._file is not None and os.path.sameopenfile(file.fileno(), self._file.fileno()):
            file.close()
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise ConfigError(self._busy(file)) from None
        except OSError as error:  # a file system without locks
            _log.warning("going on without a lock on %s: %s", self.path.parent, error.strerror)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        self.__exit__()
        self._file = file

    def _busy(self, file: TextIO) -> str:
        file.seek(0)
        try:
            other = json.load(file)
            who = f"process {other['pid']} on {other['host']}"
            since = f" since {other['since']}"
        except (json.JSONDecodeError, KeyError, TypeError):
            who, since = "another process", ""
        folder = str(self.path.parent)
        return (
            f"output_dir is {folder!r}; {who} has been writing it{since}: stop that one, or choose "
            "another folder"
        )

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
