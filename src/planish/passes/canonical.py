"""One way to write each thing, so that the other passes need few patterns.

      c   x            x   c           x   c             x   -c
       \\ /              \\ /             \\ /               \\ /
       Add      =>      Add            Sub      =>       Add

Constants stand on the right; subtracting and dividing by a constant become adding and multiplying;
`Maximum`, `Minimum` and `Pow` with special constants become the ops they stand for.
"""

from __future__ import annotations

import math

import numpy as np

from planish.graph.graph import Graph, Value
from planish.ops.elementwise import Clip, LeakyRelu, ew
from planish.passes.rewrite import (
    COMMUTATIVE,
    Apply,
    Const,
    Match,
    Number,
    Rule,
    Scalar,
    Var,
    rewrite,
    scalar,
)

X, Y, C = Var("x"), Var("y"), Const("c")

ODD = (ew.Erf, ew.Tanh, ew.Sin, ew.Tan, ew.Asin, ew.Atan, ew.Sinh, ew.Asinh, ew.Atanh)
"""Functions with ``f(-x) == -f(x)``."""

POWERS = {
    -1.0: ew.Reciprocal,
    -0.5: ew.Rsqrt,
    0.5: ew.Sqrt,
    2.0: ew.Square,
}
"""Exponents that have an op of their own."""


def canonicalize(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def finish(graph: Graph) -> bool:
    """Applies `LAST_RULES`: cheaper ops in place of forms that other passes like to meet."""
    return rewrite(graph, LAST_RULES)


def _constant_right(m: Match) -> Value | None:
    a, b = m.root.inputs
    if a.is_constant and not b.is_constant:
        return m.add(m.root.op, b, a)
    return None


def _subtract_constant(m: Match) -> Value | None:
    c = m["c"]
    assert c.data is not None
    if c.dtype.name.startswith("UINT"):
        return None
    return m.add(ew.Add(), m["x"], m.constant(-c.data, c, f"{c.name}/negative"))


def _divide_by_constant(m: Match) -> Value | None:
    c = m["c"]
    assert c.data is not None
    if not c.dtype.is_float:
        return None
    with np.errstate(all="ignore"):
        inverse = (1 / c.data.astype(np.float64)).astype(c.dtype.numpy)
    wide = np.abs(inverse.astype(np.float64))
    tiny = 2.0**-14 if c.dtype.size == 2 else float(np.finfo(np.float32).tiny)
    if not np.all(np.isfinite(wide) & (wide >= tiny)):
        return None  # denormal or infinite inverses are not accurate
    if c.dtype.size == 2 and not np.all(inverse.astype(np.float64) * c.data.astype(float) == 1):
        return None  # two roundings to halves; kernels divide halves in float32
    return m.add(ew.Mul(), m["x"], m.constant(inverse, c, f"{c.name}/inverse"))


def _bound(low: bool):
    def build(m: Match) -> Value | None:
        bound = scalar(m["c"])
        if bound != bound or not _is_exact(m["c"], bound):
            return None
        if low and bound == 0:
            return m.add(ew.Relu(), m["x"])
        return m.add(Clip(bound, math.inf) if low else Clip(-math.inf, bound), m["x"])

    return build


def _is_exact(constant: Value, number: float) -> bool:
    assert constant.data is not None
    return constant.dtype.is_float or int(number) == int(constant.data.reshape(())[()])


def _leaky_relu(m: Match) -> Value | None:
    alpha = scalar(m["alpha"])
    # max(x, alpha * x) takes the other branch for negative or large alpha
    return m.add(LeakyRelu(alpha), m["x"]) if 0 <= alpha <= 1 else None


def _prelu_of_scalar(m: Match) -> Value | None:
    return m.add(LeakyRelu(scalar(m["c"])), m["x"])


def _prelu(m: Match) -> Value | None:
    c = m["c"]
    assert c.data is not None
    return m.add(ew.Prelu(), m["x"], m.constant(-c.data, c, f"{c.name}/negative"))


def _power(m: Match) -> Value | None:
    kind = POWERS.get(scalar(m["c"]))
    if kind is None or (not m["x"].dtype.is_float and kind is not ew.Square):
        return None
    return m.add(kind(), m["x"])


def _unary(kind, *names: str):
    return lambda m: m.add(kind(), *(m[n] for n in names))


def _over_sqrt(m: Match) -> Value | None:
    return m.add(ew.Mul(), m["x"], m.add(ew.Rsqrt(), m["y"]))


def _negated_product(m: Match) -> Value | None:
    return m.add(ew.Neg(), m.add(ew.Mul(), m["x"], m["y"]))


def _negated_function(m: Match) -> Value | None:
    return m.add(ew.Neg(), m.add(m.ops["f"], m["x"]))


def _cube(m: Match) -> Value | None:
    return m.add(ew.Mul(), m.add(ew.Square(), m["x"]), m["x"])


def _reciprocal(m: Match) -> Value | None:
    return m.add(ew.Reciprocal(), m["x"]) if m["x"].dtype.is_float else None


RULES = (
    *(
        Rule(
            f"{kind.name}(c, x) => {kind.name}(x, c)",
            Apply(kind, Var("a"), Var("b")),
            _constant_right,
            shared=True,
        )
        for kind in COMMUTATIVE
    ),
    Rule("x - c => x + (-c)", Apply(ew.Sub, X, C), _subtract_constant),
    Rule("x / c => x * (1 / c)", Apply(ew.Div, X, C), _divide_by_constant),
    Rule("x + (-y) => x - y", Apply(ew.Add, X, Apply(ew.Neg, Y)), _unary(ew.Sub, "x", "y")),
    Rule("x - (-y) => x + y", Apply(ew.Sub, X, Apply(ew.Neg, Y)), _unary(ew.Add, "x", "y")),
    Rule("(-x) * y => -(x * y)", Apply(ew.Mul, Apply(ew.Neg, X), Y), _negated_product),
    Rule("f(-x) => -f(x)", Apply(ODD, Apply(ew.Neg, X), called="f"), _negated_function),
    Rule("max(x, c) => clip(x, c, inf)", Apply(ew.Maximum, X, Scalar("c")), _bound(True)),
    Rule("min(x, c) => clip(x, -inf, c)", Apply(ew.Minimum, X, Scalar("c")), _bound(False)),
    Rule(
        "max(x, alpha * x) => leaky_relu(x, alpha)",
        Apply(ew.Maximum, X, Apply(ew.Mul, X, Scalar("alpha"))),
        _leaky_relu,
    ),
    Rule("prelu(x, scalar) => leaky_relu(x)", Apply(ew.Prelu, X, Scalar("c")), _prelu_of_scalar),
    Rule(
        "relu(x) + c * relu(-x) => prelu(x, -c)",
        Apply(ew.Add, Apply(ew.Relu, X), Apply(ew.Mul, Apply(ew.Relu, Apply(ew.Neg, X)), C)),
        _prelu,
    ),
    Rule("x ** 2 => square(x), and so on", Apply(ew.Pow, X, Scalar("c")), _power),
    Rule("1 / x => reciprocal(x)", Apply(ew.Div, Number(1), X), _reciprocal),
    Rule(
        "reciprocal(sqrt(x)) => rsqrt(x)",
        Apply(ew.Reciprocal, Apply(ew.Sqrt, X)),
        _unary(ew.Rsqrt, "x"),
    ),
    Rule("x / sqrt(y) => x * rsqrt(y)", Apply(ew.Div, X, Apply(ew.Sqrt, Y)), _over_sqrt),
    Rule("x * x => square(x)", Apply(ew.Mul, X, X), _unary(ew.Square, "x")),
    Rule(
        "square(x - y) => squared_difference(x, y)",
        Apply(ew.Square, Apply(ew.Sub, X, Y)),
        _unary(ew.SquaredDifference, "x", "y"),
    ),
)
"""The rules; where two could apply, the first one does."""

LAST_RULES = (
    Rule("x * (-1) => -x", Apply(ew.Mul, X, Number(-1)), _unary(ew.Neg, "x")),
    Rule("x ** 3 => square(x) * x", Apply(ew.Pow, X, Number(3)), _cube),
    Rule("x + (-y) => x - y", Apply(ew.Add, X, Apply(ew.Neg, Y)), _unary(ew.Sub, "x", "y")),
)
"""Rules for the end: a multiplication folds into weights, a negation would not."""
