"""Kernels in Triton's interpreter: what it corrects, and that it notices kernels that misbehave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.tactics import task_of
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.targets.base import (
    Binding,
    Constant,
    Launch,
    Layout,
    Tactic,
    Workspace,
    Zeroed,
)
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.run import interpret, run_tactic

F32 = DType.FLOAT32


@dataclass(frozen=True)
class Lines(TritonKernel):
    """A kernel given line by line."""

    dtypes: tuple[DType, ...]
    lines: tuple[str, ...]
    parameters: int = 0

    family = "lines"

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return tuple(Pointer(d) for d in self.dtypes)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * self.parameters

    def write(self, k: Source) -> None:
        k.line("i = tl.arange(0, 16)")
        for line in self.lines:
            k.line(line)


@dataclass(frozen=True)
class LinesTactic(Tactic):
    """Lines on: the input, the output, a constant, workspace, memory that is zero."""

    family = "lines"

    task: Task
    lines: tuple[str, ...]

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def constants(self) -> list[np.ndarray]:
        return [np.arange(16, dtype=np.float32)]

    def workspace(self, binding: Binding) -> int:
        return 64

    def zeroed(self, binding: Binding) -> int:
        return 64

    def launches(self, binding: Binding) -> list[Launch]:
        kernel = Lines(4, 1, (F32, F32, F32, F32, DType.INT32), self.lines)
        pointers = (self.task.inputs[0], self.task.output, Constant(0), Workspace(), Zeroed())
        return [Launch(kernel, pointers)]


def run(*lines: str, layouts=None) -> np.ndarray:
    task = task_of((ew.Relu(),), inputs=[((16,), F32)])
    binding = Binding({}, {task.output: layouts} if layouts else {})
    x = np.arange(16, dtype=np.float32) - 8
    return run_tactic(LinesTactic(task, lines), binding, [x])[0]


def test_all_kinds_of_pointers():
    got = run(
        "tl.store(p3 + i, tl.load(p0 + i) + tl.load(p2 + i))",
        "tl.store(p1 + i, tl.load(p3 + i))",
        "tl.store(p4 + i, 1)",
        "tl.store(p4 + i, 0)",
    )
    np.testing.assert_array_equal(got, 2 * np.arange(16) - 8)


def test_outputs_have_their_layout():
    got = run("tl.store(p1 + i * 3, tl.load(p0 + i))", layouts=Layout((16,), (3,)))
    assert got.strides == (12,)
    np.testing.assert_array_equal(got, np.arange(16) - 8)


def test_what_is_not_written_is_poison():
    got = run("tl.store(p1 + i, tl.load(p0 + i), mask=i < 15)")
    assert got[15] == np.full(4, 0xA5, np.uint8).view(np.float32)[0]


@pytest.mark.parametrize("shift", [1, -1, 16 + 40])
def test_writing_outside_is_noticed(shift):
    with pytest.raises(AssertionError, match="outside"):
        run(f"tl.store(p1 + i + {shift}, 0.0)")


def test_memory_left_changed_is_noticed():
    with pytest.raises(AssertionError, match="stay zero"):
        run("tl.store(p1 + i, 0.0)", "tl.atomic_add(p4, 1)")


def evaluate(text: str, *arrays: np.ndarray, result: DType) -> np.ndarray:
    """An expression of x0, x1, … as the interpreter computes it."""
    dtypes = (*(DType.of(a.dtype) for a in arrays), result)
    loads = [f"x{i} = tl.load(p{i} + i)" for i in range(len(arrays))]
    output = np.zeros(16, result.numpy)
    kernel = Lines(4, 1, dtypes, (*loads, f"tl.store(p{len(arrays)} + i, {text})"))
    interpret(kernel, [a.ctypes.data for a in (*arrays, output)], (), 1)
    return output


def test_bfloat16_is_rounded_to_even_and_back():
    x = (1 + np.arange(16) / 512).astype(np.float32)
    x[-3:] = [np.nan, np.inf, 3e-39]
    got = evaluate("x0.to(tl.bfloat16)", x, result=DType.BFLOAT16)
    expected = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got.astype(np.float32), expected.astype(np.float32))
    back = evaluate("x0.to(tl.float32)", got, result=F32)
    np.testing.assert_array_equal(back, expected.astype(np.float32))


def test_integers_wrap():
    x = np.full(16, 2**31 - 1, np.int32)
    assert (evaluate("x0 + 1", x, result=DType.INT32) == -(2**31)).all()


def test_functions_of_cuda():
    x = np.linspace(0.1, 2, 16)
    got = evaluate("libdevice.pow(x0, libdevice.tanh(x0))", x, result=DType.FLOAT64)
    np.testing.assert_allclose(got, x ** np.tanh(x))


def test_functions_of_cuda_need_floats():
    x = np.zeros(16, np.float16)
    with pytest.raises(Exception, match="no function of CUDA's"):
        evaluate("libdevice.exp(x0)", x, result=DType.FLOAT16)


def test_programs_and_params():
    output = np.zeros(48, np.int32)
    kernel = Lines(4, 1, (DType.INT32,), ("tl.store(p0 + tl.program_id(0) * 16 + i, n0)",), 1)
    interpret(kernel, [output.ctypes.data], (7,), 3)
    assert (output == 7).all()
