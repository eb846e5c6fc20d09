"""Elementwise ops: each output element depends on the elements at the same place of the inputs.

Inputs broadcast as in NumPy. Most of these ops have no attribute and are made from the tables at
the end of this file; the kernel generators know them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.graph.dims import DimLike, bounds, dim_max, dim_min, floordiv, symbols
from planish.graph.graph import CONTENT_LIMIT, Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, broadcast_shapes, require


@dataclass(frozen=True)
class Elementwise(Op, abstract=True):
    """Base class: broadcasting inputs of one dtype to one output."""

    arity: ClassVar[int] = 1
    function: ClassVar[Callable[..., np.ndarray]]
    """Computes the op on NumPy arrays of equal dtype."""
    accepts: ClassVar[str] = "any"
    """Which dtypes: "any", "number" (no bool), "float", "integer", "bool"."""
    refuses_sizes: ClassVar[bool] = False
    result: ClassVar[DType | None] = None
    """The output's dtype; None: that of the inputs."""

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(
            len(inputs) == self.arity,
            f"{self.name} takes {self.arity} input(s) and was given {len(inputs)}",
        )
        dtype = self._operand_dtype(inputs)
        return [TensorType(broadcast_shapes(*(v.shape for v in inputs)), self.result or dtype)]

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        dtype = inputs[0].dtype
        require(
            all(v.dtype is dtype for v in inputs),
            f"{self.name} needs inputs of one dtype, not "
            f"{', '.join(v.dtype.value for v in inputs)}",
            cure="cast the inputs to one dtype",
        )
        accepted = {
            "any": True,
            "number": dtype is not DType.BOOL,
            "float": dtype.is_float,
            "integer": dtype.is_integer,
            "bool": dtype is DType.BOOL,
        }[self.accepts]
        require(accepted, f"{self.name} does not accept {dtype.value}")
        return dtype

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        function = CONTENT_FUNCTIONS.get(self.name)
        if function is None or any(v.content is None for v in inputs):
            return [None]
        arrays = np.broadcast_arrays(*(v.content for v in inputs if v.content is not None))
        if arrays[0].size > CONTENT_LIMIT:
            return [None]
        content = np.empty(arrays[0].shape, object)
        for index in np.ndindex(content.shape):
            result = function(*(a[index] for a in arrays))
            if result is None:
                return [None]
            content[index] = result
        return [content]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Halves are computed in float32 and rounded once; nothing warns about inf and nan."""
        dtype = DType.of(inputs[0].dtype)
        half = dtype in (DType.FLOAT16, DType.BFLOAT16)
        arrays = [a.astype(np.float32) if half and a.dtype != bool else a for a in inputs]
        with np.errstate(all="ignore"):
            output = np.asarray(self.compute(*arrays))
            return [output.astype((self.result or self._result_dtype(inputs)).numpy, copy=False)]

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return DType.of(inputs[0].dtype)

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        """The op on arrays of a dtype NumPy computes in."""
        return type(self).function(*inputs)


@dataclass(frozen=True)
class Cast(Elementwise):
    """Converts to another dtype: floats to integers truncate and saturate, to bool ``x != 0``."""

    to: DType

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) == 1, "cast takes one input")
        return [TensorType(inputs[0].shape, self.to)]

    def contents(self, *inputs: Value, types: Sequence[TensorType]) -> list[np.ndarray | None]:
        return [inputs[0].content if self.to.is_integer else None]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        with np.errstate(all="ignore"):
            if DType.of(x.dtype).is_float and self.to.is_integer:
                limits = np.iinfo(self.to.numpy)
                wide = np.nan_to_num(x.astype(np.float64), nan=0.0)
                inside = np.clip(np.trunc(wide), float(limits.min), float(limits.max))
                output = inside.astype(self.to.numpy)
                # the largest 64-bit integers are not doubles: saturate explicitly
                output = np.where(wide >= float(limits.max), self.to.numpy.type(limits.max), output)
                return [output]
            if x.dtype == np.float64 and self.to is DType.BFLOAT16:
                x = _rounded_to_odd(x)
            return [x.astype(self.to.numpy)]


def _rounded_to_odd(x: np.ndarray) -> np.ndarray:
    """Float64 as float32 whose last bit is set where it is inexact, so that rounding it once more
    rounds x once; some versions of ml_dtypes would round twice.

    Boldo & Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Transactions on Computers 57 (2008).
    """
    narrow = x.astype(np.float32)
    smaller = np.nextafter(narrow, np.float32(0))
    bits = np.where(np.abs(narrow) > np.abs(x), smaller, narrow).view(np.uint32)
    return np.where(narrow == x, bits, bits | 1).view(np.float32)


@dataclass(frozen=True)
class Select(Elementwise):
    """``condition ? a : b`` elementwise; the condition is bool."""

    arity: ClassVar[int] = 3

    def _operand_dtype(self, inputs: Sequence[Value]) -> DType:
        condition, a, b = inputs
        require(condition.dtype is DType.BOOL, "select needs a bool condition")
        require(a.dtype is b.dtype, "select needs two branches of one dtype")
        return a.dtype

    def _result_dtype(self, inputs: Sequence[np.ndarray]) -> DType:
        return DType.of(inputs[1].dtype)

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        return np.where(*inputs)


@dataclass(frozen=True)
class Clip(Elementwise):
    """``min(max(x, low), high)``; NaN stays NaN. ReLU6 is ``Clip(0, 6)``."""

    low: float
    high: float
    accepts: ClassVar[str] = "number"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        (x,) = inputs
        low, high = self.low, self.high
        if np.issubdtype(x.dtype, np.integer):
            limits = np.iinfo(x.dtype)
            low = math.ceil(max(low, limits.min)) if low > limits.min else limits.min
            high = math.floor(min(high, limits.max)) if high < limits.max else limits.max
        return np.minimum(np.maximum(x, x.dtype.type(low)), x.dtype.type(high))


@dataclass(frozen=True)
class LeakyRelu(Elementwise):
    """``x`` where ``x >= 0``, else ``alpha * x``."""

    alpha: float
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        (x,) = inputs
        return np.where(x >= 0, x, x * x.dtype.type(self.alpha))


@dataclass(frozen=True)
class Elu(Elementwise):
    """``x`` where ``x > 0``, else ``alpha * (exp(x) - 1)``."""

    alpha: float = 1.0
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        (x,) = inputs
        return np.where(x > 0, x, x.dtype.type(self.alpha) * np.expm1(np.minimum(x, 0)))


@dataclass(frozen=True)
class HardSigmoid(Elementwise):
    """``clip(alpha * x + beta, 0, 1)``."""

    alpha: float = 0.2
    beta: float = 0.5
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        (x,) = inputs
        kind = x.dtype.type
        return np.minimum(np.maximum(x * kind(self.alpha) + kind(self.beta), kind(0)), kind(1))


@dataclass(frozen=True)
class Gelu(Elementwise):
    """Gaussian error linear unit, exact (by erf) or by the tanh approximation.

    Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    """

    approximate: bool = False
    accepts: ClassVar[str] = "float"

    def compute(self, *inputs: np.ndarray) -> np.ndarray:
        (x,) = inputs
        kind = x.dtype.type
        if self.approximate:
            inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x * x * x)
            return kind(0.5) * x * (kind(1) + np.tanh(inner))
        return kind(0.5) * x * (kind(1) + _erf(x * kind(math.sqrt(0.5))))


# --------------------------------------------------------------------------------------------

_erf_of_float = np.vectorize(math.erf, otypes=[np.float64])


def _erf(x: np.ndarray) -> np.ndarray:
    return _erf_of_float(x).astype(x.dtype) if x.size else x


def _sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + z), z / (1 + z))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _selu(x: np.ndarray) -> np.ndarray:
    scale, alpha = x.dtype.type(1.0507009873554805), x.dtype.type(1.6732632423543772)
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """True division of floats; integers truncate towards zero, and x / 0 is 0."""
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    safe = np.where(b == 0, 1, b)
    quotient = a // safe
    inexact = (a % safe != 0) & ((a < 0) != (safe < 0))
    return np.where(b == 0, 0, quotient + inexact).astype(a.dtype)


def _floor_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer):
        return np.where(b == 0, 0, a // np.where(b == 0, 1, b)).astype(a.dtype)
    return np.floor(a / b)


def _floor_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Remainder with the sign of the divisor."""
    if np.issubdtype(a.dtype, np.integer):
        return np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b))).astype(a.dtype)
    return np.mod(a, b)


def _trunc_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Remainder with the sign of the dividend, as C's fmod."""
    if np.issubdtype(a.dtype, np.integer):
        return np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b))).astype(a.dtype)
    return np.fmod(a, b)


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if np.issubdtype(a.dtype, np.integer):
        return np.where(b < 0, 0, np.power(a, np.maximum(b, 0))).astype(a.dtype)
    return np.power(a, b)


def _prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x, x * slope)


def _sign(x: np.ndarray) -> np.ndarray:
    return np.sign(x)


# name: (function, accepted dtypes, dtype of the result or None)
_Row = tuple[Callable[..., np.ndarray], str, "DType | None"]

_UNARY: dict[str, _Row] = {
    "Neg": (np.negative, "number", None),
    "Abs": (np.abs, "number", None),
    "Sign": (_sign, "number", None),
    "Reciprocal": (lambda x: 1 / x, "float", None),
    "Square": (np.square, "number", None),
    "Sqrt": (np.sqrt, "float", None),
    "Rsqrt": (lambda x: 1 / np.sqrt(x), "float", None),
    "Exp": (np.exp, "float", None),
    "Expm1": (np.expm1, "float", None),
    "Log": (np.log, "float", None),
    "Log1p": (np.log1p, "float", None),
    "Sin": (np.sin, "float", None),
    "Cos": (np.cos, "float", None),
    "Tan": (np.tan, "float", None),
    "Asin": (np.arcsin, "float", None),
    "Acos": (np.arccos, "float", None),
    "Atan": (np.arctan, "float", None),
    "Sinh": (np.sinh, "float", None),
    "Cosh": (np.cosh, "float", None),
    "Tanh": (np.tanh, "float", None),
    "Asinh": (np.arcsinh, "float", None),
    "Acosh": (np.arccosh, "float", None),
    "Atanh": (np.arctanh, "float", None),
    "Erf": (_erf, "float", None),
    "Relu": (lambda x: np.maximum(x, x.dtype.type(0)), "number", None),
    "Sigmoid": (_sigmoid, "float", None),
    "Silu": (lambda x: x * _sigmoid(x), "float", None),
    "HardSwish": (
        lambda x: x * np.minimum(np.maximum(x + 3, 0), 6) / x.dtype.type(6),
        "float",
        None,
    ),
    "Mish": (lambda x: x * np.tanh(_softplus(x)), "float", None),
    "Softplus": (_softplus, "float", None),
    "Softsign": (lambda x: x / (1 + np.abs(x)), "float", None),
    "Selu": (_selu, "float", None),
    "Floor": (np.floor, "float", None),
    "Ceil": (np.ceil, "float", None),
    "Trunc": (np.trunc, "float", None),
    "Round": (np.rint, "float", None),  # halves to even
    "IsNan": (np.isnan, "float", DType.BOOL),
    "IsInf": (np.isinf, "float", DType.BOOL),
    "IsFinite": (np.isfinite, "float", DType.BOOL),
    "LogicalNot": (np.logical_not, "bool", None),
    "BitwiseNot": (np.invert, "integer", None),
}

_BINARY: dict[str, _Row] = {
    "Add": (np.add, "number", None),
    "Sub": (np.subtract, "number", None),
    "Mul": (np.multiply, "number", None),
    "Div": (_divide, "number", None),
    "FloorDiv": (_floor_divide, "number", None),
    "FloorMod": (_floor_mod, "number", None),
    "TruncMod": (_trunc_mod, "number", None),
    "Pow": (_power, "number", None),
    "Maximum": (np.maximum, "number", None),
    "Minimum": (np.minimum, "number", None),
    "SquaredDifference": (lambda a, b: np.square(a - b), "number", None),
    "Atan2": (np.arctan2, "float", None),
    "Prelu": (_prelu, "float", None),
    "Equal": (np.equal, "any", DType.BOOL),
    "NotEqual": (np.not_equal, "any", DType.BOOL),
    "Less": (np.less, "number", DType.BOOL),
    "LessEqual": (np.less_equal, "number", DType.BOOL),
    "Greater": (np.greater, "number", DType.BOOL),
    "GreaterEqual": (np.greater_equal, "number", DType.BOOL),
    "LogicalAnd": (np.logical_and, "bool", None),
    "LogicalOr": (np.logical_or, "bool", None),
    "LogicalXor": (np.logical_xor, "bool", None),
    "BitwiseAnd": (np.bitwise_and, "integer", None),
    "BitwiseOr": (np.bitwise_or, "integer", None),
    "BitwiseXor": (np.bitwise_xor, "integer", None),
    "LeftShift": (np.left_shift, "integer", None),
    "RightShift": (np.right_shift, "integer", None),
}


def _define(name: str, arity: int, row: _Row) -> type[Elementwise]:
    function, accepts, result = row
    namespace = {
        "__doc__": f"Elementwise {name}; inputs broadcast as in NumPy.",
        "__module__": __name__,
        "arity": arity,
        "function": staticmethod(function),
        "accepts": accepts,
        "result": result,
    }
    return type(name, (Elementwise,), namespace)  # without fields: what it inherits will do


class _Table:
    """The ops of the tables as attributes: ``ew.Add()``, ``ew.Relu()``."""

    def __init__(self) -> None:
        for rows, arity in ((_UNARY, 1), (_BINARY, 2)):
            for name, row in rows.items():
                kind = _define(name, arity, row)
                setattr(self, name, kind)
                globals()[name] = kind  # where pickle looks for it

    def __getattr__(self, name: str) -> type[Elementwise]:
        raise AttributeError(f"there is no elementwise op {name!r}")


ew = _Table()
"""All ops without attributes: ``ew.Add()(…)`` is written ``graph.add(ew.Add(), a, b)``."""


def _content_equal(a: DimLike, b: DimLike) -> bool | None:
    """Whether two dimensions are equal; None where that depends on the symbols."""
    if a == b:
        return True
    difference = a - b
    low, high = bounds(difference, dict.fromkeys(symbols(difference), (0, 2**62)))
    return False if low > 0 or high < 0 else None


def _content_div(a: DimLike, b: DimLike) -> DimLike | None:
    """A quotient, cut off towards 0; None where the divisor may be 0, or have both signs. A
    dividend that may have both is taken for not negative: a size.
    """
    if b == 0:
        return 0
    least, most = _ends(b, 1)
    if least <= 0 <= most:
        return None
    if most < 0:
        a, b = a * -1, b * -1
    return floordiv(a * -1, b) * -1 if _ends(a, 0)[1] <= 0 else floordiv(a, b)


def _ends(dim: DimLike, least: int) -> tuple[int, int]:
    """What a dimension is at least and at most, if no symbol is below `least`."""
    return bounds(dim, dict.fromkeys(symbols(dim), (least, 2**62)))


CONTENT_FUNCTIONS: dict[str, Callable[..., DimLike | bool | None]] = {
    "neg": lambda a: a * -1,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _content_div,
    "floor_div": lambda a, b: floordiv(a, b) if b != 0 else 0,
    "floor_mod": lambda a, b: a % b if b != 0 else 0,
    "maximum": dim_max,
    "minimum": dim_min,
    "equal": _content_equal,
    "select": lambda c, a, b: a if c else b,
}
"""How shape arithmetic is done on dimensions (see `Value.content`), by op."""
