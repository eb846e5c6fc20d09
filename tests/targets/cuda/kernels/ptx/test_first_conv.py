"""First convolutions, pooled or not, against the references: without a GPU in an interpreter that
delays products; sizes, borders, copies of rows, dtypes, images' layouts; what is offered.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.first_layers import FirstNet, first_tasks
from helpers.interpreted import check_interpreted
from helpers.levels import conv_of_levels
from helpers.products import SAME, TOLERANCES, arrays, conv_task
from helpers.ptx_text import without
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph import DType
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.codegen.compile import triton
from planish.targets.cuda.kernels.ptx.first_conv.kernel import FirstConvKernel, packed
from planish.targets.cuda.kernels.ptx.first_conv.tactics import (
    FAMILIES,
    HIGHS,
    RINGS,
    FirstConvTactic,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.ptx_interpreter import Deadlock
from planish.targets.cuda.run import is_on_gpu, run_tactic

F16, BF16, I8 = DType.FLOAT16, DType.BFLOAT16, DType.INT8
NONE = ((0, 0), (0, 0))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(71)


def family(task: Task):
    (found,) = [f for f in FAMILIES if f.pattern == task.pattern]
    return found


def image_task(graph) -> Task:
    """The largest task that is no pooling."""
    found = [t for t in propose(graph) if t.anchor is not None and not t.pooled]
    return max((t for t in found if t.anchor.op.name != "transpose"), key=lambda t: len(t.nodes))


def check(task: Task, rng, *tactics: tuple[int, ...], layouts=None) -> None:
    data = arrays(task, rng)
    expected = [e.astype(np.float32) for e in task.evaluate(data)]
    scale = max(1.0, *(float(np.abs(e).max()) for e in expected))
    made = [FirstConvTactic(task, *t) for t in tactics or [(1, 6, 1, 1), (3, 16, 2, 3)]]
    check_interpreted(
        family(task),
        task,
        rng,
        tactics=made,
        arrays=data,
        layouts=layouts,
        tolerance=TOLERANCES.get(task.anchor.inputs[0].dtype, 0) * scale,
        limit=None,
    )


@pytest.mark.parametrize("dtype", [F16, BF16, I8], ids=str)
@pytest.mark.parametrize("edges", [((1, 1), (1, 1)), ((0, 0), (0, 0)), ((1, 0), (0, 1))], ids=str)
def test_poolings_that_overlap(dtype, edges):
    rng = np.random.default_rng()
    rows, columns = (int(n) for n in rng.integers(9, 40, 2))
    net = FirstNet(int(rng.integers(1, 4)), rows, columns, dtype=dtype, edges=edges)
    check(first_tasks(net.graph)[-1], rng)


@pytest.mark.parametrize("dtype", [F16, I8], ids=str)
@pytest.mark.parametrize("window", [3, 5])
def test_poolings_that_do_not(dtype, window):
    rng = np.random.default_rng()
    rows, columns = (int(n) for n in rng.integers(12, 30, 2))
    net = FirstNet(2, rows, columns, dtype=dtype, window=window, pad=1, pool=2, edges=NONE)
    check(first_tasks(net.graph)[-1], rng)


@pytest.mark.parametrize(
    "more",
    [
        dict(channels=1, filters=8),
        dict(channels=4, filters=96, activation="clip"),
        dict(channels=2, filters=70, activation="none"),
        dict(filters=62, transposed=False, converted=False),
        dict(filters=64, converted=False, dtype=BF16),
        dict(filters=130, dtype=I8, transposed=False),
        dict(transposed=False, columns=24),
        dict(window=9, pad=4),
        dict(window=3, pad=1, strides=1, pool=2, edges=NONE, dtype=F16),  # two copies of a row
        dict(window=3, pad=1, strides=1, dtype=I8),  # four
        dict(window=5, pad=2, strides=4, rows=33, columns=41, dtype=I8),  # one
    ],
    ids=str,
)
def test_other_layers(more, rng):
    check(first_tasks(FirstNet(**{"rows": 15, "columns": 22} | more).graph)[-1], rng)


def test_a_row_of_many_runs(rng):
    for dtype in (F16, I8):
        net = FirstNet(1, 7, 131, dtype=dtype, window=3, pad=1)
        check(first_tasks(net.graph)[-1], rng, (2, 4))


@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(2, 13, 15, 3), filters=32, window=(3, 3), stride=2),
        dict(shape=(1, 9, 20, 3), filters=64, window=(3, 3), padding=SAME),
        dict(shape=(3, 12, 12, 4), filters=72, window=(5, 3), stride=2, padding=((2, 1), (0, 2))),
        dict(shape=(1, 8, 560, 1), filters=16, window=(1, 7), stride=2, padding=((0, 0), (3, 3))),
    ],
    ids=str,
)
def test_no_pooling(case, rng):
    for dtype in (F16, BF16):
        if case["shape"][2] < 500:
            check(conv_task(rng, dtype=dtype, **case), rng)
    if case["shape"][2] > 500:  # too wide
        task = conv_task(rng, **case)
        assert not FirstConvTactic(task, 1, 16).accepts(Binding({}))
        return
    check(conv_of_levels(rng, quantize=True, **case), rng)
    for to in (F16, None):
        task = conv_of_levels(rng, quantize=True, to=to if to is None else DType.INT8, **case)
        check(task, rng, (2, 12))


def test_images_as_frameworks_give_them(rng):
    for dtype in (F16, I8):
        for columns in (12, 15):
            net = FirstNet(2, 10, columns, dtype=dtype, pool=0, filters=32)
            check(image_task(net.graph), rng)


def test_gaps(rng):
    """Rows of images, and pixels of results, need not lie side by side."""
    task = first_tasks(FirstNet(2, 12, 16).graph)[-1]

    def layout(value):
        return row_padded(value, 8 if value.data is None else 0)

    check(task, rng, layouts=layout)

    def shifted(value):
        shape = value.type.bind({})
        if value.is_constant or value in task.outputs:
            return Layout(shape, dense_strides(shape))
        return Layout(shape, dense_strides(shape), 4)  # loads of one element

    check(task, rng, layouts=shifted)


def test_a_nan_reaches_its_windows_and_one_beside(rng):
    task = first_tasks(FirstNet(1, 24, 40, activation="none").graph)[-1]
    data = arrays(task, rng)
    data[0][0, 1, 11, 20] = np.nan
    (output,) = run_tactic(FirstConvTactic(task, 2, 8), Binding({}), data)
    (wanted,) = task.evaluate(data)
    found, should = (np.isnan(x).any(-1) for x in (output, wanted))
    assert should.any() and found[should].all()
    assert set(np.nonzero(found.any((0, 1)))[0]) <= set(range(3, 8))


def test_sums_of_any_sign(rng):
    """What lies beside an image never wins."""
    task = first_tasks(FirstNet(1, 12, 16, dtype=I8, scale=-1.0).graph)
    assert not task  # the largest sum is the smallest level
    task = first_tasks(FirstNet(1, 13, 17, activation="none", seed=3).graph)[-1]
    values = zip(task.inputs, arrays(task, rng), strict=True)
    data = [np.abs(a) if v.data is None else a for v, a in values]
    check(task, rng)
    (output,) = run_tactic(FirstConvTactic(task, 2, 8), Binding({}), data)
    (wanted,) = task.evaluate(data)
    assert (wanted < 0).any()
    np.testing.assert_allclose(output.astype(np.float32), wanted.astype(np.float32), atol=2e-2)


def test_packed_filters():
    rng = np.random.default_rng()
    filters = rng.standard_normal((7, 7, 3, 64)).astype(np.float16)
    held = packed(filters, 3)
    assert held.shape == (1, 14, 128, 8)
    # thread 5 of warp 1: filters 16 + 2 and 16 + 3, elements 2 and 3 and 8 behind them
    own = held[0, 3, 32 + 5].reshape(2, 2, 2)
    whole = np.zeros((8, 4, 64), np.float16)
    whole[1:, :3] = filters[1]
    depth = whole.reshape(32, 64)[16:]
    for half in range(2):
        for which in range(2):
            wanted = depth[8 * half + 2 : 8 * half + 4, 18 + which]
            np.testing.assert_array_equal(own[half, which], wanted)


@pytest.mark.parametrize(
    ("pattern", "which"),
    [("try_wait", 0), ("try_wait", -1), ("mbarrier.arrive", 0), ("mbarrier.arrive", -1)],
)
def test_a_barrier_that_lacks_is_found(pattern, which, rng, monkeypatch):
    if is_on_gpu():
        pytest.skip("a GPU would wait for ever")
    task = first_tasks(FirstNet(1, 40, 16).graph)[-1]
    data, change = arrays(task, rng), without(pattern, which)
    text = FirstConvKernel.text
    monkeypatch.setattr(FirstConvKernel, "text", lambda self: change(text(self)))
    (wanted,) = task.evaluate(data)
    try:
        with np.errstate(all="ignore"):
            (output,) = run_tactic(FirstConvTactic(task, 10, 6), Binding({}), data)
    except (AssertionError, Deadlock):
        return
    assert not np.allclose(output.astype(np.float32), wanted.astype(np.float32), atol=2e-2)


NETWORKS = [
    dict(rows=224, columns=224),
    dict(rows=224, columns=224, dtype=I8),
    dict(rows=224, columns=224, dtype=BF16, edges=NONE),
    dict(rows=256, columns=256),
    dict(rows=225, columns=225, dtype=I8),
    dict(rows=299, columns=299, window=3, pad=0, filters=32, pool=0),
    dict(rows=224, columns=224, window=3, pad=1, filters=32, pool=0, dtype=I8),
]


@pytest.mark.parametrize("net", NETWORKS, ids=str)
@pytest.mark.parametrize("batch", [1, 8, 128])
def test_tactics_of_a_network(net, batch, tmp_path: Path):
    graph = FirstNet(images=batch, **net).graph
    task = first_tasks(graph)[-1] if net.get("pool", 3) else image_task(graph)
    binding = Binding({})
    tactics = list(family(task).tactics(task, binding))
    assert 2 <= len(tactics) == len(set(tactics)) <= 3 * HIGHS
    for made in tactics:
        assert family(task).restore(task, made.parameters) == made
        (launch,) = made.launches(binding)
        assert launch.kernel.shared * launch.kernel.at_once <= H200.shared_per_multiprocessor
    source, code = tmp_path / "kernel.ptx", tmp_path / "kernel.cubin"
    text = launch.kernel.text()
    source.write_text(text)
    tool = triton().knobs.nvidia.ptxas.path
    command = [tool, "-v", "--gpu-name=sm_90a", str(source), "-o", str(code)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.search("C751[0-6]", done.stderr)  # products must not wait for one another
    assert " 0 bytes spill stores" in done.stderr
    shown = subprocess.run(
        [triton().knobs.nvidia.nvdisasm.path, "-c", str(code)], capture_output=True, text=True
    ).stdout
    for ptx, machine in (("shfl.sync", "SHFL"), ("wgmma.mma_async", "[HI]GMMA.*R")):
        assert len(re.findall(machine, shown)) >= text.count(ptx)


def test_what_is_declined(rng):
    for task in (
        conv_task(rng, (2, 16, 16, 8), 64, (3, 3), padding=SAME),
        conv_task(rng, (2, 16, 16, 3), 64),
        conv_task(rng, (2, 16, 16, 3), 64, (3, 3), dtype=DType.FLOAT32),
        conv_task(rng, (2, 16, 16, 3), 64, (3, 3), dilation=2),
        conv_task(rng, (2, 16, 16, 3), 64, (3, 3), residual=True),
        conv_task(rng, (2, 16, 16, 3), 63, (3, 3)),
        conv_task(rng, (2, 32, 32, 3), 64, (3, 3), stride=3),
        conv_task(rng, (2, 16, 16, 3), 64, (3, 3), prologue="affine"),
        conv_task(rng, (2, 16, 1040, 3), 64, (3, 3), stride=2),
        conv_of_levels(rng, (2, 16, 16, 3), 64, (3, 3), quantize=True, zero=3),
        conv_of_levels(rng, (2, 16, 16, 3), 64, (3, 3)),
    ):
        assert not list(family(task).tactics(task, Binding({})))
    task = conv_task(rng, (2, 16, 16, 3), 64, (3, 3))
    assert list(family(task).tactics(task, Binding({})))
    old = family(task).on(replace(H200, capability=(8, 0)))
    assert not list(old.tactics(task, Binding({})))


@pytest.mark.parametrize("change", [dict(high=0), dict(ring=5), dict(ring=0), dict(high=9999)])
def test_impossible_parameters(change, rng):
    task = first_tasks(FirstNet().graph)[-1]
    good = FirstConvTactic(task, 2, RINGS[-1]).parameters
    assert family(task).restore(task, good).parameters == good
    with pytest.raises(PlanError):
        family(task).restore(task, dict(good) | change)
    wide = conv_task(rng, (2, 16, 16, 8), 64, (3, 3), padding=SAME)
    with pytest.raises(PlanError):
        family(wide).restore(wide, good)
    assert not FirstConvTactic(task, 2, 4).accepts(Binding({}))  # a row reads four units
