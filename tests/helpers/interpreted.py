"""Checks tactics of the CUDA target against the references, in Triton's interpreter.

On a GPU, if one is in use: there TF32 rounds as it says, which the interpreter does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from helpers.tactics import assert_close, assert_gaps_untouched, random_array
from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.base import Binding, Family, Layout, Tactic
from planish.targets.cuda.codegen.compile import DeviceCode, compiled_by_triton
from planish.targets.cuda.kernel import GeneratedKernel, TritonKernel
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import is_on_gpu, run_tactic

TF32 = 2e-2
"""Each factor is rounded by up to 2**-11; a sum of 40 products of about 1 is then off by 4e-3 in
the mean, and the worst of some hundred such sums by three times that.
"""
FUSED = 1e-5
"""What it may cost that a product and a sum after it are rounded once, not twice."""


def check_interpreted(
    family: Family,
    task: Task,
    rng: np.random.Generator,
    *,
    tactics: Iterable[Tactic] | None = None,
    layouts: Callable[[Value], Layout] | None = None,
    arrays: Sequence[np.ndarray] | None = None,
    tolerance: float = 0.0,
    limit: int | None = 1,
) -> None:
    """Runs the first `limit` tactics offered (or those given), each as a plan would restore it."""
    values = (*task.inputs, *task.outputs)
    binding = Binding({}, {v: layouts(v) for v in values} if layouts else {})
    if arrays is None:
        arrays = [
            v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
            for v in task.inputs
        ]
    expected = task.evaluate(arrays)
    offered = list(tactics if tactics is not None else family.tactics(task, binding))[:limit]
    assert offered, "the family declines the task"
    for tactic in offered:
        assert family.restore(task, tactic.parameters) == tactic
        assert tactic.accepts(binding)
        outputs = run_tactic(tactic, binding, arrays)
        rounding = 0.0
        if is_on_gpu():
            rounding = TF32 if tactic.precision == "tf32" else FUSED
        for output, array in zip(outputs, expected, strict=True):
            assert output.shape == array.shape
            assert output.dtype == array.dtype
            exact = not DType.of(array.dtype).is_float
            assert_close(output, array, tolerance if exact else max(tolerance, rounding))
            assert_gaps_untouched(output)


def compiled(tactic: Tactic, binding: Binding) -> list[DeviceCode]:
    """The code of a tactic's kernels for a described H200."""
    kernels = [launch.kernel for launch in tactic.launches(binding)]
    return [
        DeviceCode.from_bytes(k.compile(H200)) for k in kernels if isinstance(k, GeneratedKernel)
    ]


def assembly(tactic: Tactic, binding: Binding) -> str:
    """The PTX of a tactic's kernels for a described H200."""
    texts = []
    for launch in tactic.launches(binding):
        assert isinstance(launch.kernel, TritonKernel)
        texts.append(compiled_by_triton(launch.kernel, H200).asm["ptx"])
    return "\n".join(texts)
