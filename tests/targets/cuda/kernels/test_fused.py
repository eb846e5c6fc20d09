"""What kernels share: axes merged, broadcasting, masks per axis, results of several axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.tactics import assert_close, random_array, task_of
from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import (
    Access,
    Work,
    access,
    bind_work,
    broadcast_strides,
    decompose,
    finish,
    is_wide,
    merge,
    offset,
    whole_mask,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import interpret

F32 = DType.FLOAT32


# ---- merging -----------------------------------------------------------------------------------


def test_merge():
    assert merge((2, 3, 4), [(12, 4, 1)]) == ((24,), [(1,)])
    assert merge((2, 3, 4), [(12, 4, 1), (0, 0, 1)]) == ((6, 4), [(4, 1), (0, 1)])
    assert merge((2, 3, 4), [(12, 4, 1), (4, 0, 1)]) == ((2, 3, 4), [(12, 4, 1), (4, 0, 1)])
    assert merge((2, 3, 4), [(24, 8, 2)]) == ((24,), [(2,)])
    assert merge((2, 1, 4), [(4, 99, 1)]) == ((8,), [(1,)])
    assert merge((2, 3, 4), [(12, 4, 1)], (2,)) == ((6, 4), [(4, 1)])
    assert merge((2, 3, 4), [(12, 4, 1)], range(3)) == ((2, 3, 4), [(12, 4, 1)])
    assert merge((-1, 3, 4), [(12, 4, 1)]) == ((-12,), [(1,)])


def test_merge_keeps_an_axis_of_each_group():
    assert merge((), [(), ()]) == ((1,), [(0,), (0,)])
    assert merge((1, 1), [(5, 1)]) == ((1,), [(0,)])
    assert merge((1, 1, 4), [(4, 4, 1)], (2,)) == ((1, 4), [(0, 1)])
    assert merge((6, 1), [(1, 1)], (1,)) == ((6, 1), [(1, 0)])
    assert merge((1, 1, 1), [(7, 7, 7)], (1, 2)) == ((1, 1, 1), [(0, 0, 0)])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_merged_axes_reach_the_same_elements(data):
    shape = data.draw(st.lists(st.integers(1, 4), max_size=5))
    strides = [
        data.draw(
            st.one_of(
                st.just(dense_strides(shape)),
                st.tuples(*(st.sampled_from([0, 1, 2, 3, 4, 6, 12]) for _ in shape)),
            )
        )
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    groups = data.draw(st.lists(st.integers(0, max(len(shape) - 1, 0)), max_size=2))
    extents, steps = merge(shape, strides, groups)
    assert len(extents) >= len({0, *groups})
    for old, new in zip(strides, steps, strict=True):
        assert (places(shape, old) == places(extents, new)).all()


def places(shape, strides) -> np.ndarray:
    """Offsets of all elements in the order of a dense array."""
    index = np.indices(tuple(shape)).reshape(len(shape), int(np.prod(shape)))
    return (np.array(strides, int).reshape(-1, 1) * index).sum(0)


# ---- binding -----------------------------------------------------------------------------------


def test_broadcast_strides():
    assert broadcast_strides(Layout((3, 1), (5, 1)), (2, 3, 4)) == (0, 5, 0)
    assert broadcast_strides(Layout((), ()), (2, 3)) == (0, 0)


def test_wide_offsets():
    assert not is_wide(Layout((1 << 31,), (1,)))
    assert is_wide(Layout(((1 << 31) + 1,), (1,)))
    assert is_wide(Layout((2, 2), (1 << 31, 1)))
    assert not is_wide(Layout((1, 2), (1 << 40, 1)))
    value = Value("x", TensorType((2, 8), F32))
    layout = Layout((2, 8), (1 << 31, 1), 4)
    item = access(value, Binding({}, {value: layout}), (3, 2, 8))
    assert item == Access(Pointer(F32, False), (0, 1 << 31, 1), True)
    assert offset(item, ["a", "b", "c"]) == f"(b).to(tl.int64) * {1 << 31} + (c).to(tl.int64)"
    assert offset(item, ["a", "0", "0"]) == "0"


def test_bind_work():
    task = task_of((ew.Add(),), inputs=[((4, 6, 8), F32), ((8,), F32)])
    work, extents, values = bind_work(task, task.epilogue, task.outputs, Binding({}), (4, 6, 8))
    assert extents == (24, 8) and work.shape == (-1, 8)
    assert values == (*task.inputs, task.output)
    assert [a.strides for a in work.leaves if a] == [(8, 1), (0, 1)]
    assert [a.strides for a in work.outputs] == [(8, 1)]


def test_masks():
    assert whole_mask(None) is None
    assert whole_mask("m") == "m"
    assert whole_mask(["a", None, "a", "b"]) == "a & b"
    assert whole_mask([None, None]) is None


# ---- kernels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile(TritonKernel):
    """One program over rows x columns; what it computes itself is twice the column."""

    work: Work
    rows: int
    columns: int
    separate: bool

    family = "tile"

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return self.work.pointers

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        row = k.let("row", f"tl.arange(0, {self.rows})[:, None]")
        column = k.let("column", f"tl.arange(0, {self.columns})[None, :]")
        own = k.let("own", f"({row} * 0 + {column} * 2).to(tl.float32)")
        masks = [f"({row} < n0)", f"({column} < {self.work.shape[1]})"]
        mask = masks if self.separate else " & ".join(masks)
        finish(k, self.work, 0, [row, column], mask, [own])


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (5, 1), (1, 1)])
@pytest.mark.parametrize("other", [(1, 1), (0, 1), (1, 0), (0, 0)])
def test_finish(shape, other, separate):
    """Rows x columns of accumulators + an operand, which has some of the axes, and its sign."""
    expression = Expression(
        (Leaf(F32), Leaf(F32)),
        (Instruction(ew.Add(), (0, 1), F32), Instruction(ew.Greater(), (2, 1), DType.BOOL)),
        (2, 3),
    )
    extents = [n if o else 1 for n, o in zip(shape, other, strict=True)]
    y = random_array(np.random.default_rng(1), extents, F32)
    strides = broadcast_strides(Layout(y.shape, dense_strides(y.shape)), shape)
    own = tuple(0 if n == 1 else s for n, s in zip(shape, (9, 1), strict=True))
    outputs = (Access(Pointer(F32), own), Access(Pointer(DType.BOOL), own))
    work = Work((-1, shape[1]), expression, (None, Access(Pointer(F32), strides)), outputs)
    total, above = np.full((shape[0], 9), 77, np.float32), np.zeros((shape[0], 9), bool)
    kernel = Tile(4, 1, work, 8, 8, separate)
    interpret(kernel, [a.ctypes.data for a in (y, total, above)], (shape[0],), 1)
    computed = np.arange(shape[1], dtype=np.float32) * 2 + np.zeros(shape, np.float32)
    sums, signs = expression.evaluate([computed, y])
    assert_close(total[:, : shape[1]], sums, 0)
    assert_close(above[:, : shape[1]], signs, 0)
    assert (total[:, shape[1] :] == 77).all() and not above[:, shape[1] :].any()


def test_finish_compiles():
    leaves = (Leaf(F32), Leaf(DType.FLOAT16))
    expression = Expression(leaves, (Instruction(ew.Add(), (0, 0), F32),), (2, 1))
    for strides in ((64, 1), (0, 1), (64, 0), (0, 0)):
        wide = Access(Pointer(DType.FLOAT16), strides, True)
        outputs = (Access(Pointer(F32), (64, 1)), Access(Pointer(DType.FLOAT16), (0, 1)))
        kernel = Tile(4, 1, Work((-1, 64), expression, (None, wide), outputs), 16, 64, True)
        assert kernel.compile(H200)


def test_decompose():
    k = Source()
    names = decompose(k, "flat", (-1, 5, 7))
    text = k.finish("f", 0, 0).splitlines()
    scope = {"flat": np.arange(70)}
    exec("\n".join(line.strip() for line in text if " = " in line), scope)
    for name, expected in zip(names, np.unravel_index(np.arange(70), (2, 5, 7)), strict=True):
        assert (scope[name] == expected).all()
    assert decompose(Source(), "flat", (-1,)) == ["flat"]
