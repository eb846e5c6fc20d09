"""A disk that is really full: a mounted file system of a few kilobytes in memory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, kilobytes: int = 16) -> Iterator[Path]:
    """An empty disk at a folder, which is made; skips the test where mounting is not allowed."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    done = _run("mount", "-t", "tmpfs", "-o", size, "planish-test", str(folder))
    if done is None or done.returncode:
        why = "there is no command mount" if done is None else done.stderr.strip()
        pytest.skip(f"a small disk can be mounted only by root: {why}")
    try:
        yield folder
    finally:
        _run("umount", "-l", str(folder))


def fill(disk: Path, leave: int = 0) -> Path:
    """Fills a disk with one file, but for some bytes (in pages of memory)."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
        if leave:
            file.truncate(max(file.tell() - leave, 0))
    return path


def make_read_only(disk: Path) -> None:
    """Nothing can be written there any more, not even by root."""
    done = _run("mount", "-o", "remount,ro", str(disk))
    assert done is not None
    assert done.returncode == 0, done.stderr


def _run(*command: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
