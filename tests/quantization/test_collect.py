"""Ranges of whole networks: right, whatever the batches; and clean when something is in the way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from helpers.networks import N, Net, residual_net
from planish.errors import CalibrationError, InputError
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Graph
from planish.graph.interpret import interpret
from planish.ops import ReduceSum, ew
from planish.passes import optimize
from planish.quantization.collect import Collector, collect_ranges
from planish.quantization.entropy import EntropyCalibrator2
from planish.quantization.fingerprint import fingerprint
from planish.quantization.histogram import Histogram
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.observe import quantizable
from planish.quantization.percentile import PercentileCalibrator


@pytest.fixture(scope="module")
def graph() -> Graph:
    made = residual_net()
    optimize(made)
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((24, 6, 6, 4)).astype(np.float32)


def test_extremes_are_those_of_the_references(graph: Graph, images: np.ndarray) -> None:
    extremes: dict[str, tuple[float, float]] = {}

    def keep(node, inputs, results) -> None:
        for value, array in zip(node.outputs, results, strict=True):
            low, high = extremes.get(value.name, (0.0, 0.0))
            extremes[value.name] = (min(array.min(), low), max(array.max(), high))

    for part in np.split(images, 3):
        interpret(graph, {"x": part}, keep)
    extremes["x"] = (images.min(), images.max())
    ranges = collect_ranges(graph, images, MinMaxCalibrator())
    assert list(ranges.tensors) == [v.name for v in quantizable(graph)]
    for name, found in ranges.tensors.items():
        assert found == pytest.approx(extremes[name], rel=1e-4, abs=1e-5)
    assert ranges.calibrator == "min-max"
    assert ranges.network == fingerprint(graph)


def test_channels_are_looked_at_where_products_read_them(graph: Graph, images: np.ndarray) -> None:
    whole = collect_ranges(graph, images, MinMaxCalibrator())
    parts = collect_ranges(graph, [images[5:], images[:5]], MinMaxCalibrator())
    assert whole.extremes == parts.extremes and whole.extremes.keys() == whole.means.keys()
    (given,) = graph.inputs
    flat = images.reshape(-1, images.shape[-1])
    wanted = np.stack([flat.min(0), flat.max(0)], 1)
    np.testing.assert_allclose(whole.extremes[given.name], wanted, rtol=1e-4)


def histograms(graph: Graph, data: list[np.ndarray]) -> dict[str, Histogram]:
    with Collector(graph) as collector:
        collector.add_all(data)
        return collector.histograms


@pytest.mark.parametrize("rows", [1, 5, 24])
def test_batches_and_order_do_not_matter(graph: Graph, images: np.ndarray, rows: int) -> None:
    """Bit for bit where the network computes the same; kernels may differ in the last bit."""
    whole = histograms(graph, [images])
    shuffled = np.random.default_rng(rows).permutation(images)
    batches = [shuffled[i : i + rows] for i in range(0, 24, rows)]
    parts = histograms(graph, batches)
    np.testing.assert_array_equal(parts["x"].counts, whole["x"].counts)
    for name, histogram in parts.items():
        assert histogram.total == whole[name].total
        assert histogram.least == pytest.approx(whole[name].least, rel=1e-5, abs=1e-6)
        moved = np.abs(np.cumsum(histogram.counts) - np.cumsum(whole[name].counts)).max()
        assert moved <= 2


def test_any_shape_per_batch() -> None:
    net = Net()
    side = symbol("S")
    x = net.input(N, side, side, 4)
    net.graph.ranges["S"] = DimRange(1, 8, 64)
    graph = net.output(net.pooled(net.relu(net.conv(x, 8, 3))))
    optimize(graph)
    random = np.random.default_rng(0)
    batches = [
        random.standard_normal((n, s, s, 4)).astype(np.float32)
        for n, s in ((1, 8), (3, 5), (2, 16))
    ]
    ranges = collect_ranges(graph, batches, MinMaxCalibrator())
    assert ranges.tensors["x"][1] == max(float(b.max()) for b in batches)


def test_only_the_tensors_that_are_named(graph: Graph, images: np.ndarray) -> None:
    names = [v.name for v in quantizable(graph)][2:4]
    ranges = collect_ranges(graph, images, MinMaxCalibrator(), tensors=names)
    assert list(ranges.tensors) == names
    with pytest.raises(InputError, match="no floating-point tensor 'nothing'"):
        collect_ranges(graph, images, MinMaxCalibrator(), tensors=["nothing"])


def test_the_calibrator_decides(graph: Graph, images: np.ndarray) -> None:
    def greatest(calibrator) -> float:
        return collect_ranges(graph, images, calibrator).tensors["x"][1]

    half = greatest(PercentileCalibrator(percentile=50))
    assert half < greatest(EntropyCalibrator2()) <= greatest(MinMaxCalibrator())


def test_progress_is_told(graph: Graph, images: np.ndarray) -> None:
    told: list[tuple[str, int, int]] = []
    collect_ranges(graph, images, MinMaxCalibrator(), report=lambda *event: told.append(event))
    assert told == [("calibrate", done, 3) for done in range(4)]
    told.clear()
    batches = (images[i : i + 12] for i in (0, 12))
    collect_ranges(graph, batches, MinMaxCalibrator(), report=lambda *event: told.append(event))
    assert told == [("calibrate", 0, 0), ("calibrate", 1, 0), ("calibrate", 2, 2)]


@pytest.mark.parametrize("where", ["data", "progress"])
def test_an_interrupt_leaves_nothing_running(graph: Graph, images: np.ndarray, where: str) -> None:
    def batches() -> Iterator[np.ndarray]:
        yield images
        if where == "data":
            raise KeyboardInterrupt
        yield images

    def report(stage: str, done: int, total: int) -> None:
        if where == "progress" and done == 1:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        collect_ranges(graph, batches, MinMaxCalibrator(), report=report)
    assert set(threading.enumerate()) <= before


def test_a_network_that_gives_nan_is_refused() -> None:
    net = Net()
    x = net.input(N, 4)
    bad = net.graph.add(ew.Log(), x, name="logarithm")
    graph = net.output(net.relu(net.dense(bad, 3)))
    optimize(graph)
    data = np.array([[1, 2, -3, 4]], np.float32)
    with pytest.raises(CalibrationError) as caught:
        collect_ranges(graph, [data], MinMaxCalibrator())
    assert caught.value.where == "logarithm"
    assert caught.value.why.startswith("1 values of 'logarithm' are not finite, and so are values")


def test_tensors_that_never_change_are_named(caplog: pytest.LogCaptureFixture) -> None:
    net = Net()
    x = net.input(N, 4)
    dead = net.relu(net.add(x, net.graph.constant(np.full(4, -1e9, np.float32))))
    graph = net.output(net.graph.add(ReduceSum((1,), False), dead), net.relu(x))
    optimize(graph)
    with caplog.at_level(logging.WARNING, "planish"):
        ranges = collect_ranges(
            graph, np.arange(8, dtype=np.float32).reshape(2, 4), MinMaxCalibrator()
        )
    (record,) = caplog.records
    assert "2 tensor(s) have the same value everywhere" in record.getMessage()
    assert ": add, relu;" in record.getMessage()
    assert ranges.tensors["relu"] == (0.0, 0.0)


def test_sizes_outside_the_profile_are_refused() -> None:
    net = Net()
    side = symbol("S")
    x = net.input(N, side, 4)
    net.graph.ranges["S"] = DimRange(2, 4, 8)
    graph = net.output(net.relu(net.dense(x, 3)))
    optimize(graph)
    batches = [np.ones((1, size, 4), np.float32) for size in (4, 9)]
    with pytest.raises(CalibrationError, match="Dimension S of input 'x' is 9") as caught:
        collect_ranges(graph, batches, MinMaxCalibrator())
    assert caught.value.where == "calibration=, batch 1"
