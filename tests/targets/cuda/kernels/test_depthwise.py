"""Depthwise convolutions on GPUs: windows, dtypes, multipliers, layouts and fused work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.levels import conv_of_levels
from helpers.tactics import row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, ew
from planish.targets.base import Binding, Layout
from planish.targets.cuda.kernels.depthwise import Depthwise, DepthwiseFamily

FAMILY = DepthwiseFamily()
F16, BF16, F32, F64 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64
TOLERANCES = {F16: 2e-2, BF16: 2e-1, F32: 1e-4, F64: 1e-12}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def convolution(shape, window=3, stride=1, padding=(1, 1), dilation=1, dtype=F32, multiplier=1):
    """A depthwise convolution of square windows and its inputs."""
    spatial, channels = len(shape) - 2, shape[-1]
    op = Conv((stride,) * spatial, (padding,) * spatial, (dilation,) * spatial, channels)
    filters = ((window,) * spatial + (1, channels * multiplier), dtype)
    return (op, 2), [(shape, dtype), filters]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dtypes_with_bias_and_clip(dtype, rng):
    op, inputs = convolution((2, 6, 7, 20), dtype=dtype)
    task = task_of(op, (ew.Add(),), (Clip(0.0, 6.0),), inputs=[*inputs, ((20,), dtype)])
    check_interpreted(FAMILY, task, rng, tolerance=TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((1, 9, 11, 5), {"stride": 2}),
        ((3, 7, 7, 33), {"stride": 3, "padding": (0, 2)}),
        ((1, 8, 9, 16), {"dilation": 2, "padding": (2, 2)}),
        ((2, 5, 6, 8), {"window": 5, "padding": (2, 2)}),
        ((1, 3, 4, 8), {"window": 1, "padding": (0, 0), "stride": 2}),
        ((1, 2, 2, 8), {"window": 2, "padding": (3, 3), "dilation": 3}),
        ((2, 13, 10), {"window": 4, "padding": (3, 0)}),
        ((1, 4, 3, 5, 6), {"stride": 2}),
        ((1, 5, 6, 8), {"multiplier": 3}),
        ((5, 1, 1, 8), {}),
    ],
)
def test_windows(shape, arguments, rng):
    op, inputs = convolution(shape, **arguments)
    check_interpreted(FAMILY, task_of(op, inputs=inputs), rng, tolerance=1e-4)


@pytest.mark.parametrize("tile", [(1, 1), (2, 2), (1, 4)])
@pytest.mark.parametrize(
    "levels",
    [{}, {"dtype": DType.UINT8, "zero": 128}, {"dtype": DType.UINT8, "zero": 9}, {"zero": -128}],
    ids=str,
)
def test_levels_are_multiplied_exactly(tile, levels, rng):
    around = ((1, 1), (0, 2))
    case = dict(window=(3, 3), stride=2, padding=around, groups=20, residual=True, **levels)
    task = conv_of_levels(rng, (2, 7, 6, 20), 20, **case)
    check_interpreted(FAMILY, task, rng, tactics=[Depthwise(task, *tile, 4, 16, 1)])
    check_interpreted(FAMILY, task, rng, limit=2)


def test_levels_with_large_windows_and_several_filters(rng):
    task = conv_of_levels(rng, (1, 4, 5, 6), 12, (9, 9), padding=((4, 4),) * 2, groups=6, zero=3)
    check_interpreted(FAMILY, task, rng)
    uneven = conv_of_levels(rng, (1, 4, 5, 6), 6, (3, 3), groups=6, weight_zero=1)
    assert not list(FAMILY.tactics(uneven, Binding({})))


def test_windows_too_large_to_unroll(rng):
    op, inputs = convolution((1, 4, 5, 6), window=9, padding=(4, 4))
    check_interpreted(FAMILY, task_of(op, inputs=inputs), rng, tolerance=1e-4)


@pytest.mark.parametrize(
    ("tile", "stride"),
    [((1, 4), 1), ((4, 1), 2), ((2, 2), 1), ((2, 2), 2), ((3, 2), 1), ((4, 4), 1)],
)
def test_tiles(tile, stride, rng):
    op, inputs = convolution((2, 7, 6, 20), stride=stride)
    task = task_of(op, (ew.Add(),), inputs=[*inputs, ((20,), F32)])
    tactics = [Depthwise(task, *tile, 4, 16, 1)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, tolerance=1e-4)


def test_a_residual_and_a_scale_of_each_image(rng):
    op, inputs = convolution((3, 5, 5, 12))
    more = [((3, 1, 1, 12), F32), ((3, 5, 5, 12), F32), ((5, 5, 1), F32)]
    task = task_of(op, (ew.Mul(),), (ew.Add(),), (ew.Add(),), inputs=[*inputs, *more])
    check_interpreted(FAMILY, task, rng, tactics=[Depthwise(task, 2, 2, 4, 16, 1)], tolerance=1e-4)


def test_a_prologue_comes_before_the_padding(rng):
    op, inputs = convolution((2, 5, 6, 8), dtype=F16)
    source = [((2, 5, 6, 8), F32), ((8,), F32), inputs[1]]
    task = task_of((ew.Add(),), (Cast(F16),), op, inputs=source)
    assert task.prologue is not None
    check_interpreted(FAMILY, task, rng, tolerance=2e-2)


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
def test_layouts(layouts, rng):
    op, inputs = convolution((2, 5, 6, 9))
    task = task_of(op, (ew.Add(),), inputs=[*inputs, ((2, 5, 6, 9), F32)])
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)
    check_interpreted(FAMILY, task, rng, layouts=layout, tolerance=1e-4)


MOBILENET = [
    ((8, 112, 112, 96), 2),
    ((1, 56, 56, 144), 1),
    ((1, 7, 7, 960), 1),
]


@pytest.mark.parametrize(("shape", "stride"), MOBILENET)
def test_loads_and_stores_are_16_bytes_wide(shape, stride):
    op, inputs = convolution(shape, stride=stride, dtype=F16)
    task = task_of(op, (ew.Add(),), (Clip(0.0, 6.0),), inputs=[*inputs, ((shape[-1],), F16)])
    offered = FAMILY.tactics(task, Binding({}))
    tactic = next(t for t in offered if t.patches * t.channels == 32 * t.warps * 8)
    text = assembly(tactic, Binding({}))
    loads = [line for line in text.splitlines() if "ld.global" in line]
    stores = [line for line in text.splitlines() if "st.global" in line]
    assert loads and all(".v4.b32" in line for line in loads)
    assert stores and all(".v4.b32" in line for line in stores)
    assert "ld.local" not in text


def test_batches_share_kernels():
    kernels = set()
    for batch in (2, 3):
        op, inputs = convolution((batch, 14, 14, 32))
        task = task_of(op, inputs=inputs)
        (launch,) = Depthwise(task, 2, 2, 4, 32, 1).launches(Binding({}))
        kernels.add(launch.kernel)
    assert len(kernels) == 1


def test_an_unaligned_view_compiles():
    op, inputs = convolution((2, 5, 6, 16), dtype=F16)
    task = task_of(op, inputs=inputs)
    layout = Layout((2, 5, 6, 16), (30 * 17, 6 * 17, 17, 1), 2)
    assert compiled(Depthwise(task, 1, 2, 16, 16, 1), Binding({}, {task.inputs[0]: layout}))


def test_plans_cannot_ask_for_other_convolutions():
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 4)
    task = task_of((op, 2), inputs=[((1, 5, 5, 8), F32), ((3, 3, 2, 8), F32)])
    assert not list(FAMILY.tactics(task, Binding({})))
    with pytest.raises(PlanError, match="impossible depthwise kernel"):
        FAMILY.restore(task, {"rows": 1, "columns": 1, "patches": 1, "channels": 16, "warps": 1})
