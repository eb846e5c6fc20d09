"""The timing cache: measured times of tactics, in SQLite, shared by processes and machines.

A row's key holds everything a time depends on: the machine and the version of its kernels, the
task, its shapes, and the tactic. A file that is damaged is set aside with a warning; one that
cannot be written is read only; either way building goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger("planish")

SCHEMA = "create table if not exists timing (key text primary key, seconds real not null)"


DAMAGE = (sqlite3.Error, UnicodeDecodeError)
"""What SQLite raises over a damaged file; its own messages may hold the damage, undecodable."""


_said: set[tuple[str, Path | None]] = set()


def _warn_once(text: str, path: Path | None, error: object) -> None:
    """Warns that a file is used less, or not: once in a process, not once a build."""
    if (text, path) not in _said:
        _said.add((text, path))
        log.warning(text, path, error)


class TimingCache:
    """Seconds by key. With `path` None it lives in memory only."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._path = Path(path) if path is not None else None
        self._memory: dict[str, float] = {}
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._writable = True
        if self._path is not None:
            self._database = self._open(self._path)

    def _open(self, path: Path) -> sqlite3.Connection | None:
        if path.exists() and not path.is_file():  # a device must never be set aside
            log.warning("timing cache %s is not used: it is not a file", path)
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if isinstance(error, sqlite3.OperationalError):
                _warn_once("timing cache %s is not used: %s", path, error)
                return None
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            try:
                os.replace(path, aside)
                log.warning("timing cache %s is damaged (%s); set aside as %s", path, error, aside)
                return _connect(path)
            except (OSError, sqlite3.Error) as second:
                _warn_once("timing cache %s is not used: %s", path, second)
        except OSError as error:
            _warn_once("timing cache %s is not used: %s", path, error)
        return None

    def get(self, key: str) -> float | None:
        """The time of a key, if it was ever measured."""
        key = _digest(key)
        with self._lock:
            if key in self._memory:
                return self._memory[key]
            if self._database is None:
                return None
            try:
                row = self._database.execute(
                    "select seconds from timing where key = ?", (key,)
                ).fetchone()
            except DAMAGE as error:
                self._give_up(error)
                return None
            if row is None or not isinstance(row[0], float) or not row[0] >= 0:
                return None
            self._memory[key] = row[0]
            return row[0]

    def put(self, times: Iterable[tuple[str, float]]) -> None:
        """Remembers times; the first measurement of a key stays, so that rebuilds are equal."""
        rows = [(_digest(key), float(seconds)) for key, seconds in times]
        with self._lock:
            for key, seconds in rows:
                self._memory.setdefault(key, seconds)
            self._write("insert or ignore into timing values (?, ?)", rows)

    def put_largest(self, values: Iterable[tuple[str, float]]) -> None:
        """Remembers numbers of which the largest counts, such as the budget spent on a task."""
        rows = [(_digest(key), float(number)) for key, number in values]
        with self._lock:
            for key, number in rows:
                self._memory[key] = max(number, self._memory.get(key, number))
            self._write(
                "insert into timing values (?, ?) on conflict (key) "
                "do update set seconds = max(seconds, excluded.seconds)",
                rows,
            )

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _write(self, statement: str, rows: list[tuple[str, float]]) -> None:
        if self._database is None or not self._writable:
            return
        try:
            with self._database:
                self._database.executemany(statement, rows)
        except DAMAGE as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if "readonly" in str(error) or "full" in str(error):
            _warn_once("timing cache %s is only read: %s", self._path, error)
            self._writable = False
            return
        log.warning("timing cache %s is not used any more: %s", self._path, error)
        if self._database is not None:
            self._database.close()
        self._database = None


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    try:
        database.execute("pragma synchronous = normal")
        try:
            database.execute(SCHEMA)
            database.commit()
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        database.execute("select count(*) from timing").fetchone()
    except DAMAGE:
        database.close()
        raise
    return database


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
