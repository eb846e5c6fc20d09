"""Disks that are full or read-only, and caches that are damaged. Nothing here is pretended."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

import planish
from helpers.networks import residual_net
from helpers.onnx_graph import model, node
from helpers.provoke.arguments import addition, engine
from helpers.provoke.models import relu, written
from helpers.provoke.registry import case
from helpers.provoke.tensorflow_api import converted
from helpers.small_disk import fill, make_read_only, small_disk
from planish.builder import build_graph
from planish.targets.cpu.target import CpuTarget


def build_with(timing_cache: Path) -> planish.Engine:
    """A build that measures all there is, whatever else the machine does, and writes it down."""
    return planish.build(
        relu(), tuning_seconds=5, timing_cache=timing_cache, threads=1, progress=False
    )


# ---- saving ----------------------------------------------------------------------------------


@case("Saving into a folder that does not exist")
def no_folder(folder: Path) -> None:
    engine().save(folder / "none" / "model.plan")


@case("Saving over a folder")
def over_folder(folder: Path) -> None:
    engine().save(folder)


@case("Saving on a full disk")
def full_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        fill(disk)
        engine().save(disk / "model.plan")


@case("Saving on a read-only disk")
def read_only_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        make_read_only(disk)
        engine().save(disk / "model.plan")


@case("Saving a converted SavedModel on a full disk")
def converted_on_a_full_disk(folder: Path) -> None:
    made = converted(folder)
    with small_disk(folder / "disk") as disk:
        fill(disk)
        made.save(str(disk / "out"))


# ---- timing caches ---------------------------------------------------------------------------


@case("A timing cache that is damaged")
def damaged_cache(folder: Path) -> None:
    build_with(written(folder / "timing.sqlite", b"this is no database " * 100))


@case("A timing cache that is a folder")
def folder_cache(folder: Path) -> None:
    build_with(folder)


@case("A timing cache on a read-only disk")
def read_only_cache(folder: Path) -> None:
    with small_disk(folder / "disk", 512) as disk:
        build_with(disk / "timing.sqlite")
        make_read_only(disk)
        planish.build(
            addition(),
            tuning_seconds=5,
            timing_cache=disk / "timing.sqlite",
            threads=1,
            progress=False,
        )


@case("A new timing cache on a full disk")
def new_cache_on_a_full_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk:
        fill(disk)
        build_with(disk / "timing.sqlite")


@case("A timing cache on a disk that becomes full")
def cache_on_a_full_disk(folder: Path) -> None:
    with small_disk(folder / "disk", 128) as disk:
        build_with(disk / "timing.sqlite")
        fill(disk)
        planish.build(
            addition(),
            tuning_seconds=5,
            timing_cache=disk / "timing.sqlite",
            threads=1,
            progress=False,
        )


# ---- the cache of machine code ---------------------------------------------------------------


def build_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> planish.Engine:
    """A build whose machine code would be kept in a folder."""
    monkeypatch.setenv("PLANISH_CACHE", str(cache))
    return build_graph(residual_net(), CpuTarget(), tuning_seconds=0)


@case("A cache folder on a full disk")
def kernels_on_a_full_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk, pytest.MonkeyPatch.context() as patch:
        make_cache_folders(disk, patch)
        fill(disk)
        build_in(disk, patch)


@case("A cache folder on a read-only disk")
def kernels_on_a_read_only_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk, pytest.MonkeyPatch.context() as patch:
        make_cache_folders(disk, patch)
        make_read_only(disk)
        build_in(disk, patch)


@case("A new cache folder on a read-only disk")
def new_cache_folder_on_a_read_only_disk(folder: Path) -> None:
    with small_disk(folder / "disk") as disk, pytest.MonkeyPatch.context() as patch:
        make_read_only(disk)
        build_in(disk, patch)


def make_cache_folders(disk: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes the folders of the cache while the disk still takes them."""
    patch.setenv("PLANISH_CACHE", str(disk))
    CpuTarget()


@case("A cache folder that others can write to")
def open_cache(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_cache_folders(folder, patch)
        for inner in (folder / "kernels").iterdir():
            inner.chmod(0o777)
        build_in(folder, patch)


# ---- interruption ----------------------------------------------------------------------------


@case("A build that is interrupted (Ctrl-C)")
def interrupted(folder: Path) -> str:
    """The command's standard error."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, "x"
    for i in range(12):  # every layer of another size: nothing is measured for two at once
        weights[f"w{i}"] = rng.standard_normal((40 + i, 39 + i, 3, 3)).astype(np.float32)
        nodes.append(node("Conv", f"{last} w{i}", f"y{i}", f"conv{i}"))
        last = f"y{i}"
    proto = model(nodes, {"x": (np.float32, [1, 39, 64, 64])}, [last], weights)
    onnx.save(proto, folder / "model.onnx")
    written(folder / "model.plan", b"the old plan")
    command = [sys.executable, "-m", "planish", "build", str(folder / "model.onnx")]
    options = ["-o", str(folder / "model.plan"), "--tuning-seconds", "300", "--threads", "1"]
    cache = folder / "cache"
    with subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PLANISH_CACHE": str(cache)},
        # whoever runs behind a shell's "&" ignores the signal, and so would this
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        limit = time.monotonic() + 60
        while process.poll() is None and not (cache / "timing.sqlite").exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
        time.sleep(0.5)  # somewhere in the midst of measuring
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130, f"{process.returncode}: {told}"
    assert (folder / "model.plan").read_bytes() == b"the old plan"
    assert sorted(p.name for p in folder.iterdir()) == ["cache", "model.onnx", "model.plan"]
    assert sorted(p.name for p in cache.iterdir()) == ["kernels", "timing.sqlite"]
    assert all(path.suffix == ".o" for path in (cache / "kernels").rglob("*") if path.is_file())
    with sqlite3.connect(cache / "timing.sqlite") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    return told.strip().splitlines()[-1]
