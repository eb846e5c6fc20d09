from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.tuning.cache import TimingCache


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "timing.sqlite"


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A folder that anybody may enter, with the rights of an ordinary user where we are root."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_times_are_kept(path: Path) -> None:
    cache = TimingCache(path)
    assert cache.get("a") is None
    cache.put([("a", 1.5e-6), ("b", 0.1 + 0.2)])
    assert cache.get("a") == 1.5e-6
    cache.close()
    again = TimingCache(path)
    assert again.get("a") == 1.5e-6
    assert again.get("b") == 0.1 + 0.2  # to the last bit, so that plans are equal
    assert again.get("c") is None
    again.close()


def test_the_first_measurement_stays(path: Path) -> None:
    cache = TimingCache(path)
    cache.put([("a", 1.0)])
    cache.put([("a", 2.0)])
    assert cache.get("a") == 1.0
    cache.close()
    cache = TimingCache(path)
    cache.put([("a", 3.0)])
    cache.close()
    assert TimingCache(path).get("a") == 1.0


def test_without_a_file() -> None:
    cache = TimingCache(None)
    cache.put([("a", 1.0)])
    assert cache.get("a") == 1.0
    cache.close()


def test_closing_twice(path: Path) -> None:
    cache = TimingCache(path)
    cache.close()
    cache.close()
    assert cache.get("a") is None
    cache.put([("a", 1.0)])
    assert cache.get("a") == 1.0


def _write(path: Path, start: int) -> None:
    cache = TimingCache(path)
    for i in range(start, start + 40):
        cache.put([(f"key {i}", float(i))])
    cache.close()


def test_several_processes_at_once(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, start)) for start in (0, 20, 40)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cache = TimingCache(path)
    assert [cache.get(f"key {i}") for i in range(80)] == [float(i) for i in range(80)]
    cache.close()


@pytest.mark.parametrize(
    "content",
    [
        b"not a database" * 500,
        b"SQLite format 3\0" + b"\xff" * 5000,
        pytest.param(None, id="a schema that is not text"),
    ],
)
def test_damaged_file_is_set_aside(
    path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    path.parent.mkdir()
    if content is None:
        TimingCache(path).close()
        content = path.read_bytes().replace(b"create table", b"cre\xf4\xf4 table")
        content = content.replace(b"CREATE TABLE", b"CRE\xf4\xf4 TABLE")
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, "planish"):
        cache = TimingCache(path)
    assert "damaged" in caplog.text
    assert str(path) in caplog.text
    cache.put([("a", 1.0)])
    cache.close()
    assert TimingCache(path).get("a") == 1.0
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes() == content


def test_damage_that_shows_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TimingCache(path)
    cache.put([(f"key {i}", 1.0) for i in range(5000)])
    cache.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xee" * (len(content) - 8192)
    path.write_bytes(content)
    cache = TimingCache(path)
    found = [cache.get(f"key {i}") for i in range(50)]
    assert set(found) <= {None, 1.0}
    cache.put([("new", 2.0)])
    assert cache.get("new") == 2.0
    cache.close()
    assert "timing cache" in caplog.text


def test_strange_rows_are_ignored(path: Path) -> None:
    TimingCache(path).close()
    cache = TimingCache(path)
    cache.put([("a", 1.0), ("b", 2.0), ("c", 3.0)])
    cache.close()
    with sqlite3.connect(path) as database:
        database.execute("update timing set seconds = -1.0 where seconds = 1.0")
        database.execute("update timing set seconds = 'fast' where seconds = 2.0")
    cache = TimingCache(path)
    assert [cache.get(k) for k in "abc"] == [None, None, 3.0]
    cache.close()


def test_folder_that_cannot_be_written(
    ordinary_user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary_user.chmod(0o555)
    with caplog.at_level(logging.WARNING, "planish"):
        cache = TimingCache(ordinary_user / "timing.sqlite")
    assert "not used" in caplog.text
    cache.put([("a", 1.0)])
    assert cache.get("a") == 1.0


def test_file_that_cannot_be_written_is_read(
    ordinary_user: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = ordinary_user / "timing.sqlite"
    cache = TimingCache(path)
    cache.put([("a", 1.0), ("b", 2.0)])
    cache.close()
    path.chmod(0o444)
    ordinary_user.chmod(0o555)
    cache = TimingCache(path)
    assert cache.get("a") == 1.0
    with caplog.at_level(logging.WARNING, "planish"):
        cache.put([("c", 3.0)])
        cache.put([("d", 4.0)])
    assert len(caplog.records) == 1
    assert [cache.get(k) for k in "abcd"] == [1.0, 2.0, 3.0, 4.0]
    cache.close()


@pytest.mark.parametrize("name", [".", "file/timing.sqlite"])
def test_paths_that_hold_no_file(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = TimingCache(tmp_path / name)
    assert "not used" in caplog.text
    cache.put([("a", 1.0)])
    assert cache.get("a") == 1.0


def test_a_device_is_left_alone(caplog) -> None:
    before = os.stat(os.devnull)
    cache = TimingCache(os.devnull)
    cache.put([("key", 1.0)])
    assert cache.get("key") == 1.0
    assert "not a file" in caplog.text
    assert os.stat(os.devnull).st_rdev == before.st_rdev


def test_the_largest_number_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    cache = TimingCache(path)
    for number in (2.0, 5.0, 3.0):
        cache.put_largest([("k", number)])
    assert cache.get("k") == 5.0
    cache.close()
    assert TimingCache(path).get("k") == 5.0
