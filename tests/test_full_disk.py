"""Disks that are really full: what was there stays whole, nothing is left half written.

What users are told stands in docs/errors.md, whose test provokes it on the same small disks.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import planish
from helpers.networks import Net, build, feeds, residual_net
from helpers.provoke.models import relu
from helpers.provoke.tensorflow_api import converted_large
from helpers.refusal import refused
from helpers.small_disk import fill, small_disk
from planish import PlanError
from planish.builder import build_graph
from planish.graph.interpret import interpret
from planish.runtime.engine import Engine
from planish.targets.cpu.target import CpuTarget


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 256) as made:
        yield made


def dense(width: int, seed: int = 0) -> Engine:
    """An engine with about ``4 * width ** 2`` bytes of weights."""
    net = Net(seed=seed)
    return build(net.output(net.dense(net.input(2, width), width)))


class TestPlans:
    @pytest.mark.parametrize("leave", [0, 4096, 32768])
    def test_the_old_plan_stays(self, disk: Path, leave: int) -> None:
        """The disk is full at once, while the header is written, or while the weights are."""
        path = disk / "model.plan"
        old = dense(16)
        old.save(path)
        before = path.read_bytes()
        filler = fill(disk, leave)
        with refused(PlanError, str(path), "No space left on device"):
            dense(128).save(path)
        assert path.read_bytes() == before
        assert sorted(os.listdir(disk)) == ["filler", "model.plan"]
        x = np.ones((2, 16), np.float32)
        np.testing.assert_array_equal(planish.load(path)(x), old(x))
        filler.unlink()
        new = dense(128)
        new.save(path)
        x = np.ones((2, 128), np.float32)
        np.testing.assert_array_equal(planish.load(path)(x), new(x))

    def test_the_command_says_so(self, disk: Path, tmp_path: Path) -> None:
        onnx.save(relu(), tmp_path / "model.onnx")
        fill(disk)
        command = [sys.executable, "-m", "planish", "build", str(tmp_path / "model.onnx")]
        done = subprocess.run(
            [*command, "-o", str(disk / "model.plan"), "--tuning-seconds", "0"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert "Traceback" not in done.stderr
        assert os.listdir(disk) == ["filler"]


class TestConvertedModels:
    @pytest.fixture(scope="class")
    def converter(self, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return converted_large(tmp_path_factory.mktemp("model"))

    @pytest.mark.parametrize("leave", [0, 4096, 16384])
    def test_no_part_of_one_is_left(self, disk: Path, converter: Any, leave: int) -> None:
        filler = fill(disk, leave)
        with refused(PlanError, str(disk / "out"), "No space left on device"):
            converter.save(str(disk / "out"))
        assert os.listdir(disk) == ["filler"]
        filler.unlink()
        converter.save(str(disk / "out"))
        assert os.listdir(disk) == ["out"]
        assert_runs(disk / "out", converter)

    def test_a_folder_may_exist(self, tmp_path: Path, converter: Any) -> None:
        """Empty, or with an older model in it, as TensorFlow allows it."""
        (tmp_path / "out").mkdir()
        for _ in range(2):
            converter.save(tmp_path / "out")
            assert os.listdir(tmp_path) == ["out"]
            assert_runs(tmp_path / "out", converter)


def assert_runs(folder: Path, converter: Any) -> None:
    """The saved model computes what the converter's function does."""
    import tensorflow as tf

    x = tf.random.normal((2, 8, 8, 3), seed=1)
    (saved,) = tf.saved_model.load(str(folder)).signatures["serving_default"](x=x).values()
    (wanted,) = converter._function(x=x).values()
    np.testing.assert_allclose(saved, wanted, rtol=1e-5)


class TestTimingCache:
    def test_old_times_are_still_used(self, disk: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = disk / "timing.sqlite"

        def tuned(channels: int) -> Engine:
            net = Net()
            return build_graph(
                net.output(net.relu(net.dense(net.input(2, 8), channels))),
                CpuTarget(),
                tuning_seconds=2,
                timing_cache=path,
                threads=1,
            )

        first = tuned(4).report.tuning
        assert first.measured
        filler = fill(disk)
        with caplog.at_level(logging.WARNING, "planish"):
            other = tuned(6)
            again = tuned(4).report.tuning
        assert "is only read" in caplog.text
        assert other.report.tuning.measured
        assert again.cached == first.measured
        assert again.measured == 0
        with sqlite3.connect(path) as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        filler.unlink()
        assert tuned(6).report.tuning.measured  # it was not kept, and now it is
        assert tuned(6).report.tuning.measured == 0


class TestKernelCache:
    def test_nothing_half_written_is_left(
        self, disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PLANISH_CACHE", str(disk))
        CpuTarget()  # makes the folders
        filler = fill(disk, 4096)  # room for one small file

        def kernels() -> list[Path]:
            return [p for p in (disk / "kernels").rglob("*") if p.is_file()]

        graph = residual_net()
        given = feeds(graph, 2)
        want = interpret(graph, given)[0]
        engine = build_graph(graph, CpuTarget(), tuning_seconds=0)
        np.testing.assert_allclose(engine(given), want, rtol=1e-4, atol=1e-5)
        assert all(p.suffix == ".o" for p in kernels())
        filler.unlink()
        before = len(kernels())
        engine = build_graph(residual_net(), CpuTarget(), tuning_seconds=0)
        assert len(kernels()) > before
        np.testing.assert_allclose(engine(given), want, rtol=1e-4, atol=1e-5)
