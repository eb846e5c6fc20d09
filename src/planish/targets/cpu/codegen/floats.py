"""Arithmetic on float registers: the language in which `math.py` and `elementwise.py` are written.

A `Floats` is float32 or float64 with a number of lanes. Its methods emit one or two instructions
each; nothing is contracted or reassociated behind the back of the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I32, register_type


class Floats:
    """Emits arithmetic on registers of one float type.

    Parameters
    ----------
    k : KernelBuilder
        Where to emit.
    dtype : DType
        float64, or anything that is float32 in registers.
    lanes : int
        Elements per register; 1 means scalars.

    Attributes
    ----------
    dtype, integer : DType
        float32 or float64, and the signed integer of the same width.
    fraction : int
        Bits of the significand that are stored (23 or 52).
    bias : int
        The exponent's bias.
    """

    def __init__(self, k: KernelBuilder, dtype: DType, lanes: int) -> None:
        double = dtype is DType.FLOAT64
        self.k, self.b, self.lanes = k, k.b, lanes
        self.dtype = DType.FLOAT64 if double else DType.FLOAT32
        self.integer = DType.INT64 if double else DType.INT32
        self.width, self.fraction, self.bias = (64, 52, 1023) if double else (32, 23, 127)
        self.type = register_type(self.dtype, lanes)
        self.integer_type = register_type(self.integer, lanes)

    # ---- constants ------------------------------------------------------------------------

    def c(self, value: float) -> ir.Constant:
        """A float constant in all lanes."""
        return self.k.constant(value, self.dtype, self.lanes)

    def i(self, value: int) -> ir.Constant:
        """An integer constant in all lanes."""
        return self.k.constant(value, self.integer, self.lanes)

    # ---- arithmetic -----------------------------------------------------------------------

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fadd(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fsub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fmul(a, b)

    def div(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fdiv(a, b)

    def neg(self, a: ir.Value) -> ir.Value:
        return self.b.fneg(a)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once."""
        return self.k.fma(a, b, c)

    def poly(self, x: ir.Value, coefficients: Sequence[float]) -> ir.Value:
        """A polynomial by Horner's rule; the constant coefficient comes first."""
        result: ir.Value = self.c(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, self.c(coefficient))
        return result

    def sqrt(self, x: ir.Value) -> ir.Value:
        return self.k.intrinsic("sqrt", x)

    def abs(self, x: ir.Value) -> ir.Value:
        return self.k.intrinsic("fabs", x)

    def copysign(self, size: ir.Value, sign: ir.Value) -> ir.Value:
        """The magnitude of the one with the sign of the other."""
        return self.k.intrinsic("copysign", size, sign)

    def rint(self, x: ir.Value) -> ir.Value:
        """The nearest integer, halves to even."""
        return self.k.intrinsic("rint", x)

    def trunc(self, x: ir.Value) -> ir.Value:
        return self.k.intrinsic("trunc", x)

    def min(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a < b ? a : b``: the second where either is NaN. One instruction on x86."""
        return self.b.select(self.lt(a, b), a, b)

    def max(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """``a > b ? a : b``: the second where either is NaN. One instruction on x86."""
        return self.b.select(self.gt(a, b), a, b)

    # ---- choice ---------------------------------------------------------------------------

    def lt(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered("<", a, b)

    def le(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered("<=", a, b)

    def gt(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered(">", a, b)

    def ge(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered(">=", a, b)

    def eq(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.fcmp_ordered("==", a, b)

    def ne(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Unequal or unordered."""
        return self.b.fcmp_unordered("!=", a, b)

    def is_nan(self, a: ir.Value) -> ir.Value:
        return self.b.fcmp_unordered("uno", a, a)

    def select(self, condition: ir.Value, yes: ir.Value, no: ir.Value) -> ir.Value:
        return self.b.select(condition, yes, no)

    # ---- bits -----------------------------------------------------------------------------

    def bits(self, x: ir.Value) -> ir.Value:
        """The same bits as integers."""
        return self.b.bitcast(x, self.integer_type)

    def from_bits(self, x: ir.Value) -> ir.Value:
        """The same bits as floats."""
        return self.b.bitcast(x, self.type)

    def to_integer(self, x: ir.Value) -> ir.Value:
        """Floats that hold integers, as integers of the same width."""
        return self.b.fptosi(x, self.integer_type)

    @property
    def is_wide(self) -> bool:
        """Whether registers are AVX-512's, of float32, for which it has instructions of its own."""
        return (
            self.k.machine.isa == "avx512" and self.lanes * self.width == 512 and self.width == 32
        )

    def rough_reciprocal(self, x: ir.Value) -> ir.Value:
        """``1 / x`` to 14 bits, 0 of infinity, in registers that are wide (`is_wide`)."""
        mask = ir.Constant(ir.IntType(self.lanes), -1)
        return self.k.call("llvm.x86.avx512.rcp14.ps.512", self.type, [x, x, mask])

    def nearest(self, x: ir.Value) -> ir.Value | None:
        """The nearest int32, halves to even, in one instruction; None where there is none.

        Floats above all integers become something above 2³¹ - 2, if taken for unsigned.
        """
        k, kind = self.k, ir.VectorType(I32, self.lanes)
        if self.is_wide:
            mask, as_set = ir.Constant(ir.IntType(16), -1), ir.Constant(I32, 4)
            arguments = [x, ir.Constant(kind, None), mask, as_set]
            return k.call("llvm.x86.avx512.mask.cvtps2dq.512", kind, arguments)
        match k.machine.isa, self.width, self.lanes:
            case "avx512" | "avx2", 32, 8:
                return k.call("llvm.x86.avx.cvt.ps2dq.256", kind, [x])
            case "neon", 32, 4:
                return k.call("llvm.aarch64.neon.fcvtns.v4i32.v4f32", kind, [x])
        return None

    def to_float(self, x: ir.Value) -> ir.Value:
        """Signed integers of the same width as floats."""
        return self.b.sitofp(x, self.type)

    def power_of_two(self, exponent: ir.Value) -> ir.Value:
        """``2 ** exponent`` for integers whose result is a normal number."""
        biased = self.b.add(exponent, self.i(self.bias))
        return self.from_bits(self.b.shl(biased, self.i(self.fraction)))

    def scale(self, x: ir.Value, exponent: ir.Value) -> ir.Value:
        """``x * 2 ** exponent`` for floats that hold integers, rounded once.

        `x` must lie between 1/2 and 2, and the exponent within twice the range of exponents.
        """
        if self._scales:
            kind = "pd" if self.width == 64 else "ps"
            name = f"llvm.x86.avx512.mask.scalef.{kind}.512"
            mask = ir.Constant(ir.IntType(self.lanes), -1)
            rounding = ir.Constant(ir.IntType(32), 4)  # as the mode register says
            return self.k.call(name, self.type, [x, exponent, x, mask, rounding])
        # two factors, because 2 ** exponent itself may be no normal number
        count = self.to_integer(exponent)
        half = self.b.ashr(count, self.i(1))
        rest = self.b.sub(count, half)
        near = self.b.add(self.bits(x), self.b.shl(half, self.i(self.fraction)))
        return self.mul(self.from_bits(near), self.power_of_two(rest))

    def scale_normal(self, x: ir.Value, exponent: ir.Value) -> ir.Value:
        """`scale` where the result is a normal number for certain."""
        if self._scales:
            return self.scale(x, exponent)
        count = self.b.shl(self.to_integer(exponent), self.i(self.fraction))
        return self.from_bits(self.b.add(self.bits(x), count))

    @property
    def _scales(self) -> bool:
        """Whether there is an instruction for it."""
        return self.k.machine.isa == "avx512" and self.lanes * self.width == 512

    def any(self, condition: ir.Value) -> ir.Value:
        """Whether a condition holds in any lane."""
        return self.k.reduce("or", condition)


def split(value: float, bits: int) -> tuple[float, float]:
    """A float as the sum of one with few significant bits, and the rest."""
    if value == 0:
        return 0.0, 0.0
    unit = 2.0 ** (math.frexp(value)[1] - bits)
    high = round(value / unit) * unit
    return high, value - high
