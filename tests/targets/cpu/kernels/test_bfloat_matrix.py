"""The matrix kernel for bfloat16 against float64 sums of the same products, rounded once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.bfloat_tasks import conv_task, draw, matmul_task
from planish.fusion.task import Task
from planish.graph.dims import symbol
from planish.targets.base import Binding
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.bfloat_matrix import BfloatMatrixFamily
from planish.targets.cpu.machine import generic
from planish.targets.cpu.run import run_tactic

FAMILY = BfloatMatrixFamily()


def check(task: Task, rng, *, binding: Binding | None = None, most: int = 2) -> None:
    binding = binding or Binding({})
    arrays = [
        v.data if v.data is not None else draw(rng, *v.type.bind(binding.symbols))
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    expected = expected.astype(np.float64)
    tactics = list(FAMILY.tactics(task, binding))
    assert tactics
    step = max(len(tactics) // most, 1)
    # the result has 8 bits; where more work follows, the reference rounds what it works on too
    scale = float(np.abs(expected).max(initial=0)) * 2**-8
    atol = scale if len(task.nodes) > 1 else scale / 64
    for tactic in [*tactics[::step], tactics[-1]]:
        (have,) = run_tactic(tactic, binding, arrays)
        have = have.astype(np.float64)
        np.testing.assert_allclose(have, expected, rtol=2**-7, atol=atol, err_msg=str(tactic))


CONVS = [
    dict(shape=(1, 14, 14, 32), filters=48, window=1),
    dict(shape=(2, 5, 7, 33), filters=17, window=1),
    dict(shape=(2, 9, 11, 3), filters=24, window=3, stride=2, pad=1, residual=True),
    dict(shape=(1, 10, 13, 16), filters=40, window=3, pad=2, dilation=2, wide=True),
    dict(shape=(2, 8, 8, 15), filters=24, window=3, pad=1, groups=3),
    dict(shape=(1, 8, 8, 24), filters=32, window=1, stride=2),
    dict(shape=(1, 9, 9, 21), filters=32, window=3, prologue=True, residual=True),
    dict(shape=(1, 30, 30, 3), filters=8, window=7, stride=2, pad=3),
    dict(shape=(1, 3, 3, 1024), filters=16, window=1),
]


@pytest.mark.parametrize("case", CONVS, ids=[str(i) for i in range(len(CONVS))])
def test_conv(case) -> None:
    rng = np.random.default_rng(1)
    check(conv_task(rng, **case), rng)


@pytest.mark.parametrize(
    ("a", "b", "transpose_b"),
    [((1, 64), (64, 100), False), ((3, 7, 41), (33, 41), True), ((5, 1), (1, 70), False)],
)
def test_matmul(a, b, transpose_b) -> None:
    rng = np.random.default_rng(2)
    check(matmul_task(rng, a, b, transpose_b=transpose_b), rng)


def test_dynamic_batch() -> None:
    rng = np.random.default_rng(3)
    task = conv_task(rng, shape=(symbol("N"), 6, 6, 5), filters=16, window=3, pad=1)
    for n in (1, 3):
        check(task, rng, binding=Binding({"N": n}))


@pytest.mark.parametrize("depth", [7, 8])
def test_what_lies_beside_a_run_is_not_read(depth) -> None:
    """Depth is multiplied in pairs; the partner of the last element may be infinite."""
    rng = np.random.default_rng(4)
    task = matmul_task(rng, (6, depth), (depth, 16))
    x = draw(rng, 6, depth)
    x[1::2] = np.inf
    (expected,) = task.evaluate([x, task.inputs[1].data])
    for tactic in list(FAMILY.tactics(task, Binding({})))[::4]:
        (have,) = run_tactic(tactic, Binding({}), [x, task.inputs[1].data])
        assert np.isfinite(have[::2].astype(np.float32)).all()
        np.testing.assert_array_equal(
            np.isfinite(have.astype(np.float32)), np.isfinite(expected.astype(np.float32))
        )


def test_code_for_avx512_bf16() -> None:
    """Compiled, and run only where such a CPU is."""
    machine = generic("avx512")
    machine = replace(machine, features=tuple(sorted((*machine.features, "+avx512bf16"))))
    assert machine.has_bf16
    rng = np.random.default_rng(5)
    task = conv_task(rng, shape=(1, 8, 8, 33), filters=48, window=3, pad=1)
    tactic = next(iter(FAMILY.on(machine).tactics(task, Binding({}))))
    kernels = [launch.kernel for launch in tactic.launches(Binding({}))]
    for kernel in kernels:
        assert isinstance(kernel, CpuKernel)
        assert "dpbf16ps" in kernel.assembly(machine)
        assert kernel.compile(machine)
