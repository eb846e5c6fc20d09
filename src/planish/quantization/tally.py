"""A generated kernel that counts magnitudes in bins: the inner loop of a histogram.

It reads every element once. A block of elements is looked at first (the least, the greatest, and
the largest magnitude as bits, where infinity and NaN are larger than all numbers), and counted
while it is still in the cache; a block that does not fit the range ends the call, so that the
caller can widen the range and go on from there.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.compile import Library
from planish.targets.cpu.codegen.types import I32
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.machine import host

BLOCK = 2048
"""Elements that are looked at before they are counted."""

TABLES = 4
"""Neighbours are counted in different tables: one increment need not wait for the last."""

F32 = DType.FLOAT32


@dataclass(frozen=True)
class TallyKernel(CpuKernel):
    """Counts float32 elements by magnitude.

    Pointers: elements; int32 counts [TABLES, bins]; int64 [2], set to how many elements were
    counted, and how many of these were zero; float32 [2], least and greatest, updated. Parameters:
    how many elements (a multiple of the lanes); bits of the float32 that makes a bin's number of a
    magnitude; bits of the first magnitude that is out of range.
    """

    family: ClassVar[str] = "tally"
    bins: int

    def write(self, k: KernelBuilder) -> None:
        b, lanes = k.b, k.lanes
        x, counts, counted, extremes = (k.pointer(i) for i in range(4))
        count = k.param(0)
        scale = b.bitcast(b.trunc(k.param(1), I32), ir.FloatType())
        limit = b.trunc(k.param(2), I32)
        least = k.load(extremes, F32)
        greatest = k.load(k.offset(extremes, 1, F32), F32)
        start = [k.i64(0), k.splat(least, lanes), k.splat(greatest, lanes), k.i64(0), k.i64(0)]

        def goes_on(carried: list[ir.Value]) -> ir.Value:
            position, stopped = carried[0], carried[-1]
            more = b.icmp_signed("<", position, count)
            return b.and_(more, b.icmp_signed("==", stopped, k.i64(0)))

        with k.loop_while(start, goes_on) as blocks:
            position, low, high, zeros, _ = blocks.carried
            end = k.min(k.add(position, BLOCK), count)
            none = ir.Constant(ir.VectorType(I32, lanes), None)
            with k.loop(position, end, lanes, [low, high, none, none]) as look:
                a, c, largest, zero = look.carried
                value = k.load(k.offset(x, look.index, F32), F32, lanes)
                bits = b.bitcast(k.intrinsic("fabs", value), ir.VectorType(I32, lanes))
                look.next = [
                    b.select(b.fcmp_ordered("<", value, a), value, a),
                    b.select(b.fcmp_ordered(">", value, c), value, c),
                    b.select(b.icmp_signed(">", bits, largest), bits, largest),
                    b.sub(zero, b.sext(b.icmp_signed("==", bits, none), none.type)),
                ]
            low_now, high_now, largest, zero = look.carried
            zeros_now = b.add(zeros, b.zext(k.reduce("add", zero), ir.IntType(64)))
            fits = b.icmp_signed("<", k.reduce("smax", largest), limit)

            def tally() -> list[ir.Value]:
                with k.loop(position, end, lanes) as loop:
                    value = k.load(k.offset(x, loop.index, F32), F32, lanes)
                    scaled = b.fmul(k.intrinsic("fabs", value), k.splat(scale, lanes))
                    places = b.fptosi(scaled, ir.VectorType(I32, lanes))
                    for lane in range(lanes):
                        place = b.zext(b.extract_element(places, I32(lane)), ir.IntType(64))
                        place = k.add(place, lane % TABLES * self.bins)
                        slot = k.offset(counts, place, DType.INT32)
                        k.store(b.add(k.load(slot, DType.INT32), I32(1)), slot, DType.INT32)
                return [end, low_now, high_now, zeros_now, k.i64(0)]

            blocks.next = k.choose(fits, tally, lambda: [position, low, high, zeros, k.i64(1)])
        position, low, high, zeros, _ = blocks.carried
        k.store(position, counted, DType.INT64)
        k.store(zeros, k.offset(counted, 1, DType.INT64), DType.INT64)
        for offset, name, vector in ((0, "fmin", low), (1, "fmax", high)):
            k.store(k.reduce(name, vector), k.offset(extremes, offset, F32), F32)


Tally = Callable[[np.ndarray, np.ndarray, np.ndarray, float, float], tuple[int, int]]


@functools.cache
def tally(bins: int) -> tuple[Tally, int]:
    """The kernel as a function, and how many elements it takes at a time.

    ``tally(elements, counts, extremes, scale, limit)`` counts float32 elements (dense, one
    dimension, a multiple of that number) in int32 ``counts`` [TABLES, bins] under
    ``int(abs(element) * scale)``, updates float32 ``extremes`` (least, greatest), and gives the
    number of elements counted, and how many of these were zero: fewer than all were counted if one
    is not below ``limit``, or is NaN. The interpreter's lock is released meanwhile.
    """
    kernel, machine = TallyKernel(bins), host()
    library = Library({kernel.symbol: kernel.compile(machine)}, machine)
    signature = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )
    function = signature(library.addresses[kernel.symbol])

    def run(
        elements: np.ndarray,
        counts: np.ndarray,
        extremes: np.ndarray,
        scale: float,
        limit: float,
        library: Library = library,  # keeps the code alive
    ) -> tuple[int, int]:
        counted = np.zeros(2, np.int64)
        arrays = (elements, counts, counted, extremes)
        pointers = (ctypes.c_void_p * 4)(*(a.ctypes.data for a in arrays))
        bits = np.array([scale, limit], np.float32).view(np.int32).tolist()
        params = (ctypes.c_int64 * 3)(elements.size, *bits)
        function(ctypes.addressof(pointers), ctypes.addressof(params), 0, 1, None)
        return int(counted[0]), int(counted[1])

    return run, machine.lanes
