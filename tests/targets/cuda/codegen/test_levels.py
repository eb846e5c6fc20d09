"""Levels made and read on GPUs: every value, ties, what saturates, and what is no number."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import Cast, Dequantize, Quantize, ew
from planish.targets.base import Binding
from planish.targets.cuda.kernels.pointwise import FAMILIES

(FAMILY,) = FAMILIES
F32, I8, U8 = DType.FLOAT32, DType.INT8, DType.UINT8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


def quantized(x: np.ndarray, to: DType, low: int, high: int, scales: np.ndarray | None) -> Task:
    """``x`` of integers times a factor for each channel, or of floats, as levels."""
    graph = Graph()
    value = graph.input("x", TensorType(x.shape, DType.of(x.dtype)))
    if scales is not None:
        value = graph.add(ew.Mul(), graph.add(Cast(F32), value), graph.constant(scales))
    one, none = (graph.constant(np.float32(n)) for n in (1, 0))
    graph.mark_output(graph.add(Quantize(to, low, high), value, one, none), "y")
    return make_task(graph.nodes)


@pytest.mark.parametrize("dtype", [I8, U8])
@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_all_bytes_as_floats(dtype, zero, rng) -> None:
    info = np.iinfo(dtype.numpy)
    x = np.arange(info.min, info.max + 1).astype(dtype.numpy).reshape(16, 16)
    graph = Graph()
    value = graph.input("x", TensorType(x.shape, dtype))
    numbers = (graph.constant(np.float32(n)) for n in (0.37, zero))
    graph.mark_output(graph.add(Dequantize(), value, *numbers), "y")
    check_interpreted(FAMILY, make_task(graph.nodes), rng, arrays=[x])


@pytest.mark.parametrize(("to", "low", "high"), [(I8, -128, 127), (I8, 0, 100), (U8, 3, 255)])
def test_sums_as_levels(to, low, high, rng) -> None:
    sums = rng.integers(-600, 600, (40, 8)).astype(np.int32)
    sums[0], sums[1] = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    # by halves and quarters, so that many lie between two levels
    scales = np.array([0.5, 0.25, 0.75, 1.5, 1, 0.125, 2, 3e-7], np.float32)
    task = quantized(sums, to, low, high, scales)
    (launch,) = next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({}))
    assert launch.kernel.work.facts.finite
    check_interpreted(FAMILY, task, rng, arrays=[sums, scales])


def test_infinite_scales_are_not_taken_for_finite(rng) -> None:
    sums = rng.integers(-3, 3, (5, 2)).astype(np.int32)
    scales = np.array([np.inf, 1], np.float32)
    with np.errstate(invalid="ignore"):
        check_interpreted(FAMILY, quantized(sums, I8, -9, 9, scales), rng, arrays=[sums, scales])


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 50), (5, 50), (-90, -4)])
def test_floats_as_levels(low, high, rng) -> None:
    x = (rng.integers(-300, 300, (30, 8)) / 2).astype(np.float32)
    x[0, :5] = np.nan, np.inf, -np.inf, 3e38, -0.0
    check_interpreted(FAMILY, quantized(x, I8, low, high, None), rng, arrays=[x])


@pytest.mark.parametrize("to", [I8, U8])
def test_scales_divide(to, rng) -> None:
    """Also numbers that lie half-way, or next to it, and those that are no numbers."""
    info = np.iinfo(to.numpy)
    for scale in (np.float32(n) for n in (0.0173, 3e-5, 1.9999999, 0.75, 41.3, 2.0**-90)):
        ties = (np.arange(-300, 300) + 0.5).astype(np.float32) * scale
        near = [np.nextafter(ties, np.float32(way)) for way in (-np.inf, np.inf)]
        x = np.stack([ties, *near, (rng.standard_normal(600) * 99).astype(np.float32) * scale])
        x[3, :5] = np.nan, np.inf, -np.inf, 3e38, -0.0
        graph = Graph()
        value = graph.input("x", TensorType(x.shape, F32))
        numbers = (graph.constant(np.float32(n)) for n in (scale, 0))
        graph.mark_output(
            graph.add(Quantize(to, int(info.min), int(info.max)), value, *numbers), "y"
        )
        with np.errstate(over="ignore", invalid="ignore"):
            check_interpreted(FAMILY, make_task(graph.nodes), rng, arrays=[x])
