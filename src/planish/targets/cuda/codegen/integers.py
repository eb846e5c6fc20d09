"""Elementwise ops on integers and bools, as Triton text.

Sums and products wrap around; divisions are total (0 where the divisor is 0); shifts by the width
or more give what shifting one by one would.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from planish.targets.cuda.codegen.literals import Step, is_signed, limits

LONGEST_PRODUCT = 64
"""The greatest constant exponent that becomes multiplications without a loop."""


def divide(s: Step, a: str, b: str) -> str:
    """A variable: ``a / b`` towards zero; 0 where b is 0."""
    none = f"{b} == {s.c(0)}"
    if not is_signed(s.dtype):
        quotient = f"{a} // tl.where({none}, {s.c(1)}, {b})"
        return s.let(f"tl.where({none}, {s.c(0)}, {quotient})")
    opposite = f"{b} == {s.c(-1)}"  # the least integer divided by -1 is not one
    safe = f"tl.where(({none}) | ({opposite}), {s.c(1)}, {b})"
    quotient = f"tl.where({opposite}, {s.c(0)} - {a}, {a} // {safe})"
    return s.let(f"tl.where({none}, {s.c(0)}, {quotient})")


def _modulo(s: Step, a: str, b: str) -> str:
    """The remainder with the sign of a; 0 where b is 0."""
    return f"tl.where({b} == {s.c(0)}, {s.c(0)}, {a} - {divide(s, a, b)} * {b})"


def _floor_divide(s: Step, a: str, b: str) -> str:
    quotient = divide(s, a, b)
    if not is_signed(s.dtype):
        return quotient
    rest = s.let(f"{a} - {quotient} * {b}")
    lower = f"({b} != {s.c(0)}) & ({_crosses_zero(s, rest, b)})"
    return f"tl.where({lower}, {quotient} - {s.c(1)}, {quotient})"


def _floor_modulo(s: Step, a: str, b: str) -> str:
    rest = s.let(_modulo(s, a, b))
    if not is_signed(s.dtype):
        return rest
    return f"tl.where({_crosses_zero(s, rest, b)}, {rest} + {b}, {rest})"


def _crosses_zero(s: Step, rest: str, b: str) -> str:
    """Whether there is a remainder, and its sign differs from the divisor's."""
    return f"({rest} != {s.c(0)}) & (({rest} ^ {b}) < {s.c(0)})"


def _power(s: Step, a: str, b: str) -> str:
    """``a ** b`` modulo the width, by squaring; 0 where b is negative."""
    exponent = s.constants[1]
    if exponent is not None and 0 < exponent <= LONGEST_PRODUCT:
        return _constant_power(s, a, int(exponent))
    bits = 8 * s.dtype.size
    every = s.let(f"({a} ^ {a}) | ({b} ^ {b})")  # zeros of the common shape: loops keep shapes
    base = s.let(f"{a} | {every}")
    left = s.let(f"tl.where({b} < {s.c(0)}, {s.c(0)}, {b}) | {every}")
    result = s.let(f"{every} + {s.c(1)}")
    with s.k.block(f"for _ in range({bits}):"):
        s.k.line(
            f"{result} = tl.where(({left} & {s.c(1)}) != {s.c(0)}, {result} * {base}, {result})"
        )
        s.k.line(f"{base} = {base} * {base}")
        s.k.line(f"{left} = {left} >> {s.c(1)}")
    return f"tl.where({b} < {s.c(0)}, {s.c(0)}, {result})"


def _constant_power(s: Step, a: str, exponent: int) -> str:
    result = None
    while exponent:
        if exponent & 1:
            result = a if result is None else s.let(f"{result} * {a}")
        exponent >>= 1
        if exponent:
            a = s.let(f"{a} * {a}")
    assert result is not None
    return result


def _shift_left(s: Step, a: str, b: str) -> str:
    inside = s.let(f"({b} >= {s.c(0)}) & ({b} < {s.c(8 * s.dtype.size)})")
    return f"tl.where({inside}, {a} << tl.where({inside}, {b}, {s.c(0)}), {s.c(0)})"


def _shift_right(s: Step, a: str, b: str) -> str:
    width = 8 * s.dtype.size
    inside = s.let(f"({b} >= {s.c(0)}) & ({b} < {s.c(width)})")
    if is_signed(s.dtype):
        return f"{a} >> tl.where({inside}, {b}, {s.c(width - 1)})"
    return f"tl.where({inside}, {a} >> tl.where({inside}, {b}, {s.c(0)}), {s.c(0)})"


def _sign(s: Step, x: str) -> str:
    positive = f"tl.where({x} > {s.c(0)}, {s.c(1)}, {s.c(0)})"
    return f"tl.where({x} < {s.c(0)}, {s.c(-1)}, {positive})" if is_signed(s.dtype) else positive


def _clip(s: Step, x: str) -> str:
    least, most = limits(s.dtype)
    low = math.ceil(max(s.op.low, least)) if s.op.low > least else least
    high = math.floor(min(s.op.high, most)) if s.op.high < most else most
    return f"tl.minimum(tl.maximum({x}, {s.c(low)}), {s.c(high)})"


def _squared_difference(s: Step, a: str, b: str) -> str:
    difference = s.let(f"{a} - {b}")
    return f"{difference} * {difference}"


def _operator(operator: str) -> Callable[..., str]:
    return lambda s, a, b: f"{a} {operator} {b}"


RULES: dict[str, Callable[..., str]] = {
    "neg": lambda s, x: f"{s.c(0)} - {x}",
    "abs": lambda s, x: f"tl.where({x} < {s.c(0)}, {s.c(0)} - {x}, {x})",
    "sign": _sign,
    "square": lambda s, x: f"{x} * {x}",
    "relu": lambda s, x: f"tl.maximum({x}, {s.c(0)})" if is_signed(s.dtype) else x,
    "clip": _clip,
    "add": _operator("+"),
    "sub": _operator("-"),
    "mul": _operator("*"),
    "div": divide,
    "floor_div": _floor_divide,
    "floor_mod": _floor_modulo,
    "trunc_mod": _modulo,
    "pow": _power,
    "maximum": lambda s, a, b: f"tl.maximum({a}, {b})",
    "minimum": lambda s, a, b: f"tl.minimum({a}, {b})",
    "squared_difference": _squared_difference,
    "bitwise_not": lambda s, x: f"{x} ^ {s.c(-1 if is_signed(s.dtype) else limits(s.dtype)[1])}",
    "bitwise_and": _operator("&"),
    "bitwise_or": _operator("|"),
    "bitwise_xor": _operator("^"),
    "left_shift": _shift_left,
    "right_shift": _shift_right,
}
"""By the op's name: ``rule(step, *operands)`` gives an expression."""
