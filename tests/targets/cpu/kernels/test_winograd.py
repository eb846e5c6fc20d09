"""Winograd convolution against the references: windows, borders, tails, layouts, epilogues."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helpers.machines import restricted
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType, symbol
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.codegen.compile import emit_text
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.winograd import WinogradFamily, WinogradTactic
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import run_tactic

TOLERANCE = 1e-5
"""Of the largest result, as for the matrix kernel: what a sum in another order may differ by."""


def conv_task(
    shape: tuple,
    filters: int,
    window: tuple[int, ...],
    pad: tuple[int, ...] = (),
    *,
    strides: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    groups: int = 1,
    residual: bool = False,
    dtype: DType = DType.FLOAT32,
) -> Task:
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.input("x", TensorType(shape, dtype))
    size = (*window, int(shape[-1]) // groups, filters)
    weights = graph.constant(rng.standard_normal(size).astype(dtype.numpy))
    ones = (1,) * len(window)
    padding = tuple((p, p) for p in pad or (0,) * len(window))
    y = graph.add(Conv(strides or ones, padding, dilations or ones, groups), x, weights)
    anchor = y.producer
    nodes = [anchor]
    if dtype is not DType.FLOAT32:
        y = graph.add(Cast(DType.FLOAT32), y)
        nodes.append(y.producer)
    others = [graph.constant(rng.standard_normal(filters).astype(np.float32))]
    if residual:
        others.append(graph.input("residual", y.type))
    for other in others:
        y = graph.add(ew.Add(), y, other)
        nodes.append(y.producer)
    y = graph.add(ew.Relu(), y)
    nodes.append(y.producer)
    graph.mark_output(y, "y")
    return make_task(nodes, anchor)


def tactics_of(task: Task, machine: Machine) -> list[WinogradTactic]:
    """Every size of tile with a wide and a tall register tile, little cache and much."""
    family = WinogradFamily(machine)
    window = len({n for n in task.anchor.inputs[1].data.shape[:-2] if n > 1})
    assert window == 1
    may_be_narrow = task.inputs[0].dtype is DType.BFLOAT16
    found = []
    for results, (pixels, vectors), halves in (
        (2, (6, 1), 1),
        (4, (3, 2), 1),
        (2, (2, 3), 8),
        (4, (4, 1), 4),
    ):
        chosen = {"results": results, "pixels": pixels, "vectors": vectors, "halves": halves}
        try:
            for narrow in (False, True)[: 1 + may_be_narrow]:
                found.append(family.restore(task, {**chosen, "narrow": narrow}))
        except PlanError:
            assert 7 in task.anchor.inputs[1].data.shape[:-2] or may_be_narrow
            assert results == 4
    return found


def check(
    task: Task,
    *,
    symbols: dict[str, int] | None = None,
    layouts: Callable[[Value], Layout] | None = None,
    machine: Machine | None = None,
) -> None:
    symbols = symbols or {}
    values = (*task.inputs, *task.outputs)
    binding = Binding(symbols, {v: layouts(v) for v in values} if layouts else {})
    rng = np.random.default_rng(1)
    arrays = [
        v.data
        if v.data is not None
        else rng.standard_normal(v.type.bind(symbols)).astype(v.dtype.numpy)
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    scale = float(np.abs(expected).max(initial=1e-6))
    for tactic in tactics_of(task, machine or host()):
        assert tactic.accepts(binding)
        (have,) = run_tactic(tactic, binding, arrays, machine)
        tolerance = TOLERANCE
        if task.inputs[0].dtype is DType.BFLOAT16:
            # the reference rounds the convolution to 8 bits; if narrow, patches and weights
            # are rounded when they are transformed
            tolerance = 2**-7 if tactic.narrow else 2**-8
        np.testing.assert_allclose(
            have, expected, rtol=0, atol=tolerance * scale, err_msg=str(tactic)
        )


CASES = {
    "whole tiles": conv_task((1, 8, 8, 16), 16, (3, 3), (1, 1)),
    "tiles that leave the image": conv_task((2, 9, 11, 16), 32, (3, 3), (1, 1), residual=True),
    "odd channels": conv_task((1, 7, 6, 19), 21, (3, 3), (1, 1), residual=True),
    "fewer channels than lanes": conv_task((1, 6, 5, 3), 5, (3, 3), (1, 1)),
    "no padding": conv_task((1, 10, 12, 24), 16, (3, 3)),
    "much padding": conv_task((1, 3, 4, 16), 16, (3, 3), (2, 2)),
    "one pixel": conv_task((3, 1, 1, 16), 16, (3, 3), (1, 1)),
    "along columns": conv_task((1, 5, 9, 16), 16, (1, 3), (0, 1)),
    "along rows": conv_task((2, 9, 5, 16), 16, (3, 1), (1, 0)),
    "windows of 5": conv_task((1, 9, 7, 16), 24, (5, 5), (2, 2)),
    "windows of 7": conv_task((1, 9, 8, 16), 16, (1, 7), (0, 3), residual=True),
    "one dimension": conv_task((2, 13, 16), 16, (3,), (1,), residual=True),
    "bfloat16": conv_task((2, 9, 11, 19), 32, (3, 3), (1, 1), dtype=DType.BFLOAT16),
}


@pytest.mark.parametrize("name", CASES)
def test_conv(name: str) -> None:
    check(CASES[name])


@pytest.mark.parametrize("name", ["tiles that leave the image", "odd channels", "windows of 7"])
def test_conv_avx2(name: str) -> None:
    check(CASES[name], machine=restricted("avx2"))


def test_part_of_a_larger_tensor() -> None:
    """Input, output and residual may be channel slices of wider tensors."""

    def slices(value: Value) -> Layout:
        shape = value.type.bind({})
        wide = (*shape[:-1], shape[-1] + 5) if len(shape) == 4 else shape
        return Layout(shape, dense_strides(wide))

    check(CASES["odd channels"], layouts=slices)


def test_symbolic_batch() -> None:
    task = conv_task((symbol("N"), 6, 6, 16), 16, (3, 3), (1, 1))
    for n in (1, 5):
        check(task, symbols={"N": n})


def test_results_do_not_depend_on_threads() -> None:
    """Tasks one by one, and all of them in one call, write the same bits."""
    task = conv_task((2, 20, 20, 16), 48, (3, 3), (1, 1))
    rng = np.random.default_rng(2)
    arrays = [
        v.data if v.is_constant else rng.standard_normal(v.type.bind({})).astype(np.float32)
        for v in task.inputs
    ]
    results = set()
    for machine in (host(), Machine(**{**vars(host()), "cores": 7})):
        tactic = WinogradTactic(task, machine, 4, 4, 1, 1)
        (have,) = run_tactic(tactic, Binding({}), arrays)
        results.add(have.tobytes())
    assert len(results) == 1


def test_errors_are_those_of_a_direct_sum() -> None:
    """At 256 channels of positive data F(4, 3) stays within three times a float32 sum's error."""
    task = conv_task((1, 16, 16, 256), 32, (3, 3), (1, 1))
    rng = np.random.default_rng(3)
    arrays = [
        v.data
        if v.is_constant
        else np.maximum(rng.standard_normal(v.type.bind({})), 0).astype(np.float32)
        for v in task.inputs
    ]
    wide = [a.astype(np.float64) for a in arrays]
    padded = np.pad(wide[0], ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        padded[:, i : i + 16, j : j + 16] @ wide[1][i, j] for i in range(3) for j in range(3)
    )
    exact = np.maximum(exact + wide[2], 0)
    (have,) = run_tactic(WinogradTactic(task, host(), 4, 4, 2, 4), Binding({}), arrays)
    assert np.abs(have - exact).max() < 5e-6 * exact.max()


@pytest.mark.parametrize(
    "case",
    [
        {"strides": (2, 2)},
        {"dilations": (2, 2)},
        {"groups": 2},
        {"window": (3, 5)},
        {"window": (1, 1)},
        {"window": (4, 4)},
    ],
    ids=str,
)
def test_other_convolutions_are_declined(case: dict) -> None:
    task = conv_task((1, 28, 28, 64), 64, **{"window": (3, 3), **case})
    assert not list(WinogradFamily().tactics(task, Binding({})))
    with pytest.raises(PlanError, match="does not compute this conv"):
        WinogradFamily().restore(task, {})


def test_offered_where_it_may_pay() -> None:
    wide = conv_task((1, 28, 28, 64), 64, (3, 3), (1, 1))
    narrow = conv_task((1, 28, 28, 4), 4, (3, 3), (1, 1))
    offered = list(WinogradFamily().tactics(wide, Binding({})))
    assert offered
    assert not list(WinogradFamily().tactics(narrow, Binding({})))
    for tactic in offered:
        again = WinogradFamily().restore(wide, tactic.parameters)
        assert again.parameters == tactic.parameters


def test_restore_refuses_what_no_kernel_is_made_for() -> None:
    task = conv_task((1, 28, 28, 64), 64, (1, 7), (0, 3))
    possible = {"results": 2, "pixels": 4, "vectors": 2, "halves": 4, "narrow": False}
    family = WinogradFamily()
    assert family.restore(task, possible).parameters == possible
    with pytest.raises(PlanError, match="do not suit its window"):
        family.restore(task, {**possible, "results": 4})
    with pytest.raises(PlanError, match="no register tile is that large"):
        family.restore(task, {**possible, "pixels": 20})
    with pytest.raises(PlanError, match="narrow is True"):
        family.restore(task, {**possible, "narrow": True})
    halves = conv_task((1, 8, 8, 16), 16, (3, 3), dtype=DType.BFLOAT16)
    with pytest.raises(PlanError, match="narrow tiles have 2 pixels"):
        family.restore(halves, {**possible, "results": 4, "narrow": True})


def test_avx512_code_keeps_its_tile_in_registers() -> None:
    """The inner loop of the products has nothing to do with the stack."""
    machine = generic("avx512")
    task = conv_task((1, 28, 28, 256), 256, (3, 3), (1, 1))
    (launch,) = WinogradTactic(task, machine, 4, 14, 2, 4).launches(Binding({}))
    kernel = launch.kernel
    assert isinstance(kernel, CpuKernel)
    text = emit_text(kernel.assembly(machine), machine)
    (inner,) = (block for block in text.split(".LBB") if block.count("vbroadcastss") == 14 * 4)
    assert inner.count("vfmadd") == 28 * 4
    assert "zmm31" in inner
    assert "(%rsp)" not in inner
