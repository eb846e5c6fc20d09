"""Activations that a model spells out in primitives become the ops they are.

    x                                x
    |  \\                             |
    | Sigmoid           =>          Silu
    |  /                             |
    Mul

    x * sigmoid(x)                        => silu(x)
    clip(x + 3, 0, 6) * (1/6)             => hard_sigmoid(x)
    x * hard_sigmoid(x)                   => hard_swish(x)
    log(exp(x) + 1)                       => softplus(x)
    x * tanh(softplus(x))                 => mish(x)
    0.5 * x * (1 + erf(x / sqrt(2)))      => gelu(x), in every association of the products
    1 / (1 + exp(-x))                     => sigmoid(x)
    select(x > 0, x, exp(x) - 1)          => elu(x)

The patterns are those that `canonical.py` leaves: constants on the right, no division by constants.
"""

from __future__ import annotations

import math

from planish.graph.graph import Graph, Value
from planish.ops.elementwise import Clip, Elu, Gelu, HardSigmoid, Select, ew
from planish.passes.rewrite import (
    Apply,
    Match,
    Number,
    Pattern,
    Product,
    Scalar,
    Var,
    rewrite,
    rules,
    scalar,
)

X = Var("x")

ROUNDING = 1e-3
"""Constants of an approximation count as equal within this relative error."""


def recognize_activations(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _to(op):
    return lambda m: m.add(op, m["x"])


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=ROUNDING, abs_tol=1e-6)


def _hard_sigmoid(m: Match) -> Value | None:
    """``clip(alpha * x + beta, 0, high) * scale`` with ``high * scale == 1``."""
    clip = m.ops["clip"]
    assert isinstance(clip, Clip)
    scale = scalar(m["scale"]) if "scale" in m.values else 1.0
    alpha = scalar(m["alpha"]) if "alpha" in m.values else 1.0
    beta = scalar(m["beta"])
    if clip.low != 0 or not _close(clip.high * scale, 1) or not m["x"].dtype.is_float:
        return None
    alpha, beta = alpha * scale, beta * scale
    if _close(alpha, 1 / 6) and _close(beta, 0.5):
        alpha, beta = 1 / 6, 0.5
    return m.add(HardSigmoid(alpha, beta), m["x"])


def _hard_swish(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, HardSigmoid)
    if not (_close(op.alpha, 1 / 6) and _close(op.beta, 0.5)):
        return None
    return m.add(ew.HardSwish(), m["x"])


def _hard_swish_of_clip(m: Match) -> Value | None:
    clip = m.ops["clip"]
    assert isinstance(clip, Clip)
    if (clip.low, clip.high) != (0, 6):
        return None
    return m.add(ew.HardSwish(), m["x"])


def _elu(m: Match) -> Value | None:
    alpha = scalar(m["alpha"]) if "alpha" in m.values else 1.0
    return m.add(Elu(alpha), m["x"])


_SHIFTED = Apply(ew.Add, Apply(ew.Mul, X, Scalar("alpha")), Scalar("beta")) | Apply(
    ew.Add, X, Scalar("beta")
)
_CLIPPED = Apply(Clip, _SHIFTED, called="clip")
_CLIPPED_6 = Apply(Clip, Apply(ew.Add, X, Number(3)), called="clip")

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = Product(X, X, X, Number(0.044715)) | Product(Apply(ew.Pow, X, Number(3)), Number(0.044715))
_TANH_ARGUMENT = (
    Product(Apply(ew.Add, X, _CUBIC), Number(_ROOT))
    | Product(X, Apply(ew.Add, Product(X, X, Number(0.044715)), Number(1)), Number(_ROOT))
    | Product(X, Apply(ew.Add, Product(X, X, Number(0.044715 * _ROOT)), Number(_ROOT)))
)


def _halved(function: Pattern) -> Pattern:
    """``x * (function + 1) / 2``, also with the half multiplied in."""
    return Product(X, Apply(ew.Add, function, Number(1)), Number(0.5)) | Product(
        X, Apply(ew.Add, Product(function, Number(0.5)), Number(0.5))
    )


_ERF = Apply(ew.Erf, Product(X, Number(math.sqrt(0.5))))
_TANH = Apply(ew.Tanh, _TANH_ARGUMENT)
_SOFTPLUS = Apply(ew.Softplus, X)
_NEGATIVE_BRANCH = Apply(ew.Expm1, X) | Apply(ew.Add, Apply(ew.Exp, X), Number(-1))

RULES = (
    *rules(
        "reciprocal(exp(-x) + 1) => sigmoid(x)",
        Apply(ew.Reciprocal, Apply(ew.Add, Apply(ew.Exp, Apply(ew.Neg, X)), Number(1))),
        _to(ew.Sigmoid()),
    ),
    *rules(
        "clip(alpha * x + beta, 0, 1 / c) * c => hard_sigmoid(x)",
        Apply(ew.Mul, _CLIPPED, Scalar("scale")) | _CLIPPED,
        _hard_sigmoid,
    ),
    *rules(
        "x * hard_sigmoid(x) => hard_swish(x)",
        Apply(ew.Mul, X, Apply(HardSigmoid, X, called="op")),
        _hard_swish,
    ),
    *rules(
        "x * clip(x + 3, 0, 6) * (1/6) => hard_swish(x)",
        Product(X, _CLIPPED_6, Number(1 / 6)),
        _hard_swish_of_clip,
    ),
    *rules("x * sigmoid(x) => silu(x)", Product(X, Apply(ew.Sigmoid, X)), _to(ew.Silu())),
    *rules(
        "log(exp(x) + 1) => softplus(x)",
        Apply(ew.Log, Apply(ew.Add, Apply(ew.Exp, X), Number(1)))
        | Apply(ew.Log1p, Apply(ew.Exp, X)),
        _to(ew.Softplus()),
    ),
    *rules(
        "x * tanh(softplus(x)) => mish(x)",
        Product(X, Apply(ew.Tanh, _SOFTPLUS)),
        _to(ew.Mish()),
    ),
    *rules("x * (erf(x / sqrt(2)) + 1) / 2 => gelu(x)", _halved(_ERF), _to(Gelu())),
    *rules(
        "x * (tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)) + 1) / 2 => gelu(x)",
        _halved(_TANH),
        _to(Gelu(approximate=True)),
    ),
    *rules(
        "select(x > 0, x, alpha * (exp(x) - 1)) => elu(x)",
        Apply(
            Select,
            Apply(ew.Greater, X, Number(0)),
            X,
            _NEGATIVE_BRANCH | Apply(ew.Mul, _NEGATIVE_BRANCH, Scalar("alpha")),
        ),
        _elu,
    ),
)
