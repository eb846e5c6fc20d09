"""Elementwise ops on floats, as Triton text.

float32 and float64 are accurate to a few ulp; division and square root are correctly rounded.
Halves, which are computed in float32 and rounded to 8 or 11 bits when they are stored, take the
fast forms of both and of the exponential. Numbers below the least normal float32 may be taken for
zero by functions. The compiler may fuse a product and a sum; `exact_product` forbids it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from planish.targets.cuda.codegen.literals import Step

Rule = Callable[..., str]
"""``rule(step, *operands)`` gives an expression; operands are names of variables."""


def divide(s: Step, a: str, b: str) -> str:
    """``a / b``: correctly rounded, of halves within 2 ulp of float32."""
    return f"({a}) / ({b})" if s.is_half else exact_quotient(s, a, b)


def exact_quotient(s: Step, a: str, b: str) -> str:
    """``a / b``, correctly rounded (halves: in float32)."""
    return f"tl.div_rn({a}, {b})" if s.type == "tl.float32" else f"({a}) / ({b})"


def exact_product(a: str, b: str) -> str:
    """``a * b`` that is rounded before anything is added to it."""
    return f"libdevice.mul_rn({a}, {b})"


def maximum(s: Step, a: str, b: str) -> str:
    """The larger one; NaN if either is."""
    return f"tl.maximum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def minimum(s: Step, a: str, b: str) -> str:
    """The smaller one; NaN if either is."""
    return f"tl.minimum({a}, {b}, propagate_nan=tl.PropagateNan.ALL)"


def between(s: Step, x: str, low: float, high: float) -> str:
    """``min(max(x, low), high)``; NaN stays."""
    if low > -math.inf:
        x = maximum(s, x, s.c(low))
    return minimum(s, x, s.c(high)) if high < math.inf else x


def _negative(s: Step, x: str) -> str:
    return f"{x} * {s.c(-1)}"  # Triton's minus subtracts from +0


def _exp(s: Step, x: str) -> str:
    return f"tl.exp({x})" if s.is_half else f"libdevice.exp({x})"


def _sqrt(s: Step, x: str) -> str:
    return f"tl.sqrt_rn({x})" if s.type == "tl.float32" and not s.is_half else f"tl.sqrt({x})"


def _rsqrt(s: Step, x: str) -> str:
    return f"tl.rsqrt({x})" if s.is_half else exact_quotient(s, s.c(1), _sqrt(s, x))


def _sign(s: Step, x: str) -> str:
    rest = f"tl.where({x} == {s.c(0)}, {s.c(0)}, {x})"  # NaN stays
    return f"tl.where({x} > {s.c(0)}, {s.c(1)}, tl.where({x} < {s.c(0)}, {s.c(-1)}, {rest}))"


def _sigmoid(s: Step, x: str) -> str:
    """Either way no exponential overflows; of halves nothing is lost where one does."""
    if s.is_half:
        return divide(s, s.c(1), f"{s.c(1)} + {_exp(s, _negative(s, x))}")
    z = s.let(_exp(s, _negative(s, f"tl.abs({x})")))
    top = f"tl.where({x} < {s.c(0)}, {z}, {s.c(1)})"
    return f"({top}) / ({s.c(1)} + {z})"


def _silu(s: Step, x: str) -> str:
    if s.is_half:
        return divide(s, x, f"{s.c(1)} + {_exp(s, _negative(s, x))}")
    return f"{x} * ({_sigmoid(s, x)})"


def _gelu(s: Step, x: str) -> str:
    if s.op.approximate:  # (1 + tanh(u)) / 2 is the sigmoid of 2 u
        twice = 2 * math.sqrt(2 / math.pi)
        inner = s.let(f"{x} * ({s.c(twice)} + {s.c(twice * 0.044715)} * {x} * {x})")
        return f"{x} * ({_sigmoid(s, inner)})"
    if s.is_half:
        return without_tail(s, x, _TAIL)
    half = s.let(f"{x} * {s.c(0.5)}")
    return f"{half} * tl.erf({x} * {s.c(math.sqrt(0.5))}) + {half}"


_TAIL = (
    *(-1.0001279579867959, -1.1491434248882557, -0.4641623901419873),
    *(-0.04821551173643066, 0.005822294975222669, -0.00032009398674968237),
)
"""The binary logarithm of the normal distribution's tail, as a polynomial of where it begins, up to
6.2: a minimax fit (linear programming) of its relative error, 8.3e-5, where halves can tell ``x``
times the tail from zero. Beyond it falls on.
"""


def without_tail(s: Step, x: str, terms: Sequence[float]) -> str:
    """GELU, ``x`` times the normal distribution, as ``max(x, 0) - |x| tail(|x|)``: half the
    instructions of erf, one of them slow, and as exact for large negative ``x``, where ``1 + erf``
    cancels. The terms are those of the tail's binary logarithm.
    """
    far = s.let(f"tl.minimum(tl.abs({x}), {s.c(8)})")  # no infinity times zero
    power = s.c(terms[-1])
    for term in terms[-2::-1]:
        power = s.let(f"{power} * {far} + {s.c(term)}")
    half = s.let(f"{x} * {s.c(0.5)}")  # of -inf the sum is NaN, as by erf
    return f"{half} + tl.abs({half}) - {far} * libdevice.exp2({power})"


def _softplus(s: Step, x: str) -> str:
    tail = f"libdevice.log1p({_exp(s, _negative(s, f'tl.abs({x})'))})"
    return f"{maximum(s, x, s.c(0))} + {tail}"


def _mish(s: Step, x: str) -> str:
    """``tanh(log(1 + y)) = n / (n + 2)`` where ``y = exp(x)``, ``n = y * (y + 2)``."""
    y = s.let(_exp(s, f"tl.minimum({x}, {s.c(40)})"))
    n = s.let(f"{y} * ({y} + {s.c(2)})")
    return f"{x} * ({n} / ({n} + {s.c(2)}))"


def _exponential_unit(s: Step, x: str, alpha: float) -> str:
    below = f"{s.c(alpha)} * libdevice.expm1(tl.minimum({x}, {s.c(0)}))"
    below = s.let(f"tl.where({x} == {x}, {below}, {x})")
    return f"tl.where({x} > {s.c(0)}, {x}, {below})"


def _selu(s: Step, x: str) -> str:
    return f"{s.c(1.0507009873554805)} * {_exponential_unit(s, x, 1.6732632423543772)}"


def _leaky_relu(s: Step, x: str) -> str:
    scaled = f"{x} * {s.c(s.op.alpha)}"
    if 0 < s.op.alpha <= 1:
        return maximum(s, x, scaled)
    return f"tl.where({x} >= {s.c(0)}, {x}, {scaled})"


def _hard_sigmoid(s: Step, x: str) -> str:
    return between(s, f"{x} * {s.c(s.op.alpha)} + {s.c(s.op.beta)}", 0, 1)


def _hard_swish(s: Step, x: str) -> str:
    return f"{x} * ({between(s, f'{x} + {s.c(3)}', 0, 6)} * {s.c(1 / 6)})"


def _squared_difference(s: Step, a: str, b: str) -> str:
    difference = s.let(f"{a} - {b}")
    return f"{difference} * {difference}"


def _power(s: Step, x: str, y: str) -> str:
    """Powers by a constant that a multiplication or two can do are done by them."""
    exponent = s.constants[1]
    if exponent == 2:
        return f"{x} * {x}"
    if exponent == 1:
        return x
    if exponent == 3:
        return f"{x} * {x} * {x}"
    if exponent == -1:
        return divide(s, s.c(1), x)
    if exponent == 0.5:  # unlike the square root, +0 for -0 and inf for -inf
        root = _sqrt(s, f"{x} + {s.c(0)}")
        return f"tl.where({x} == {s.c(-math.inf)}, {s.c(math.inf)}, {root})"
    return f"libdevice.pow({x}, {y})"


def _floor_mod(s: Step, a: str, b: str) -> str:
    rest = s.let(f"libdevice.fmod({a}, {b})")
    zero = f"tl.where({b} < {s.c(0)}, {s.c(-0.0)}, {s.c(0)})"
    differ = f"({rest} < {s.c(0)}) != ({b} < {s.c(0)})"
    return f"tl.where({rest} == {s.c(0)}, {zero}, tl.where({differ}, {rest} + {b}, {rest}))"


def _function(name: str) -> Rule:
    return lambda s, *operands: f"{name}({', '.join(operands)})"


def _operator(operator: str) -> Rule:
    return lambda s, a, b: f"{a} {operator} {b}"


RULES: dict[str, Rule] = {
    "neg": _negative,
    "abs": _function("tl.abs"),
    "sign": _sign,
    "reciprocal": lambda s, x: divide(s, s.c(1), x),
    "square": lambda s, x: f"{x} * {x}",
    "sqrt": _sqrt,
    "rsqrt": _rsqrt,
    "exp": _exp,
    "relu": lambda s, x: maximum(s, x, s.c(0)),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "mish": _mish,
    "softplus": _softplus,
    "softsign": lambda s, x: divide(s, x, f"{s.c(1)} + tl.abs({x})"),
    "selu": _selu,
    "erf": _function("tl.erf"),
    "floor": _function("tl.floor"),
    "ceil": _function("tl.ceil"),
    "round": _function("libdevice.rint"),
    "is_nan": lambda s, x: f"{x} != {x}",
    "is_inf": lambda s, x: f"tl.abs({x}) == {s.c(math.inf)}",
    "is_finite": lambda s, x: f"tl.abs({x}) < {s.c(math.inf)}",
    "add": _operator("+"),
    "sub": _operator("-"),
    "mul": _operator("*"),
    "div": divide,
    "exact_div": exact_quotient,
    "floor_div": lambda s, a, b: f"tl.floor({exact_quotient(s, a, b)})",
    "floor_mod": _floor_mod,
    "trunc_mod": _function("libdevice.fmod"),
    "pow": _power,
    "maximum": maximum,
    "minimum": minimum,
    "squared_difference": _squared_difference,
    "prelu": lambda s, x, slope: f"tl.where({x} >= {s.c(0)}, {x}, {x} * {slope})",
    "clip": lambda s, x: between(s, x, s.op.low, s.op.high),
    "leaky_relu": _leaky_relu,
    "elu": lambda s, x: _exponential_unit(s, x, s.op.alpha),
    "hard_sigmoid": _hard_sigmoid,
    "gelu": _gelu,
    **{
        name: _function(f"libdevice.{name}")
        for name in (
            *("expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2"),
            *("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "trunc"),
        )
    },
}
"""By the op's name."""
