"""Elementwise expressions as instructions on registers: what every kernel's epilogue calls.

`emit` walks an `Expression` and emits each op for its operands' dtype. The results agree with the
NumPy references in ``ops/elementwise.py``: NaN goes through, integers wrap, divisions by zero and
shifts are defined and never trap.

Half-precision values are float32 in registers. Between two ops of an expression they are not
rounded to halves, which is more exact than the references; but before an op that jumps (a
comparison, ``floor``, a cast to integers) they are, so that it decides as if the halves had been
stored. What a network gives as float32 is not rounded to halves before, either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.ops.elementwise import (
    Clip,
    Elementwise,
    Elu,
    Gelu,
    HardSigmoid,
    LeakyRelu,
)
from planish.targets.cpu.codegen import integers, quantization, trigonometry
from planish.targets.cpu.codegen import math as functions
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast, round_half
from planish.targets.cpu.codegen.floats import Floats

_HALVES = (DType.FLOAT16, DType.BFLOAT16)
_JUMPS = {
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("floor", "ceil", "trunc", "round", "floor_div", "floor_mod", "trunc_mod"),
    *("is_inf", "is_finite", "cast", "snap_to_levels"),
}
_KEEPS_ROUNDED = {
    *("neg", "abs", "sign", "relu", "maximum", "minimum", "select"),
    *("floor", "ceil", "trunc", "round", "cast"),
}


def emit(
    k: KernelBuilder,
    expression: Expression,
    leaves: Sequence[ir.Value | None],
    lanes: int,
    computed: Collection[int] = (),
) -> list[ir.Value]:
    """The results of an expression, in registers.

    Parameters
    ----------
    k : KernelBuilder
        Where to emit. Some ops (powers and remainders) start new blocks.
    expression : Expression
    leaves : sequence
        A register per leaf, in the register form of its dtype (`KernelBuilder.load`). Constant
        leaves are made here, and may be None.
    lanes : int
        Elements per register; 1 means scalars.
    computed : collection of int
        Leaves that come from a kernel's sums: halves among them are not rounded yet.
    """
    slots: list[ir.Value] = []
    for leaf, value in zip(expression.leaves, leaves, strict=True):
        if leaf.constant is not None:
            value = k.constant(leaf.constant, leaf.dtype, lanes)
        assert value is not None
        slots.append(value)
    rounded = [i not in computed for i in range(len(slots))]
    for step in expression.instructions:
        name = step.op.name
        widens = name == "cast" and step.dtype in (DType.FLOAT32, DType.FLOAT64)
        if name in _JUMPS and not widens:
            for slot in step.args:
                if not rounded[slot] and expression.dtype(slot) in _HALVES:
                    slots[slot] = round_half(k, slots[slot], expression.dtype(slot), lanes)
                    rounded[slot] = True
        arguments = [slots[i] for i in step.args]
        source = expression.dtype(step.args[-1])
        if name == "cast":
            slots.append(cast(k, arguments[0], source, step.dtype, lanes))
        elif name in quantization.RULES:
            dtypes = [expression.dtype(i) for i in step.args]
            slots.append(quantization.RULES[name](k, step.op, dtypes, lanes, *arguments))
        else:
            slots.append(_Emitter(k, step.op, source, lanes).run(arguments))
        rounded.append(name in _KEEPS_ROUNDED and all(rounded[i] for i in step.args))
    return [slots[i] for i in expression.results]


class _Emitter:
    """One op for one dtype of operands."""

    def __init__(self, k: KernelBuilder, op: Elementwise, dtype: DType, lanes: int) -> None:
        self.k, self.b, self.op, self.dtype, self.lanes = k, k.b, op, dtype, lanes
        self.f = Floats(k, dtype, lanes)
        """Valid only for float operands."""

    def run(self, arguments: Sequence[ir.Value]) -> ir.Value:
        name = self.op.name
        if self.dtype.is_float and name in _FLOAT:
            return _FLOAT[name](self, *arguments)
        if name in _LOGICAL:
            return _LOGICAL[name](self, *arguments)
        return _INTEGER[name](self, *arguments)

    @property
    def is_rough(self) -> bool:
        """Whether results are bfloat16 and AVX-512 makes less exact ones cheap."""
        return self.dtype is DType.BFLOAT16 and self.f.is_wide

    def constant(self, value: float) -> ir.Constant:
        return self.k.constant(value, self.dtype, self.lanes)

    @property
    def signed(self) -> bool:
        return self.dtype.value[0] == "i"


# ---- floats --------------------------------------------------------------------------------


def _never_nan(value: ir.Value) -> bool:
    if not isinstance(value, ir.Constant):
        return False
    element = value.constant
    if isinstance(element, list | tuple):
        element = element[0].constant
    return element is None or element == element


def _extremum(pick: Callable[[Floats, ir.Value, ir.Value], ir.Value]):
    """The larger or smaller of two floats, NaN if either is.

    x86 gives the second operand where either is NaN: with a constant in the first place, one
    instruction does it.
    """

    def emit_extremum(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        if _never_nan(b):
            a, b = b, a
        best = pick(e.f, a, b)
        return best if _never_nan(a) else e.f.select(e.f.is_nan(a), a, best)

    return emit_extremum


_maximum = _extremum(Floats.max)
_minimum = _extremum(Floats.min)


def _between(e: _Emitter, x: ir.Value, low: float, high: float) -> ir.Value:
    if low > -math.inf:
        x = e.f.max(e.f.c(low), x)
    return e.f.min(e.f.c(high), x) if high < math.inf else x


def _clip(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, Clip)
    return _between(e, x, e.op.low, e.op.high)


def _sign(e: _Emitter, x: ir.Value) -> ir.Value:
    zero, one = e.f.c(0.0), e.f.c(1.0)
    below = e.f.select(e.f.lt(x, zero), e.f.c(-1.0), x)  # NaN stays
    signed = e.f.select(e.f.gt(x, zero), one, below)
    return e.f.select(e.f.eq(x, zero), zero, signed)


def _reciprocal(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.div(e.f.c(1.0), x)


def _rsqrt(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.div(e.f.c(1.0), e.f.sqrt(x))


def _squared_difference(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    difference = e.f.sub(a, b)
    return e.f.mul(difference, difference)


def _leaky_relu(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, LeakyRelu)
    scaled = e.f.mul(x, e.f.c(e.op.alpha))
    if 0 < e.op.alpha <= 1:
        return e.f.max(scaled, x)
    return e.f.select(e.f.ge(x, e.f.c(0.0)), x, scaled)


def _prelu(e: _Emitter, x: ir.Value, slope: ir.Value) -> ir.Value:
    return e.f.select(e.f.ge(x, e.f.c(0.0)), x, e.f.mul(x, slope))


def _exponential_unit(e: _Emitter, x: ir.Value, alpha: float) -> ir.Value:
    below = e.f.mul(e.f.c(alpha), functions.expm1(e.f, e.f.min(e.f.c(0.0), x)))
    return e.f.select(e.f.gt(x, e.f.c(0.0)), x, below)


def _elu(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, Elu)
    return _exponential_unit(e, x, e.op.alpha)


def _selu(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.mul(e.f.c(1.0507009873554805), _exponential_unit(e, x, 1.6732632423543772))


def _hard_sigmoid(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, HardSigmoid)
    return _between(e, e.f.fma(x, e.f.c(e.op.alpha), e.f.c(e.op.beta)), 0.0, 1.0)


def _hard_swish(e: _Emitter, x: ir.Value) -> ir.Value:
    gate = _between(e, e.f.add(x, e.f.c(3.0)), 0.0, 6.0)
    return e.f.mul(x, e.f.mul(gate, e.f.c(1 / 6)))


def _gelu(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, Gelu)
    if e.is_rough and not e.op.approximate:
        return functions.rough_gelu(e.f, x)
    if e.f.dtype is DType.FLOAT32 and not e.op.approximate:
        return functions.gelu(e.f, x)
    f, half = e.f, e.f.mul(e.f.c(0.5), x)
    if e.op.approximate:
        cubic = f.fma(f.mul(f.c(0.044715), f.mul(x, x)), x, x)
        if e.is_rough:  # (1 + tanh(x)) / 2 is sigmoid(2 x)
            twice = f.mul(f.c(2 * math.sqrt(2 / math.pi)), cubic)
            return f.mul(x, functions.rough_sigmoid(f, twice))
        inner = functions.tanh(f, f.mul(f.c(math.sqrt(2 / math.pi)), cubic))
    else:
        inner = functions.erf(f, f.mul(x, f.c(math.sqrt(0.5))))
    return f.fma(half, inner, half)


def _sigmoid(e: _Emitter, x: ir.Value) -> ir.Value:
    if e.is_rough:
        return functions.rough_sigmoid(e.f, x)
    return functions.sigmoid(e.f, x)


def _silu(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.mul(x, _sigmoid(e, x))


def _softplus(e: _Emitter, x: ir.Value) -> ir.Value:
    tail = functions.log1p(e.f, functions.exp(e.f, e.f.neg(e.f.abs(x))))
    return e.f.add(e.f.max(e.f.c(0.0), x), tail)


def _mish(e: _Emitter, x: ir.Value) -> ir.Value:
    """``tanh(log(1 + y)) = n / (n + 2)`` where ``y = exp(x)``, ``n = y * (y + 2)``."""
    f = e.f
    y = functions.exp(f, f.min(f.c(40.0), x))
    n = f.mul(y, f.add(y, f.c(2.0)))
    return f.mul(x, f.div(n, f.add(n, f.c(2.0))))


def _softsign(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.div(x, e.f.add(e.f.c(1.0), e.f.abs(x)))


def _power(e: _Emitter, x: ir.Value, y: ir.Value) -> ir.Value:
    """Powers by a constant that a multiplication or two can do are done by them."""
    f, exponent = e.f, _splat_of(y)
    if exponent == 2.0:
        return f.mul(x, x)
    if exponent == 1.0:
        return x
    if exponent == 3.0:
        return f.mul(f.mul(x, x), x)
    if exponent == -1.0:
        return f.div(f.c(1.0), x)
    if exponent == 0.5:  # unlike the square root, +0 for -0 and inf for -inf
        root = f.sqrt(f.add(x, f.c(0.0)))
        return f.select(f.eq(x, f.c(-math.inf)), f.c(math.inf), root)
    return functions.pow(f, x, y)


def _splat_of(value: ir.Value) -> float | None:
    if not isinstance(value, ir.Constant):
        return None
    element = value.constant
    if isinstance(element, list | tuple):
        return element[0].constant
    return 0.0 if element is None else element


def _rounding(name: str):
    return lambda e, x: e.k.intrinsic(name, x)


def _method(method: Callable[..., ir.Value]):
    return lambda e, *arguments: method(e.f, *arguments)


def _is_inf(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.eq(e.f.abs(x), e.f.c(math.inf))


def _is_finite(e: _Emitter, x: ir.Value) -> ir.Value:
    return e.f.lt(e.f.abs(x), e.f.c(math.inf))


def _floor_div(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    return e.k.intrinsic("floor", e.f.div(a, b))


def _floor_mod(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    f, zero = e.f, e.f.c(0.0)
    rest = functions.fmod(f, a, b)
    differ = f.b.icmp_signed("<", f.b.xor(f.bits(rest), f.bits(b)), f.i(0))
    shifted = f.select(differ, f.add(rest, b), rest)
    return f.select(f.eq(rest, zero), f.copysign(zero, b), shifted)


_Rule = Callable[..., ir.Value]

_FLOAT: dict[str, _Rule] = {
    "neg": _method(Floats.neg),
    "abs": _method(Floats.abs),
    "sign": _sign,
    "reciprocal": _reciprocal,
    "square": lambda e, x: e.f.mul(x, x),
    "sqrt": _method(Floats.sqrt),
    "rsqrt": _rsqrt,
    "exp": _method(functions.exp),
    "expm1": _method(functions.expm1),
    "log": _method(functions.log),
    "log1p": _method(functions.log1p),
    "sin": _method(trigonometry.sin),
    "cos": _method(trigonometry.cos),
    "tan": _method(trigonometry.tan),
    "asin": _method(trigonometry.asin),
    "acos": _method(trigonometry.acos),
    "atan": _method(trigonometry.atan),
    "sinh": _method(functions.sinh),
    "cosh": _method(functions.cosh),
    "tanh": _method(functions.tanh),
    "asinh": _method(functions.asinh),
    "acosh": _method(functions.acosh),
    "atanh": _method(functions.atanh),
    "erf": _method(functions.erf),
    "relu": lambda e, x: e.f.max(e.f.c(0.0), x),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "hard_swish": _hard_swish,
    "mish": _mish,
    "softplus": _softplus,
    "softsign": _softsign,
    "selu": _selu,
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "trunc": _rounding("trunc"),
    "round": _rounding("rint"),
    "is_nan": _method(Floats.is_nan),
    "is_inf": _is_inf,
    "is_finite": _is_finite,
    "add": _method(Floats.add),
    "sub": _method(Floats.sub),
    "mul": _method(Floats.mul),
    "div": _method(Floats.div),
    "exact_div": _method(Floats.div),
    "floor_div": _floor_div,
    "floor_mod": _floor_mod,
    "trunc_mod": _method(functions.fmod),
    "pow": _power,
    "maximum": _maximum,
    "minimum": _minimum,
    "squared_difference": _squared_difference,
    "atan2": _method(trigonometry.atan2),
    "prelu": _prelu,
    "equal": _method(Floats.eq),
    "not_equal": _method(Floats.ne),
    "less": _method(Floats.lt),
    "less_equal": _method(Floats.le),
    "greater": _method(Floats.gt),
    "greater_equal": _method(Floats.ge),
    "clip": _clip,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "hard_sigmoid": _hard_sigmoid,
    "gelu": _gelu,
}

# ---- any dtype, and bool -------------------------------------------------------------------

_LOGICAL: dict[str, _Rule] = {
    "select": lambda e, condition, yes, no: e.b.select(condition, yes, no),
    "logical_not": lambda e, x: e.b.not_(x),
    "logical_and": lambda e, a, b: e.b.and_(a, b),
    "logical_or": lambda e, a, b: e.b.or_(a, b),
    "logical_xor": lambda e, a, b: e.b.xor(a, b),
}

# ---- integers (and equality of bools) ------------------------------------------------------


def _compare(operator: str):
    def emit_compare(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
        compare = e.b.icmp_signed if e.signed else e.b.icmp_unsigned
        return compare(operator, a, b)

    return emit_compare


def _pick(operator: str):
    compare = _compare(operator)
    return lambda e, a, b: e.b.select(compare(e, a, b), a, b)


def _integer_sign(e: _Emitter, x: ir.Value) -> ir.Value:
    zero, one = e.constant(0), e.constant(1)
    positive = e.b.select(e.b.icmp_unsigned("!=", x, zero), one, zero)
    if not e.signed:
        return positive
    return e.b.select(e.b.icmp_signed("<", x, zero), e.constant(-1), positive)


def _integer_abs(e: _Emitter, x: ir.Value) -> ir.Value:
    if not e.signed:
        return x
    return e.b.select(e.b.icmp_signed("<", x, e.constant(0)), e.b.neg(x), x)


def _integer_relu(e: _Emitter, x: ir.Value) -> ir.Value:
    return _pick(">")(e, x, e.constant(0)) if e.signed else x


def _integer_clip(e: _Emitter, x: ir.Value) -> ir.Value:
    assert isinstance(e.op, Clip)
    least, most = integers.limits(e.dtype)
    low = math.ceil(max(e.op.low, least)) if e.op.low > least else least
    high = math.floor(min(e.op.high, most)) if e.op.high < most else most
    return _pick("<")(e, _pick(">")(e, x, e.constant(low)), e.constant(high))


def _integer_difference(e: _Emitter, a: ir.Value, b: ir.Value) -> ir.Value:
    difference = e.b.sub(a, b)
    return e.b.mul(difference, difference)


def _integer(rule: Callable[..., ir.Value]):
    return lambda e, *arguments: rule(e.k, e.dtype, e.lanes, *arguments)


_INTEGER: dict[str, _Rule] = {
    "neg": lambda e, x: e.b.neg(x),
    "abs": _integer_abs,
    "sign": _integer_sign,
    "square": lambda e, x: e.b.mul(x, x),
    "relu": _integer_relu,
    "clip": _integer_clip,
    "add": lambda e, a, b: e.b.add(a, b),
    "sub": lambda e, a, b: e.b.sub(a, b),
    "mul": lambda e, a, b: e.b.mul(a, b),
    "div": _integer(integers.divide),
    "floor_div": _integer(integers.floor_divide),
    "floor_mod": _integer(integers.floor_modulo),
    "trunc_mod": _integer(integers.modulo),
    "pow": _integer(integers.power),
    "maximum": _pick(">"),
    "minimum": _pick("<"),
    "squared_difference": _integer_difference,
    "equal": _compare("=="),
    "not_equal": _compare("!="),
    "less": _compare("<"),
    "less_equal": _compare("<="),
    "greater": _compare(">"),
    "greater_equal": _compare(">="),
    "bitwise_not": lambda e, x: e.b.not_(x),
    "bitwise_and": lambda e, a, b: e.b.and_(a, b),
    "bitwise_or": lambda e, a, b: e.b.or_(a, b),
    "bitwise_xor": lambda e, a, b: e.b.xor(a, b),
    "left_shift": _integer(integers.shift_left),
    "right_shift": _integer(integers.shift_right),
}
