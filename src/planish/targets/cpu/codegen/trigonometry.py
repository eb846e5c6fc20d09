"""Trigonometric functions and their inverses, for float32 and float64 vectors.

Like `math.py`: accurate to 4 units in the last place everywhere. Arguments up to `_FAR` are reduced
by a multiple of pi/2 in three floats (Cody & Waite); where any lane holds a larger one, those lanes
are reduced in integers with as many bits of 2/pi as it takes (M. H. Payne & R. N. Hanek, "Radian
reduction for trigonometric functions", ACM SIGNUM Newsletter 18, 1983).
"""

from __future__ import annotations

import math

import llvmlite.ir as ir

from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.math import constants
from planish.targets.cpu.codegen.types import F64, I32, I64

_HALF_PI = {
    23: (1.5707963705062866, -4.371138828673793e-08, -1.7151245100058819e-15),
    52: (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33),
}
"""pi / 2 as a sum of three floats."""

_FAR = {23: 2.0**14, 52: 2.0**26}

_TWO_OVER_PI_BITS = 1225
_TWO_OVER_PI = int(
    "145f306dc9c882a53f84eafa3ea69bb81b6c52b3278872083fca2c757bd778ac36e48dc74849ba5c00c925dd413a32"
    "439fc3bd63962534e7dd1046bea5d768909d338e04d68befc827323ac7306a673e93908bf177bf250763ff12fffbc0"
    "b301fde5e2316b414da3eda6cfd9e4f96136e9e8c7ecd3cbfd45aea4f758fd7cbe2f67a0e73ef14a525d4d7f6bf623"
    "f1aba10ac06608df8f6d757e1",
    16,
)
"""2 / pi as an integer over ``2 ** _TWO_OVER_PI_BITS``."""


def sin(f: Floats, x: ir.Value) -> ir.Value:
    """``sin(x)``."""
    r, quadrant = _reduce(f, f.abs(x))
    y = _by_quadrant(f, r, quadrant)
    sign = f.b.and_(f.bits(x), f.i(-(1 << f.width - 1)))
    return f.from_bits(f.b.xor(f.bits(y), sign))


def cos(f: Floats, x: ir.Value) -> ir.Value:
    """``cos(x)``: the sine a quadrant further."""
    r, quadrant = _reduce(f, f.abs(x))
    return _by_quadrant(f, r, f.b.add(quadrant, f.i(1)))


def tan(f: Floats, x: ir.Value) -> ir.Value:
    """``tan(x)`` as a quotient of sine and cosine."""
    r, quadrant = _reduce(f, f.abs(x))
    s, c = _sine(f, r), _cosine(f, r)
    odd = f.b.icmp_unsigned("!=", f.b.and_(quadrant, f.i(1)), f.i(0))
    y = f.div(f.select(odd, f.neg(c), s), f.select(odd, s, c))
    sign = f.b.and_(f.bits(x), f.i(-(1 << f.width - 1)))
    return f.from_bits(f.b.xor(f.bits(y), sign))


def _by_quadrant(f: Floats, r: ir.Value, quadrant: ir.Value) -> ir.Value:
    odd = f.b.icmp_unsigned("!=", f.b.and_(quadrant, f.i(1)), f.i(0))
    y = f.select(odd, _cosine(f, r), _sine(f, r))
    sign = f.b.shl(f.b.and_(quadrant, f.i(2)), f.i(f.width - 2))
    return f.from_bits(f.b.xor(f.bits(y), sign))


def _sine(f: Floats, r: ir.Value) -> ir.Value:
    z = f.mul(r, r)
    return f.fma(f.mul(z, r), f.poly(z, constants(f).p.sin), r)


def _cosine(f: Floats, r: ir.Value) -> ir.Value:
    z = f.mul(r, r)
    return f.poly(z, (1.0, -0.5, *constants(f).p.cos))


def _reduce(f: Floats, a: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``a = q * pi/2 + r`` for non-negative a; q modulo 4. NaN for infinities."""
    far = f.gt(a, f.c(_FAR[f.fraction]))
    near = f.select(far, f.c(0.0), a)
    n = f.rint(f.mul(near, f.c(2 / math.pi)))
    r = near
    for part in _HALF_PI[f.fraction]:
        r = f.fma(n, f.c(-part), r)
    q = f.to_integer(n)
    r, q = f.k.choose(f.any(far), lambda: _reduce_far(f, a, far, r, q), lambda: [r, q])
    return f.add(r, f.sub(a, a)), q


def _reduce_far(f: Floats, a: ir.Value, far: ir.Value, r: ir.Value, q: ir.Value) -> list[ir.Value]:
    """The reduction with the lanes that are far away done one by one."""
    if f.lanes == 1:
        exact_r, exact_q = _reduce_exactly(f, f.bits(a))
        return [f.select(far, exact_r, r), f.select(far, exact_q, q)]
    with f.k.loop(0, f.lanes, carried=[r, q]) as loop:
        lane = f.b.trunc(loop.index, I32)
        exact_r, exact_q = _reduce_exactly(f, f.b.extract_element(f.bits(a), lane))
        loop.next = [
            f.b.insert_element(loop.carried[0], exact_r, lane),
            f.b.insert_element(loop.carried[1], exact_q, lane),
        ]
    exact_r, exact_q = loop.carried
    return [f.select(far, exact_r, r), f.select(far, exact_q, q)]


def _reduce_exactly(f: Floats, bits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The reduction of one finite number of at least 1, given by its bits."""
    b, scalar = f.b, bits.type
    width = 128 if f.width == 32 else 192  # of the product: two bits of q, the rest a fraction
    wide = ir.IntType(width)
    exponent = b.lshr(bits, scalar(f.fraction))
    exponent = b.sub(exponent, scalar(f.bias + f.fraction))
    least = scalar(-f.fraction)
    exponent = b.select(b.icmp_signed("<", exponent, least), least, exponent)
    significand = b.and_(bits, scalar((1 << f.fraction) - 1))
    significand = b.or_(significand, scalar(1 << f.fraction))

    # The window of 2/pi whose product with the significand starts at the bit of weight 2.
    largest = (1 << f.width - f.fraction - 1) - 1 - f.bias - f.fraction
    spare = _TWO_OVER_PI_BITS - largest - (width - 2)
    table = ir.IntType(-(-(_TWO_OVER_PI_BITS - spare) // 64) * 64)
    shift = b.sub(scalar(largest), exponent)
    shift = b.zext(shift, table)
    window = b.trunc(b.lshr(table(_TWO_OVER_PI >> spare), shift), wide)
    turns = b.mul(b.zext(significand, wide), window)

    rounded = b.add(turns, wide(1 << width - 3))
    quadrant = b.trunc(b.lshr(rounded, wide(width - 2)), scalar)
    signed = b.shl(turns, wide(2))
    negative = b.icmp_signed("<", signed, wide(0))
    size = b.select(negative, b.neg(signed), signed)
    zeros = f.k.call(f"llvm.ctlz.i{width}", wide, [size, ir.Constant(ir.IntType(1), 0)])
    top = b.trunc(b.lshr(b.shl(size, zeros), wide(width - 63)), I64)  # 63 bits: not negative
    exponent = b.sub(I64(1023 - 63), b.trunc(zeros, I64))
    unit = b.bitcast(b.shl(exponent, I64(52)), F64)
    angle = b.fmul(b.fmul(b.sitofp(top, F64), unit), ir.Constant(F64, math.pi / 2))
    angle = b.select(negative, b.fneg(angle), angle)
    return (b.fptrunc(angle, ir.FloatType()) if f.width == 32 else angle), quadrant


# ---- inverse functions ---------------------------------------------------------------------


def asin(f: Floats, x: ir.Value) -> ir.Value:
    """``asin(x)``; beyond 1/2, ``pi/2 - 2 asin(sqrt((1 - |x|) / 2))``."""
    a = f.abs(x)
    outer, y = _asin_core(f, a)
    high, low, _ = _HALF_PI[f.fraction]
    turned = f.sub(f.c(high), f.sub(f.add(y, y), f.c(low)))
    return f.copysign(f.select(outer, turned, y), x)


def acos(f: Floats, x: ir.Value) -> ir.Value:
    """``acos(x) = pi/2 - asin(x)``; beyond 1/2, by twice the arc sine of the half angle."""
    outer, y = _asin_core(f, f.abs(x))
    high, low, _ = _HALF_PI[f.fraction]
    below = f.lt(x, f.c(0.0))
    signed = f.select(below, f.neg(y), y)
    inner = f.sub(f.c(high), f.sub(signed, f.c(low)))
    twice = f.add(y, y)
    left = f.sub(f.c(2 * high), f.sub(twice, f.c(2 * low)))
    return f.select(outer, f.select(below, left, twice), inner)


def _asin_core(f: Floats, a: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Whether a is beyond 1/2, and asin of a or of ``sqrt((1 - a) / 2)``. NaN beyond 1."""
    outer = f.gt(a, f.c(0.5))
    reduced = f.mul(f.c(0.5), f.sub(f.c(1.0), a))
    z = f.select(outer, reduced, f.mul(a, a))
    s = f.select(outer, f.sqrt(reduced), a)
    return outer, f.fma(f.mul(z, s), f.poly(z, constants(f).p.asin), s)


def atan(f: Floats, x: ir.Value) -> ir.Value:
    """``atan(x)``; beyond 1, ``pi/2 - atan(1 / |x|)``."""
    a = f.abs(x)
    outer = f.gt(a, f.c(1.0))
    y = _atan_polynomial(f, f.select(outer, f.div(f.c(1.0), a), a))
    high, low, _ = _HALF_PI[f.fraction]
    turned = f.sub(f.c(high), f.sub(y, f.c(low)))
    return f.copysign(f.select(outer, turned, y), x)


def atan2(f: Floats, y: ir.Value, x: ir.Value) -> ir.Value:
    """The angle of the point (x, y), by C's rules."""
    a, b = f.abs(x), f.abs(y)
    steep = f.gt(b, a)
    less, more = f.select(steep, a, b), f.select(steep, b, a)
    # 0 / 0 counts as 0, inf / inf as 1
    ratio = f.div(less, more)
    ratio = f.select(f.eq(more, f.c(0.0)), f.c(0.0), ratio)
    ratio = f.select(f.eq(less, f.c(math.inf)), f.c(1.0), ratio)
    angle = _atan_polynomial(f, ratio)
    high, low, _ = _HALF_PI[f.fraction]
    angle = f.select(steep, f.sub(f.c(high), f.sub(angle, f.c(low))), angle)
    left = f.b.icmp_signed("<", f.bits(x), f.i(0))
    angle = f.select(left, f.sub(f.c(2 * high), f.sub(angle, f.c(2 * low))), angle)
    angle = f.select(f.is_nan(f.add(f.select(f.is_nan(x), x, f.c(0.0)), y)), f.c(math.nan), angle)
    return f.copysign(angle, y)


def _atan_polynomial(f: Floats, t: ir.Value) -> ir.Value:
    z = f.mul(t, t)
    return f.fma(f.mul(z, t), f.poly(z, constants(f).p.atan), t)
