"""What a user passes as ``calibration=``, to ranges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import planish.quantization
from helpers.networks import residual_net
from planish.errors import CalibrationError, InputError
from planish.graph.graph import Graph
from planish.passes import optimize
from planish.quantization.cache import decode
from planish.quantization.calibration import ALGORITHMS, DEFAULT, calibrate, load_ranges
from planish.quantization.collect import collect_ranges
from planish.quantization.mean_square import MseCalibrator
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.observe import quantizable
from planish.quantization.ranges import Ranges


@pytest.fixture(scope="module")
def graph() -> Graph:
    made = residual_net()
    optimize(made)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((16, 6, 6, 4)).astype(np.float32)


class Mine(planish.quantization.EntropyCalibrator2):
    """As TensorRT's examples wrote theirs."""

    def __init__(self, images: np.ndarray) -> None:
        planish.quantization.EntropyCalibrator2.__init__(self)
        self.images, self.at = images, 0
        self.text: bytes | None = None

    def get_batch_size(self) -> int:
        return 8

    def get_batch(self, names: Sequence[str]) -> list[np.ndarray] | None:
        if self.at + 8 > len(self.images):
            return None
        self.at += 8
        return [self.images[self.at - 8 : self.at]]

    def read_calibration_cache(self) -> bytes | None:
        return self.text

    def write_calibration_cache(self, cache: bytes) -> None:
        self.text = cache


def test_data_alone(graph: Graph, images: np.ndarray) -> None:
    assert calibrate(graph, images) == collect_ranges(graph, images, DEFAULT())


def test_a_calibrator_of_ours(graph: Graph, images: np.ndarray) -> None:
    found = calibrate(graph, MseCalibrator(images))
    assert found == collect_ranges(graph, images, MseCalibrator())
    assert found.calibrator == "mse"


def test_a_derived_calibrator_runs_once(graph: Graph, images: np.ndarray) -> None:
    mine = Mine(images)
    first = calibrate(graph, mine)
    assert first == collect_ranges(graph, images, planish.quantization.EntropyCalibrator2())
    assert mine.text is not None
    assert decode(mine.text) == first
    mine.images = images[:0]  # would be refused
    assert calibrate(graph, mine) == first


def test_a_cache_replaces_the_data(graph: Graph, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ranges.txt"
    first = calibrate(graph, MinMaxCalibrator(images, cache=path))

    def never() -> None:
        raise AssertionError

    assert calibrate(graph, MinMaxCalibrator(never, cache=path)) == first
    assert calibrate(graph, str(path)) == first
    assert calibrate(graph, path) == first
    assert load_ranges(path, graph) == first
    assert calibrate(graph, first) == first


def test_a_cache_fits_any_batch_size(graph: Graph, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ranges.txt"
    first = calibrate(graph, MinMaxCalibrator(images, cache=path))
    for batch in (1, 4):
        fixed = residual_net(batch)
        optimize(fixed)
        found = load_ranges(path, fixed)
        assert found == first
        assert {v.name for v in quantizable(fixed)} == set(found.tensors)


def test_failing_leaves_no_cache(graph: Graph, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "ranges.txt"
    with pytest.raises(CalibrationError):
        calibrate(graph, MinMaxCalibrator([images, images * np.nan], cache=path))
    assert not list(tmp_path.iterdir())


def test_nothing_but_given_ranges(graph: Graph) -> None:
    found = calibrate(graph, None, dynamic_ranges={"x": 3.0})
    assert found.tensors == {"x": (-3.0, 3.0)}
    assert found.calibrator == "given"
    with pytest.raises(InputError, match="must be a mapping"):
        calibrate(graph, None, dynamic_ranges=[3.0])  # type: ignore[arg-type]


def test_given_ranges_win(graph: Graph, images: np.ndarray) -> None:
    found = calibrate(graph, images, dynamic_ranges={"x": (-1.0, 2.0)})
    assert found.tensors["x"] == (-1.0, 2.0)
    assert found.calibrator == f"{DEFAULT.algorithm}, 1 given"
    assert len(found.tensors) == len(quantizable(graph))


def test_dummy_ranges_are_marked(graph: Graph, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "planish"):
        found = calibrate(graph, "dummy", dynamic_ranges={"x": 1.0})
    assert "INT8 RANGES ARE MADE UP" in caplog.text
    assert found.dummy == {v.name for v in quantizable(graph)} - {"x"}


def test_algorithms_say_their_names() -> None:
    for name, kind in ALGORITHMS.items():
        assert kind().algorithm.split()[0] == name


def test_public_names() -> None:
    for name in planish.quantization.__all__:
        assert callable(getattr(planish.quantization, name))
    assert set(dir(planish.quantization)) == set(planish.quantization.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        planish.quantization.nothing  # noqa: B018


def test_ranges_of_another_network(images: np.ndarray, graph: Graph) -> None:
    with pytest.raises(CalibrationError, match="another network"):
        calibrate(graph, Ranges({"x": (0.0, 1.0)}, "0" * 16))
