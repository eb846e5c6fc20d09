"""Running one tactic: loaded kernels are kept, and can be forgotten."""

from __future__ import annotations

import numpy as np

from helpers.tactics import task_of
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.targets.base import Binding
from planish.targets.cpu import run
from planish.targets.cpu.kernels.elementwise import ElementwiseTactic
from planish.targets.cpu.machine import host


def test_runs_again_after_forgetting() -> None:
    task = task_of((ew.Neg(),), inputs=[((3, 5), DType.FLOAT32)])
    x = np.arange(15, dtype=np.float32).reshape(3, 5)
    for _ in range(2):
        (got,) = run.run_tactic(ElementwiseTactic(task), Binding({}), [x])
        np.testing.assert_array_equal(got, -x)
        assert run._compiled
        run.forget_kernels()
        assert not run._compiled


def test_memory_is_aligned() -> None:
    processor = run.processor_for(host())
    for size in (0, 1, 100):
        array, address = processor.memory(size)
        assert (array.size, address % 64) == (size, 0)
