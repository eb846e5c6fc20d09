"""Checks tactics of a family against the references of the ops, for random arrays and layouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.graph import Value
from planish.ops.base import Op
from planish.ops.elementwise import Elementwise
from planish.targets.base import Binding, Family, Layout, dense_strides
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import run_tactic

HALVES = (DType.FLOAT16, DType.BFLOAT16)


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> np.ndarray:
    """Numbers that all dtypes can hold, and of both signs where there are such."""
    if dtype is DType.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.is_float:
        return (rng.standard_normal(shape) * 3).astype(dtype.numpy)
    low = 0 if dtype.value[0] == "u" else -100
    return rng.integers(low, 101, shape).astype(dtype.numpy)


def task_of(*ops: tuple[Op, ...], inputs: Sequence[tuple[Sequence[int], DType]]) -> Task:
    """A chain of ops as a task: each takes the last result and the inputs not yet used.

    An op's tuple may say how many of the inputs come before the result: ``(op, 1)``.
    """
    graph = Graph()
    values = [
        graph.input(f"x{i}", TensorType(tuple(shape), dtype))
        for i, (shape, dtype) in enumerate(inputs)
    ]
    nodes, anchor, result = [], None, values.pop(0)
    for op, *arity in ops:
        count = arity[0] if arity else getattr(op, "arity", 1)
        others = [values.pop(0) for _ in range(count - 1)]
        node = graph.add_node(op, (result, *others) if count else ())
        nodes.append(node)
        result = node.outputs[0]
        if not isinstance(op, Elementwise):
            anchor = node
    assert not values
    return make_task(nodes, anchor)


def strided(value: Value, rng: np.random.Generator, gaps: bool = True) -> Layout:
    """A layout with its axes in any order in memory, and with gaps."""
    shape = value.type.bind({})
    order = rng.permutation(len(shape))
    strides = [0] * len(shape)
    step = int(rng.integers(1, 3)) if gaps else 1
    for axis in order:
        strides[axis] = step
        step *= shape[axis] + (int(rng.integers(0, 3)) if gaps else 0)
        step = max(step, 1)
    return Layout(shape, tuple(strides))


def row_padded(value: Value, gap: int = 3) -> Layout:
    """A layout whose last axis is dense, with a gap after each row."""
    shape = value.type.bind({})
    if not shape:
        return Layout((), ())
    padded = (*shape[:-1], shape[-1] + gap)
    return Layout(shape, dense_strides(padded))


def check_tactics(
    family: Family,
    task: Task,
    rng: np.random.Generator,
    *,
    layouts: Callable[[Value], Layout] | None = None,
    machine: Machine | None = None,
    arrays: Sequence[np.ndarray] | None = None,
    tolerance: float = 0.0,
    limit: int | None = None,
) -> None:
    """Runs every tactic, and each again as a plan would restore it; there must be some."""
    values = (*task.inputs, *task.outputs)
    chosen = {v: layouts(v) for v in values} if layouts else {}
    binding = Binding({}, chosen)
    if arrays is None:
        arrays = [
            v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
            for v in task.inputs
        ]
    expected = task.evaluate(arrays)
    tactics = list(family.tactics(task, binding))[:limit]
    assert tactics, "the family declines the task"
    for offered in tactics:
        tactic = family.restore(task, offered.parameters)
        assert tactic == offered
        assert tactic.accepts(binding)
        outputs = run_tactic(tactic, binding, arrays, machine or host())
        for output, array in zip(outputs, expected, strict=True):
            assert output.shape == array.shape
            assert output.dtype == array.dtype
            assert_close(output, array, tolerance)
            assert_gaps_untouched(output)


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal, NaNs too, or within a relative tolerance."""
    if DType.of(expected.dtype) in HALVES:  # NumPy does not compare bfloat16's NaNs
        got, expected = got.astype(np.float32), expected.astype(np.float32)
    if tolerance:
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(got, expected)


def assert_gaps_untouched(output: np.ndarray) -> None:
    """Memory between the elements of an output that `run_tactic` laid out is as it was."""
    memory, below = output, output.base
    while below is not None:  # NumPy puts objects of its own between views
        memory = below if isinstance(below, np.ndarray) else memory
        below = getattr(below, "base", None)
    start = output.ctypes.data - memory.ctypes.data
    size = output.itemsize
    reach = 1 + sum(
        s // size * (n - 1) for s, n in zip(output.strides, output.shape, strict=True) if n
    )
    if output.size == 0 or reach == output.size:
        return
    region = memory.view(np.uint8).reshape(-1)[start : start + reach * size]
    touched = np.zeros(reach, bool)
    np.lib.stride_tricks.as_strided(
        touched, output.shape, tuple(s // size for s in output.strides)
    )[...] = True
    poison = 1 if output.dtype == bool else 0xA5
    assert (region.reshape(reach, size)[~touched] == poison).all(), "a gap was written"
