"""Elementary functions of float32 and float64 vectors: exponentials, logarithms, powers, erf.

Every function reduces its argument to a short interval and evaluates a polynomial there
(`coefficients.py`). All are accurate to 4 units in the last place over the whole range, denormals,
infinities, signed zeros and NaN included. None calls a library, so kernels need no linking, and the
same code serves any number of lanes. Trigonometric functions stand in `trigonometry.py`.

The reductions are textbook ones: J.-M. Muller, "Elementary Functions: Algorithms and
Implementation", 3rd ed., Birkhäuser 2016, chapters 9 to 11; W. J. Cody & W. Waite, "Software Manual
for the Elementary Functions", Prentice Hall 1980.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.coefficients import FLOAT32, FLOAT64, Coefficients
from planish.targets.cpu.codegen.floats import Floats, split


@dataclass(frozen=True)
class Constants:
    """What differs between the float types.

    Attributes
    ----------
    p : Coefficients
    log2 : (float, float)
        The logarithm of 2 as a float and what that float lacks.
    exact_log2 : (float, float)
        The same with a first part so short that its product with any exponent is exact.
    lowest, highest : float
        Arguments beyond which `exp` is 0 or infinite.
    flat : float
        `tanh` is 1 from here on.
    erf_flat : float
        `erf` is 1 from here on.
    large : float
        From here on ``1 + x`` is ``x``.
    """

    p: Coefficients
    log2: tuple[float, float]
    exact_log2: tuple[float, float]
    lowest: float
    highest: float
    flat: float
    erf_flat: float
    large: float


_LOG2_TAIL = 2.3190468138462996e-17  # log(2) minus the float64 next to it
_SINGLE = Constants(
    FLOAT32,
    split(math.log(2), 24),
    split(math.log(2), 15),
    lowest=-104.0,
    highest=89.0,
    flat=10.0,
    erf_flat=3.95,
    large=2.0**25,
)
_DOUBLE = Constants(
    FLOAT64,
    (math.log(2), _LOG2_TAIL),
    (split(math.log(2), 41)[0], split(math.log(2), 41)[1] + _LOG2_TAIL),
    lowest=-746.0,
    highest=710.0,
    flat=20.0,
    erf_flat=5.95,
    large=2.0**54,
)


def constants(f: Floats) -> Constants:
    """The constants for a float type."""
    return _DOUBLE if f.dtype is DType.FLOAT64 else _SINGLE


# ---- exponentials --------------------------------------------------------------------------


def exp(f: Floats, x: ir.Value) -> ir.Value:
    """``exp(x)``."""
    r, n = _reduce_exponent(f, x)
    return f.scale(_exp_polynomial(f, r), n)


def exp_falling(f: Floats, x: ir.Value) -> ir.Value:
    """``exp(x)`` of x that is at most 0, cheaper than `exp`; below the normal numbers it is 0."""
    least = f.c(math.floor((1.0 - f.bias) * math.log(2)) + 1.0)
    inside = f.max(least, x)  # NaN goes through
    n = f.rint(f.mul(inside, f.c(1 / math.log(2))))
    result = f.scale_normal(_exp_polynomial(f, _remainder(f, inside, n)), n)
    return f.select(f.lt(x, least), f.c(0.0), result)


def _reduce_exponent(f: Floats, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``x = n * log(2) + r``; x is brought into the range where the result is neither 0 nor inf."""
    c = constants(f)
    x = f.max(f.c(c.lowest), f.min(f.c(c.highest), x))
    n = f.rint(f.mul(x, f.c(1 / math.log(2))))
    return _remainder(f, x, n), n


def _remainder(f: Floats, x: ir.Value, n: ir.Value) -> ir.Value:
    high, low = constants(f).log2
    return f.fma(n, f.c(-low), f.fma(n, f.c(-high), x))


def _exp_polynomial(f: Floats, r: ir.Value) -> ir.Value:
    return f.poly(r, (1.0, 1.0, *constants(f).p.exp))


def expm1(f: Floats, x: ir.Value) -> ir.Value:
    """``exp(x) - 1`` without cancellation: ``2**n * expm1(r) + (2**n - 1)``."""
    c = constants(f)
    lowest = -(f.fraction + 3) * math.log(2)  # where the result becomes -1
    x = f.max(f.c(lowest), f.min(f.c(c.highest), x))
    n = f.rint(f.mul(x, f.c(1 / math.log(2))))
    r = _remainder(f, x, n)
    q = f.fma(f.mul(r, r), f.poly(r, c.p.expm1), r)
    # one power of two less, since 2**n itself may overflow where the result does not
    half = f.power_of_two(f.b.sub(f.to_integer(n), f.i(1)))
    y = f.fma(half, q, f.sub(half, f.c(0.5)))
    return f.copysign(f.add(y, y), x)


def sigmoid(f: Floats, x: ir.Value) -> ir.Value:
    """``1 / (1 + exp(-x))``, also where that is a small number."""
    z = exp(f, f.neg(f.abs(x)))
    one = f.c(1.0)
    return f.div(f.select(f.ge(x, f.c(0.0)), one, z), f.add(one, z))


_EXP2 = (
    1.0,
    0.6931471824645996,
    0.24022647738456726,
    0.055503323674201965,
    0.00961843691766262,
    0.0013398875016719103,
    0.00015353361959569156,
)
"""``2 ** r`` for ``|r| <= 1 / 2``, to 2e-8: see `coefficients`."""

_NORMAL_END = 8.0
_NORMAL = (
    -1.0,
    -1.1511071920394897,
    -0.45918944478034973,
    -0.0525524839758873,
    0.007135211024433374,
    -0.00017607040354050696,
    -0.00018241706129629165,
    4.4067593989893794e-05,
    -4.61617264591041e-06,
    1.8974844806507463e-07,
)
"""``log2(q)`` as a polynomial of x, where q is the share of a normal distribution above x, from 0
to `_NORMAL_END`: within ``1e-7 * (1 + (x / 1.2)**2 + 0.005 / q)``. A fit by least squares, weighted
until errors were even."""


def gelu(f: Floats, x: ir.Value) -> ir.Value:
    """``x`` times the share of a normal distribution below it, in float32.

    That is ``max(x, 0) - |x| q`` where q is the share above ``|x|``: nothing cancels for negative
    x, and one polynomial does for the logarithm of q, where erf takes two and an exponential. 23
    instructions with AVX-512.
    """
    size, half = f.abs(x), f.c(0.5)
    a = f.min(f.c(_NORMAL_END), size)  # NaN goes through
    z = f.poly(a, _NORMAL)
    n = f.rint(z)
    above = f.scale_normal(f.poly(f.sub(z, n), _EXP2), n)
    positive = f.fma(half, x, f.mul(half, size))  # of -inf NaN, as -inf * 0 is
    return f.fma(f.neg(a), above, positive)


_ROUGH_EXP2 = (0.9999280571937561, 0.6932609677314758, 0.2426111251115799, 0.0551716685295105)
"""``2 ** r`` for ``|r| <= 1 / 2``, to 13 bits: see `coefficients`."""

_GELU_FLAT = 6.5
"""Beyond it so little of a normal distribution is left that it does not matter."""

_ROUGH_NORMAL = tuple(
    -c / math.log(2)
    for c in (
        1.5917184544967651,
        0.07638248056173325,
        -0.0010717863915488124,
        1.3567113455792423e-05,
        -7.714914573853093e-08,
    )
)
"""``-log2(p / (1 - p)) / x`` as a polynomial of x squared, where p is the share of a normal
distribution below x: ``1 / (1 + 2 ** …)`` is p to 9 bits up to `_GELU_FLAT` on both sides. A fit by
least squares, weighted until errors were even."""


def rough_sigmoid(f: Floats, x: ir.Value) -> ir.Value:
    """``1 / (1 + exp(-x))`` to 12 bits, which bfloat16 keeps 8 of; below 1e-38 it is 0.

    For registers that are wide (`Floats.is_wide`); 15 instructions and no division, where `sigmoid`
    has 23.
    """
    z = f.mul(x, f.c(-1 / math.log(2)))
    return _rough_ratio(f, f.max(f.c(-200.0), f.min(f.c(200.0), z)))  # NaN goes through


def rough_gelu(f: Floats, x: ir.Value) -> ir.Value:
    """``x`` times the share of a normal distribution below it, as `rough_sigmoid`, to 9 bits."""
    near = f.max(f.c(-_GELU_FLAT), f.min(f.c(_GELU_FLAT), x))
    z = f.mul(near, f.poly(f.mul(near, near), _ROUGH_NORMAL))
    below = f.select(f.ge(x, f.c(-_GELU_FLAT)), _rough_ratio(f, z), f.c(0.0))
    return f.mul(x, below)


def rough_power(f: Floats, z: ir.Value) -> ir.Value:
    """``2 ** z`` to 12 bits, z within twice the range of exponents."""
    n = f.rint(z)
    return f.scale(f.poly(f.sub(z, n), _ROUGH_EXP2), n)


def _rough_ratio(f: Floats, z: ir.Value) -> ir.Value:
    """``1 / (1 + 2 ** z)``."""
    return f.rough_reciprocal(f.add(f.c(1.0), rough_power(f, z)))


def tanh(f: Floats, x: ir.Value) -> ir.Value:
    """``e / (e + 2)`` with ``e = expm1(2 |x|)``."""
    a = f.min(f.c(constants(f).flat), f.abs(x))
    e = expm1(f, f.add(a, a))
    return f.copysign(f.div(e, f.add(e, f.c(2.0))), x)


def _half_exp(f: Floats, x: ir.Value) -> ir.Value:
    """``exp(x) / 2`` for non-negative x: finite where `sinh` and `cosh` are."""
    c = constants(f)
    x = f.min(f.c(c.highest + 1), x)
    n = f.rint(f.mul(x, f.c(1 / math.log(2))))
    y = _exp_polynomial(f, _remainder(f, x, n))
    return f.scale(y, f.sub(n, f.c(1.0)))


def cosh(f: Floats, x: ir.Value) -> ir.Value:
    """``(exp(x) + exp(-x)) / 2``."""
    e = _half_exp(f, f.abs(x))
    return f.add(e, f.div(f.c(0.25), e))


def sinh(f: Floats, x: ir.Value) -> ir.Value:
    """``(exp(x) - exp(-x)) / 2``; a polynomial for small x."""
    a = f.abs(x)
    e = _half_exp(f, a)
    large = f.sub(e, f.div(f.c(0.25), e))
    z = f.mul(a, a)
    small = f.fma(f.mul(z, a), f.poly(z, constants(f).p.sinh), a)
    return f.copysign(f.select(f.lt(a, f.c(1.0)), small, large), x)


def erf(f: Floats, x: ir.Value) -> ir.Value:
    """The error function: a polynomial up to 1, ``1 - exp(polynomial)`` beyond."""
    c = constants(f)
    a = f.abs(x)
    z = f.mul(a, a)
    small = f.mul(a, f.poly(z, c.p.erf))
    t = f.min(f.c(c.erf_flat), f.max(f.c(1.0), a))
    large = f.sub(f.c(1.0), exp_falling(f, f.poly(f.sub(t, f.c(1.0)), c.p.erfc)))
    return f.copysign(f.select(f.lt(a, f.c(1.0)), small, large), x)


# ---- logarithms ----------------------------------------------------------------------------


def log(f: Floats, x: ir.Value) -> ir.Value:
    """``log(x)``."""
    m, n = _split_exponent(f, x)
    y = _log_sum(f, f.sub(m, f.c(1.0)), n)
    return _log_special(f, x, y, zero=0.0)


def log1p(f: Floats, x: ir.Value) -> ir.Value:
    """``log(1 + x)``: what rounding ``1 + x`` loses is added to the reduced argument."""
    one = f.c(1.0)
    u = f.add(one, x)
    lost = f.select(f.gt(f.abs(x), one), f.sub(one, f.sub(u, x)), f.sub(x, f.sub(u, one)))
    m, n = _split_exponent(f, u)
    count = f.max(f.c(float(1 - f.bias)), f.min(f.c(float(f.bias - 1)), f.neg(n)))
    scaled = f.mul(lost, f.power_of_two(f.to_integer(count)))
    y = _log_sum(f, f.add(f.sub(m, one), scaled), n)
    y = f.select(f.eq(x, f.c(0.0)), x, y)
    return _log_special(f, x, y, zero=-1.0)


def _split_exponent(f: Floats, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``x = m * 2**n`` with m between sqrt(1/2) and sqrt(2), for positive finite x."""
    denormal = f.lt(x, f.c(2.0 ** (1 - f.bias)))
    x = f.select(denormal, f.mul(x, f.c(2.0**f.fraction)), x)
    root = f.bits(f.c(math.sqrt(0.5)))
    offset = f.b.sub(f.bits(x), root)
    n = f.to_float(f.b.ashr(offset, f.i(f.fraction)))
    n = f.sub(n, f.select(denormal, f.c(float(f.fraction)), f.c(0.0)))
    fraction = f.b.and_(offset, f.i((1 << f.fraction) - 1))
    return f.from_bits(f.b.add(fraction, root)), n


def _log_sum(f: Floats, r: ir.Value, n: ir.Value) -> ir.Value:
    """``n * log(2) + log(1 + r)``."""
    c = constants(f)
    high, low = c.log2
    z = f.mul(r, r)
    y = f.fma(f.mul(z, r), f.poly(r, c.p.log), f.mul(n, f.c(low)))
    y = f.fma(f.c(-0.5), z, y)
    return f.fma(n, f.c(high), f.add(r, y))


def _log_special(f: Floats, x: ir.Value, y: ir.Value, zero: float) -> ir.Value:
    """The result where x is in the domain; -inf at its border; inf, and NaN outside."""
    border, infinity = f.c(zero), f.c(math.inf)
    inside = f.b.and_(f.gt(x, border), f.lt(x, infinity))
    outside = f.select(f.lt(x, border), f.c(math.nan), x)  # inf and NaN give themselves
    outside = f.select(f.eq(x, border), f.c(-math.inf), outside)
    return f.select(inside, y, outside)


def asinh(f: Floats, x: ir.Value) -> ir.Value:
    """``log1p(a + a**2 / (1 + sqrt(a**2 + 1)))``, and ``log(2 a)`` for large a."""
    a, one = f.abs(x), f.c(1.0)
    large = f.gt(a, f.c(constants(f).large))
    near = f.select(large, one, a)
    z = f.mul(near, near)
    inner = f.add(near, f.div(z, f.add(one, f.sqrt(f.add(z, one)))))
    y = log1p(f, f.select(large, a, inner))
    return f.copysign(f.add(y, f.select(large, f.c(math.log(2)), f.c(0.0))), x)


def acosh(f: Floats, x: ir.Value) -> ir.Value:
    """``log1p(t + sqrt(2 t + t**2))`` with ``t = x - 1``, and ``log(2 x)`` for large x."""
    large = f.gt(x, f.c(constants(f).large))
    t = f.sub(f.select(large, f.c(1.0), x), f.c(1.0))
    inner = f.add(t, f.sqrt(f.mul(t, f.add(t, f.c(2.0)))))
    y = log1p(f, f.select(large, x, inner))
    y = f.add(y, f.select(large, f.c(math.log(2)), f.c(0.0)))
    return f.select(f.lt(x, f.c(1.0)), f.c(math.nan), y)


def atanh(f: Floats, x: ir.Value) -> ir.Value:
    """``log1p(2 a / (1 - a)) / 2``."""
    a = f.abs(x)
    y = log1p(f, f.div(f.add(a, a), f.sub(f.c(1.0), a)))
    return f.copysign(f.mul(f.c(0.5), y), x)


# ---- powers and remainders -----------------------------------------------------------------


def pow(f: Floats, x: ir.Value, y: ir.Value) -> ir.Value:
    """``x ** y`` by C's rules, as ``exp(y * log |x|)`` with the logarithm in two floats."""
    zero, one, infinity = f.c(0.0), f.c(1.0), f.c(math.inf)
    a = f.abs(x)
    high, low = _log_extended(f, a)
    product = f.mul(high, y)
    rest = f.fma(low, y, f.fma(high, y, f.neg(product)))
    size = _exp_extended(f, product, rest)
    rising = f.gt(y, zero)
    size = f.select(f.eq(a, zero), f.select(rising, zero, infinity), size)
    size = f.select(f.eq(a, infinity), f.select(rising, infinity, zero), size)

    whole = f.eq(f.rint(y), y)
    half = f.mul(f.c(0.5), y)
    odd = f.b.and_(whole, f.ne(f.rint(half), half))
    below = f.lt(x, zero)
    signed = f.select(odd, f.copysign(size, x), size)
    fractional = f.b.and_(f.b.and_(below, f.b.not_(whole)), f.lt(a, infinity))
    result = f.select(fractional, f.c(math.nan), signed)
    unclear = f.b.or_(f.is_nan(x), f.is_nan(y))
    result = f.select(unclear, f.add(x, y), result)
    # -1 to an infinite power is 1, like 1 to any and any to 0
    always = f.b.and_(f.eq(a, one), f.eq(f.abs(y), infinity))
    always = f.b.or_(always, f.b.or_(f.eq(x, one), f.eq(y, zero)))
    return f.select(always, one, result)


def _log_extended(f: Floats, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``log(x)`` of a positive x as an unevaluated sum of two floats.

    With ``s = (m - 1) / (m + 1)``, ``log(m) = 2 atanh(s)``; s and the cubic term are carried in
    two floats (T. J. Dekker, "A floating-point technique for extending the available precision",
    Numerische Mathematik 18, 1971).
    """
    c = constants(f)
    m, n = _split_exponent(f, x)
    one = f.c(1.0)
    above, below = f.sub(m, one), f.add(m, one)
    below_low = f.sub(m, f.sub(below, one))
    s = f.div(above, below)
    left = f.fma(f.neg(s), below_low, f.fma(f.neg(s), below, above))
    s_low = f.div(left, below)

    z = f.mul(s, s)
    z_low = f.fma(s, s, f.neg(z))
    cube = f.mul(z, s)
    cube_low = f.add(f.fma(z, s, f.neg(cube)), f.fma(z_low, s, f.mul(f.c(3.0), f.mul(z, s_low))))
    third = _nearest(f, 2 / 3)
    third_low = (2 / 3 - third) if f.fraction == 23 else _TWO_THIRDS_TAIL
    term = f.mul(cube, f.c(third))
    term_low = f.fma(cube, f.c(third), f.neg(term))
    term_low = f.fma(cube_low, f.c(third), f.fma(cube, f.c(third_low), term_low))
    tail = f.mul(f.mul(cube, z), f.poly(z, c.p.atanh))

    high, low = _two_sum(f, f.mul(n, f.c(c.exact_log2[0])), f.add(s, s))
    high, more = _two_sum(f, high, term)
    low = f.add(f.add(low, more), f.fma(n, f.c(c.exact_log2[1]), f.add(s_low, s_low)))
    return _two_sum(f, high, f.add(low, f.add(term_low, tail)))


_TWO_THIRDS_TAIL = 3.700743415417188e-17  # 2/3 minus the float64 next to it


def _nearest(f: Floats, value: float) -> float:
    """The float of the type next to a float64."""
    return split(value, f.fraction + 1)[0]


def _two_sum(f: Floats, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The rounded sum and its error (D. E. Knuth, TAOCP vol. 2, 4.2.2)."""
    total = f.add(a, b)
    seen = f.sub(total, a)
    return total, f.add(f.sub(a, f.sub(total, seen)), f.sub(b, seen))


def _exp_extended(f: Floats, high: ir.Value, low: ir.Value) -> ir.Value:
    """``exp(high + low)``."""
    c = constants(f)
    inside = f.b.and_(f.gt(high, f.c(c.lowest)), f.lt(high, f.c(c.highest)))
    r, n = _reduce_exponent(f, high)
    r = f.add(r, f.select(inside, low, f.c(0.0)))
    return f.scale(_exp_polynomial(f, r), n)


def fmod(f: Floats, x: ir.Value, y: ir.Value) -> ir.Value:
    """The exact remainder with the sign of x: long division by multiples of y."""
    if f.dtype is DType.FLOAT32:  # a float64 quotient of float32s cannot overflow
        wide = Floats(f.k, DType.FLOAT64, f.lanes)
        rest = _long_division(wide, f.b.fpext(f.abs(x), wide.type), f.b.fpext(f.abs(y), wide.type))
        rest = f.b.fptrunc(rest, f.type)
    else:
        rest, divisor = f.abs(x), f.abs(y)
        for exponents in ((537, 537), (100,), ()):
            multiple = divisor
            for exponent in exponents:
                multiple = f.mul(multiple, f.c(2.0**exponent))
            rest = _long_division(f, rest, multiple)
    defined = f.b.and_(f.lt(f.abs(x), f.c(math.inf)), f.gt(f.abs(y), f.c(0.0)))
    return f.select(defined, f.copysign(rest, x), f.select(f.is_nan(x), x, f.c(math.nan)))


def _long_division(f: Floats, rest: ir.Value, y: ir.Value) -> ir.Value:
    """``rest mod y`` of non-negative floats whose quotient is finite.

    Each round subtracts the quotient, rounded down to a float, times y; the difference is a float,
    as in Sterbenz's lemma, and smaller by the significand's bits.
    """
    k = f.k
    header = k.function.append_basic_block("divide")
    body = k.function.append_basic_block("round")
    after = k.function.append_basic_block("divided")
    before = k.b.block
    k.b.branch(header)
    k.b.position_at_end(header)
    left = k.b.phi(f.type)
    left.add_incoming(rest, before)
    # an infinite or zero divisor leaves everything as it is
    active = f.b.and_(f.ge(left, y), f.b.and_(f.gt(y, f.c(0.0)), f.lt(left, f.c(math.inf))))
    k.b.cbranch(f.any(active), body, after)
    k.b.position_at_end(body)
    quotient = f.div(left, y)
    whole = f.trunc(quotient)
    lower = f.from_bits(f.b.sub(f.bits(whole), f.i(1)))
    over = f.lt(f.fma(f.neg(whole), y, left), f.c(0.0))
    less = f.fma(f.neg(f.trunc(f.select(over, lower, whole))), y, left)
    left.add_incoming(f.select(active, less, left), k.b.block)
    k.b.branch(header)
    k.b.position_at_end(after)
    return left
