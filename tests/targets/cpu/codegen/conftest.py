"""Runs an expression on arrays, straight through registers, without any kernel family."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import pytest

from planish.fusion.expression import Expression
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.compile import Library, compile_assembly
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.machine import host

_KERNEL = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


def evaluate(
    expression: Expression, arrays: Sequence[np.ndarray | None], lanes: int, isa: str
) -> list[np.ndarray]:
    """The results of an expression by generated code; None stands for a constant leaf."""
    machine = host() if isa == "host" else host().restricted(isa)
    given = [a for a in arrays if a is not None]
    count = given[0].size
    padded = -(-count // lanes) * lanes
    buffers = [np.resize(a.ravel(), padded) for a in given]
    outputs = [np.empty(padded, expression.dtype(s).numpy) for s in expression.results]

    k = KernelBuilder("kernel", machine)
    pointers = [k.pointer(i) for i in range(len(buffers) + len(outputs))]
    with k.loop(k.begin, k.end, lanes) as loop:
        sources = iter(pointers)
        leaves = [
            None
            if array is None
            else k.load(k.offset(next(sources), loop.index, leaf.dtype), leaf.dtype, lanes)
            for leaf, array in zip(expression.leaves, arrays, strict=True)
        ]
        results = emit(k, expression, leaves, lanes)
        for value, slot, pointer in zip(results, expression.results, sources, strict=True):
            dtype = expression.dtype(slot)
            k.store(value, k.offset(pointer, loop.index, dtype), dtype, lanes)
    code = compile_assembly(k.finish(), machine)
    library = Library({"kernel": code}, machine)
    addresses = [a.ctypes.data for a in (*buffers, *outputs)]
    table = (ctypes.c_void_p * len(addresses))(*addresses)
    _KERNEL(library.addresses["kernel"])(ctypes.addressof(table), None, 0, padded, None)
    return [o[:count] for o in outputs]


@pytest.fixture(name="evaluate")
def _evaluate():
    return evaluate


@pytest.fixture(params=["host", "avx2"])
def isa(request) -> str:
    """The instruction sets this machine can run."""
    if request.param == "avx2" and host().isa not in ("avx2", "avx512"):
        pytest.skip("this machine has no AVX2")
    return request.param
