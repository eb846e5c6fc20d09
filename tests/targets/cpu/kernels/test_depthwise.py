"""Depthwise convolutions: windows, strides, borders, tails, dtypes, layouts and epilogues."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.quantization import ConvInteger, Quantize
from planish.targets.base import Binding, Layout
from planish.targets.cpu.kernels.depthwise import Depthwise, DepthwiseFamily
from planish.targets.cpu.run import run_tactic

FAMILY = DepthwiseFamily()
SAME = ((1, 1), (1, 1))


def depthwise(
    shape, window, stride=1, dilation=1, padding=SAME, multiplier=1, dtype=DType.FLOAT32, width=None
) -> Task:
    """Conv, bias, ReLU6, residual."""
    rng = np.random.default_rng(1)
    graph = Graph()
    declared = shape if width is None else (*shape[:-2], width, shape[-1])
    channels, rank = shape[-1], len(window)
    x = graph.input("x", TensorType(declared, dtype))
    filters = random_array(rng, (*window, 1, channels * multiplier), dtype)
    op = Conv((stride,) * rank, padding[:rank], (dilation,) * rank, channels)
    conv = graph.add_node(op, [x, graph.constant(filters, "filters")])
    bias = graph.constant(random_array(rng, (channels * multiplier,), dtype), "bias")
    y = graph.add(ew.Add(), conv.output, bias)
    y = graph.add(Clip(0.0, 6.0), y)
    graph.add(ew.Add(), y, graph.input("residual", y.type))
    return make_task(graph.nodes, conv)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


CASES = {
    "stride 1": dict(shape=(2, 7, 7, 48), window=(3, 3)),
    "stride 2, uneven padding": dict(
        shape=(1, 9, 13, 20), window=(3, 3), stride=2, padding=((0, 1), (0, 1))
    ),
    "dilated": dict(shape=(1, 9, 15, 37), window=(5, 5), dilation=2, padding=((4, 4), (4, 4))),
    "no padding": dict(shape=(1, 5, 30, 16), window=(3, 3), padding=((0, 0), (0, 0))),
    "narrow": dict(shape=(1, 6, 3, 64), window=(3, 3)),
    "large window": dict(shape=(1, 9, 12, 17), window=(13, 13), padding=((6, 6), (6, 6))),
    "one dimension": dict(shape=(2, 20, 33), window=(3,)),
}


@pytest.mark.parametrize("case", CASES)
def test_shapes(case, rng):
    check_tactics(FAMILY, depthwise(**CASES[case]), rng, tolerance=1e-4)


@pytest.mark.parametrize("case", ["stride 1", "stride 2, uneven padding"])
def test_avx2(case, rng):
    machine = restricted("avx2")
    check_tactics(FAMILY, depthwise(**CASES[case]), rng, tolerance=1e-4, machine=machine, limit=3)


@pytest.mark.parametrize("multiplier", [2, 3])
def test_channel_multiplier(multiplier, rng):
    task = depthwise((1, 6, 9, 21), (3, 3), multiplier=multiplier)
    check_tactics(FAMILY, task, rng, tolerance=1e-4, limit=2)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64])
def test_dtypes(dtype, rng):
    task = depthwise((1, 6, 9, 21), (3, 3), dtype=dtype)
    tolerance = {DType.FLOAT16: 2e-2, DType.BFLOAT16: 1e-1, DType.FLOAT64: 1e-12}[dtype]
    check_tactics(FAMILY, task, rng, tolerance=tolerance, limit=1)


def test_rows_with_gaps(rng):
    task = depthwise((2, 7, 9, 20), (3, 3))
    check_tactics(FAMILY, task, rng, layouts=row_padded, tolerance=1e-4, limit=3)


@pytest.mark.parametrize("width", [1, 6, 23])
def test_width_known_when_running(width, rng):
    """One kernel serves all widths; it looks for the border when running."""
    task = depthwise((1, 6, width, 20), (3, 3), width=symbol("W"))
    binding = Binding({"W": width})
    arrays = [
        v.data if v.data is not None else random_array(rng, v.type.bind({"W": width}), v.dtype)
        for v in task.inputs
    ]
    kernels = set()
    for tactic in (Depthwise(task, 4, 1, 1, False), Depthwise(task, 4, 2, 1, True)):
        (got,) = run_tactic(tactic, binding, arrays)
        np.testing.assert_allclose(got, task.evaluate(arrays)[0], rtol=1e-4, atol=1e-4)
        wider = tactic.launches(Binding({"W": width + 7}))
        kernels.add(tactic.launches(binding)[0].kernel == wider[0].kernel)
    assert kernels == {True}


def test_nothing_to_do():
    task = depthwise((0, 7, 7, 8), (3, 3))
    for tactic in FAMILY.tactics(task, Binding({})):
        assert tactic.launches(Binding({})) == []


def test_declines_what_it_cannot_do():
    graph = Graph()
    x = graph.input("x", TensorType((1, 7, 7, 8), DType.FLOAT32))
    dense = graph.constant(np.zeros((3, 3, 8, 8), np.float32))
    conv = graph.add_node(Conv((1, 1), SAME, (1, 1)), [x, dense])
    assert not list(FAMILY.tactics(make_task([conv], conv), Binding({})))
    task = depthwise((1, 7, 7, 8), (3, 3))
    backwards = Layout((1, 7, 7, 8), (392, 7, 1, 49))
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    assert not tactic.accepts(Binding({}, {task.inputs[0]: backwards}))


@pytest.mark.parametrize(
    "change", [{"columns": 0}, {"rows": 9}, {"vectors": True}, {"channels_inner": 1}, {"more": 1}]
)
def test_nonsense_in_a_plan(change):
    task = depthwise((1, 7, 7, 8), (3, 3))
    parameters = next(iter(FAMILY.tactics(task, Binding({})))).parameters
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, {**parameters, **change})


# ---- bytes --------------------------------------------------------------------------------------


def bytes_depthwise(shape, window, *, source, zero, multiplier=1, levels=True, **options) -> Task:
    """ConvInteger of bytes; then to levels again, or nothing."""
    graph = Graph()
    rng = np.random.default_rng(2)
    channels = shape[-1]
    declared = (*shape[:-2], options.pop("width", shape[-2]), channels)
    info = np.iinfo(source.numpy)
    assert info.min <= zero <= info.max
    x = graph.input("x", TensorType(declared, source))
    filters = rng.integers(-128, 128, (*window, 1, channels * multiplier)).astype(np.int8)
    rank = len(window)
    op = ConvInteger(
        (options.pop("stride", 1),) * rank, options.pop("padding", SAME), (1,) * rank, channels
    )
    zeros = graph.constant(np.asarray(zero, source.numpy)), graph.constant(np.int8(0))
    conv = graph.add_node(op, [x, graph.constant(filters), *zeros])
    if levels:
        y = graph.add(Cast(DType.FLOAT32), conv.output)
        factor = rng.uniform(1e-4, 1e-2, channels * multiplier).astype(np.float32)
        y = graph.add(ew.Mul(), y, graph.constant(factor))
        ends = graph.constant(np.float32(1)), graph.constant(np.float32(0))
        graph.add(Quantize(DType.UINT8, 0, 255), y, *ends)
    return make_task(graph.nodes, conv)


BYTES = {
    "to levels": dict(shape=(2, 7, 9, 48), window=(3, 3), source=DType.UINT8, zero=3),
    "to sums": dict(
        shape=(1, 9, 9, 20), window=(5, 5), source=DType.INT8, zero=-9, stride=2, levels=False
    ),
    "unknown width": dict(
        shape=(1, 6, 11, 16), window=(3, 3), source=DType.UINT8, zero=200, width=symbol("w")
    ),
    "multiplied": dict(
        shape=(1, 6, 7, 16), window=(3, 3), source=DType.UINT8, zero=1, multiplier=2
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes(case):
    rng = np.random.default_rng(3)
    options = BYTES[case]
    task, (source, shape) = bytes_depthwise(**options), (options["source"], options["shape"])
    binding = Binding({"w": shape[-2]} if "width" in options else {})
    info = np.iinfo(source.numpy)
    x = rng.integers(info.min, info.max + 1, shape).astype(source.numpy)
    arrays = [x if v.data is None else v.data for v in task.inputs]
    (expected,) = task.evaluate(arrays)
    for tactic in list(FAMILY.tactics(task, binding))[:3]:
        (have,) = run_tactic(tactic, binding, arrays)
        np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


def test_windows_too_large_to_be_exact():
    task = bytes_depthwise(
        (1, 20, 20, 8), (17, 17), source=DType.UINT8, zero=0, padding=((8, 8), (8, 8))
    )
    assert not list(FAMILY.tactics(task, Binding({})))
