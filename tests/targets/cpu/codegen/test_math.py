"""Generated elementary functions against NumPy in more precision, in units in the last place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.types import DType
from planish.ops.elementwise import Elementwise, ew
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.math import exp_falling

_erf = np.vectorize(math.erf, otypes=[np.float64])
LONG = np.longdouble
EXTENDED = np.finfo(LONG).nmant >= 63

# name: (op, exact function, border of the interesting arguments)
UNARY = {
    "exp": (ew.Exp(), np.exp, (-110, 95)),
    "expm1": (ew.Expm1(), np.expm1, (-20, 95)),
    "log": (ew.Log(), np.log, (0, 10)),
    "log1p": (ew.Log1p(), np.log1p, (-1, 10)),
    "sin": (ew.Sin(), np.sin, (-40, 40)),
    "cos": (ew.Cos(), np.cos, (-40, 40)),
    "tan": (ew.Tan(), np.tan, (-40, 40)),
    "asin": (ew.Asin(), np.arcsin, (-1, 1)),
    "acos": (ew.Acos(), np.arccos, (-1, 1)),
    "atan": (ew.Atan(), np.arctan, (-5, 5)),
    "sinh": (ew.Sinh(), np.sinh, (-95, 95)),
    "cosh": (ew.Cosh(), np.cosh, (-95, 95)),
    "tanh": (ew.Tanh(), np.tanh, (-12, 12)),
    "asinh": (ew.Asinh(), np.arcsinh, (-10, 10)),
    "acosh": (ew.Acosh(), np.arccosh, (1, 10)),
    "atanh": (ew.Atanh(), np.arctanh, (-1, 1)),
    "sigmoid": (ew.Sigmoid(), lambda x: 1 / (1 + np.exp(-x)), (-110, 30)),
}
BINARY = {
    "pow": (ew.Pow(), np.power),
    "atan2": (ew.Atan2(), np.arctan2),
}
TOLERANCE = 4


def expression(op: Elementwise, dtype: DType, arity: int = 1) -> Expression:
    leaves = (Leaf(dtype),) * arity
    return Expression(leaves, (Instruction(op, tuple(range(arity)), dtype),), (arity,))


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Distances in units in the last place of the exact result; NaN and infinities must match."""
    kind = got.dtype.type
    info = np.finfo(kind)
    with np.errstate(all="ignore"):
        rounded = exact.astype(kind)
        unit = np.maximum(np.abs(np.spacing(rounded)), info.smallest_subnormal).astype(exact.dtype)
        unit = np.where(np.isinf(rounded), np.spacing(info.max).astype(exact.dtype), unit)
        # beyond the largest number counts as the next one, so that rounding decides infinity
        limit = exact.dtype.type(info.max) * (1 + exact.dtype.type(info.eps))
        seen = np.where(np.isinf(got), np.copysign(limit, got), got.astype(exact.dtype))
        distance = np.abs(seen - np.clip(exact, -limit, limit)) / unit
    same_nan = np.isnan(got) == np.isnan(exact)
    return np.where(np.isnan(got) & np.isnan(exact), 0, np.where(same_nan, distance, np.inf))


def samples(kind: type, borders: tuple[float, float], count: int) -> np.ndarray:
    """Arguments between the borders, of every size, and the special ones."""
    rng = np.random.default_rng(7)
    info = np.finfo(kind)
    bits = np.uint32 if kind is np.float32 else np.uint64
    anything = rng.integers(0, np.iinfo(bits).max, count, dtype=bits).view(kind)
    small = rng.uniform(-1, 1, count) * 2.0 ** rng.uniform(-40, 1, count)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2, -2, 3, info.max, -info.max]
    special += [info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal]
    special += [info.tiny / 8, 1 + info.eps, 1 - info.eps / 2, -1 + info.eps / 2]
    special += [np.pi / 4, np.pi / 2, np.pi, 1e5, 1e6, 88.72283, -87.33654, 709.782, -745.1]
    parts = [rng.uniform(*borders, count), small, special]
    return np.concatenate([anything, *(np.asarray(p).astype(kind) for p in parts)])


def check(got: np.ndarray, exact: np.ndarray, *arguments: np.ndarray) -> None:
    distance = ulps(got, exact)
    worst = int(np.argmax(distance))
    assert distance[worst] <= TOLERANCE, (
        f"{[float(a[worst]) for a in arguments]} gave {got[worst]!r}, exactly {exact[worst]!r}"
    )
    zero = (exact == 0) & (arguments[0] == 0)
    assert np.array_equal(np.signbit(got[zero]), np.signbit(exact[zero]))


@pytest.mark.parametrize("name", UNARY)
def test_float32(name, isa, evaluate):
    op, exact, borders = UNARY[name]
    x = samples(np.float32, borders, 20000)
    (got,) = evaluate(expression(op, DType.FLOAT32), [x], 16 if isa == "host" else 8, isa)
    with np.errstate(all="ignore"):
        check(got, exact(x.astype(np.float64)), x)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_falling_exponential(dtype, isa, evaluate):
    """`exp_falling` is `exp` of what is not above 0, but that it gives 0 instead of denormals."""
    kind = dtype.numpy.type
    x = samples(kind, (-110, 0) if dtype is DType.FLOAT32 else (-750, 0), 20000)
    x = x[~(x > 0)]

    def write(k, _, leaves, lanes):
        return [exp_falling(Floats(k, dtype, lanes), leaves[0])]

    (got,) = evaluate(expression(ew.Exp(), dtype), [x], 8, isa, write)
    with np.errstate(all="ignore"):
        exact = np.exp(x.astype(LONG if EXTENDED else np.float64))
        small = exact < np.finfo(kind).tiny * 2
        assert (np.abs(got[small]) <= 2 * np.finfo(kind).tiny).all()
        check(got[~small], exact[~small], x[~small])
    assert (got[x < np.log(np.finfo(kind).tiny) - 1] == 0).all()


@pytest.mark.skipif(not EXTENDED, reason="NumPy's longdouble is no longer than double here")
@pytest.mark.parametrize("name", UNARY)
def test_float64(name, evaluate):
    op, exact, (low, high) = UNARY[name]
    wide = 8 if max(abs(low), high) > 50 else 1
    x = samples(np.float64, (low * wide, high * wide), 5000)
    (got,) = evaluate(expression(op, DType.FLOAT64), [x], 8, "host")
    with np.errstate(all="ignore"):
        check(got, exact(x.astype(LONG)), x)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_erf(dtype, isa, evaluate):
    x = samples(dtype.numpy.type, (-6.5, 6.5), 5000)
    (got,) = evaluate(expression(ew.Erf(), dtype), [x], 8, isa)
    with np.errstate(all="ignore"):
        check(got, _erf(x.astype(np.float64)), x)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh"])
def test_scalars(name, evaluate):
    op, exact, borders = UNARY[name]
    x = samples(np.float32, borders, 500)
    (got,) = evaluate(expression(op, DType.FLOAT32), [x], 1, "host")
    with np.errstate(all="ignore"):
        check(got, exact(x.astype(np.float64)), x)


@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_huge_angles(name, dtype, evaluate):
    """The largest floats are reduced exactly, as the C library does."""
    op, exact = UNARY[name][0], np.vectorize(getattr(math, name), otypes=[np.float64])
    rng = np.random.default_rng(1)
    kind = dtype.numpy.type
    x = (rng.uniform(1, 2, 4000) * 2.0 ** rng.integers(10, np.finfo(kind).maxexp, 4000)).astype(
        kind
    )
    x[:2] = [16367173 * 2.0**72, 1e5]  # the float32 nearest to a multiple of pi / 2
    (got,) = evaluate(expression(op, dtype), [x], 8, "host")
    with np.errstate(all="ignore"):
        check(got, exact(x.astype(np.float64)), x)


def test_the_worst_angle(evaluate):
    """The float64 nearest to a multiple of pi / 2; the cosine from 60-digit arithmetic."""
    x = np.array([6381956970095103 * 2.0**797])
    (got,) = evaluate(expression(ew.Cos(), DType.FLOAT64), [x], 1, "host")
    assert abs(got[0] / -4.687165924254627611e-19 - 1) < 4e-16


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_binary(name, dtype, isa, evaluate):
    op, exact = BINARY[name]
    kind = dtype.numpy.type
    x = samples(kind, (-3, 3), 3000)
    y = np.random.default_rng(3).permutation(samples(kind, (-30, 30), 3000))
    special = np.array(
        [0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1.5, np.inf, -np.inf, np.nan], kind
    )
    a, b = np.meshgrid(special, special)
    x, y = np.concatenate([x, a.ravel()]), np.concatenate([y, b.ravel()])
    if name == "pow":  # many integer exponents, and results between 0 and infinity
        with np.errstate(all="ignore"):
            x = np.concatenate([x, np.abs(x[:6000]) ** kind(0.2), x[:6000]])
            y = np.concatenate([y, y[:6000], np.rint(y[:6000] % 40)])
    (got,) = evaluate(expression(op, dtype, 2), [x, y], 8, isa)
    wide = np.float64 if kind is np.float32 else LONG
    with np.errstate(all="ignore"):
        check(got, exact(x.astype(wide), y.astype(wide)), x, y)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_remainders_are_exact(dtype, isa, evaluate):
    kind = dtype.numpy.type
    x = samples(kind, (-100, 100), 2000)
    y = np.random.default_rng(5).permutation(samples(kind, (-7, 7), 2000))
    for op in (ew.TruncMod(), ew.FloorMod()):
        (got,) = evaluate(expression(op, dtype, 2), [x, y], 8, isa)
        np.testing.assert_array_equal(got, op.reference(x, y)[0])
