"""The user's cache of machine code."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from planish.targets.cache import KernelCache, cache_root
from planish.targets.cpu.machine import host


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    return tmp_path


def files(root: Path) -> list[Path]:
    return list(root.glob("kernels/*/*.o"))


def test_round_trip_between_processes(root: Path) -> None:
    assert cache_root() == root
    KernelCache("a").put("k", b"code")
    again = KernelCache("a")
    assert again.get("k") == b"code"
    assert again.get("other") is None
    assert files(root)[0].parent.stat().st_mode & 0o777 == 0o700


def test_damaged_file_is_not_code(root: Path) -> None:
    KernelCache("a").put("k", b"code" * 100)
    (path,) = files(root)
    path.write_bytes(path.read_bytes()[:-3])
    assert KernelCache("a").get("k") is None


def test_folder_that_others_can_write_is_not_used(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    KernelCache("a").put("k", b"code")
    os.chmod(files(root)[0].parent, 0o777)
    with caplog.at_level(logging.WARNING, "planish"):
        assert KernelCache("a").get("k") is None
    assert "written by others" in caplog.text


def test_without_a_folder_it_lives_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANISH_CACHE", "/proc/nowhere")
    cache = KernelCache("a")
    cache.put("k", b"code")
    assert cache.get("k") == b"code"


def test_another_instruction_set_has_another_folder(root: Path) -> None:
    machine = host()
    if machine.isa != "avx512":
        pytest.skip("needs a CPU with AVX-512")
    KernelCache(machine.code_key).put("k", b"code")
    assert KernelCache(machine.restricted("avx2").code_key).get("k") is None
