"""Files are written as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from planish.files import replaced


def write(path: Path, data: bytes) -> None:
    with replaced(path) as file:
        file.write(data)


def test_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (tmp_path / "link").symlink_to(target)
    write(tmp_path / "link", b"old")
    with target.open("rb") as reader:
        write(tmp_path / "link", b"new")
        assert reader.read() == b"old"
    assert target.read_bytes() == b"new"
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "target"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_synced_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError("not on this file system")
        sync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
