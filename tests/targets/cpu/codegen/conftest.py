"""Runs an expression on arrays, straight through registers, without any kernel family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from helpers import emulator
from planish.fusion.expression import Expression
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.compile import compile_assembly
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import processor_for


def machine_of(isa: str) -> Machine:
    """The machine that stands for an instruction set in these tests."""
    if isa == "neon":
        return host() if host().isa == "neon" else emulator.emulate()
    return host() if isa == "host" else host().restricted(isa)


def evaluate(
    expression: Expression,
    arrays: Sequence[np.ndarray | None],
    lanes: int,
    isa: str,
    write: Callable[..., Sequence[Any]] = emit,
) -> list[np.ndarray]:
    """The results of an expression by the code that `write` generates; None stands for a constant
    leaf.
    """
    machine = machine_of(isa)
    processor = processor_for(machine)
    given = [a for a in arrays if a is not None]
    count = given[0].size
    padded = -(-count // lanes) * lanes
    types = [a.dtype for a in given] + [expression.dtype(s).numpy for s in expression.results]
    memory = [processor.memory(padded * dtype.itemsize) for dtype in types]
    buffers = [raw.view(dtype) for (raw, _), dtype in zip(memory, types, strict=True)]
    for buffer, array in zip(buffers, given, strict=False):
        buffer[...] = np.resize(array.ravel(), padded)
    outputs = buffers[len(given) :]

    k = KernelBuilder("kernel", machine)
    pointers = [k.pointer(i) for i in range(len(buffers))]
    with k.loop(k.begin, k.end, lanes) as loop:
        sources = iter(pointers)
        leaves = [
            None
            if array is None
            else k.load(k.offset(next(sources), loop.index, leaf.dtype), leaf.dtype, lanes)
            for leaf, array in zip(expression.leaves, arrays, strict=True)
        ]
        results = write(k, expression, leaves, lanes)
        for value, slot, pointer in zip(results, expression.results, sources, strict=True):
            dtype = expression.dtype(slot)
            k.store(value, k.offset(pointer, loop.index, dtype), dtype, lanes)
    code = compile_assembly(k.finish(), machine)
    (function,) = processor.load({"kernel": code}, machine).values()
    processor.call(function, [address for _, address in memory], (), 0, padded, 0)
    return [o[:count] for o in outputs]


@pytest.fixture(name="evaluate")
def _evaluate():
    return evaluate


@pytest.fixture(params=["host", "avx2", pytest.param("neon", marks=pytest.mark.arm)])
def isa(request) -> str:
    """The instruction sets this machine can run or emulate."""
    if request.param == "neon" and host().isa != "neon" and (reason := emulator.missing()):
        pytest.skip(reason)
    if request.param == "avx2" and host().isa not in ("avx2", "avx512"):
        pytest.skip("this machine has no AVX2")
    return request.param
