"""Small results kept on disk between runs: bytes by key, in one SQLite file."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

_log = logging.getLogger(__name__)


class DiskCache:
    """Safe with several processes. Where it cannot be read or written, it is empty, and says so."""

    def __init__(self, path: Path):
        self.path = path.expanduser()
        self._warned = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those `keys` that are known."""
        found: dict[bytes, bytes] = {}
        try:
            with closing(self._open()) as db:
                for start in range(0, len(keys), 500):  # SQLite bounds the marks in one query
                    some = keys[start : start + 500]
                    marks = ",".join("?" * len(some))
                    query = f"SELECT key, value FROM entries WHERE key IN ({marks})"
                    found.update(db.execute(query, some).fetchall())
        except (sqlite3.Error, OSError) as error:
            self._warn(error)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        try:
            with closing(self._open()) as db, db:
                db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", entries.items())
        except (sqlite3.Error, OSError) as error:
            self._warn(error)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=60)  # seconds to wait for another writer
        db.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")
        return db

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("going on without the cache %s: %s", self.path, error)
        self._warned = True
