"""How reductions combine elements in registers: sums, products, extremes, arg max, any and all.

A `Reducer` has a state of one register or two. It starts with `initial`, takes in vectors with
`step`, joins two states with `merge`, and gives the result with `finish`. `horizontal` joins the
lanes of one state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import llvmlite.ir as ir
import numpy as np

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I32, I64, register_type

REDUCTIONS = ("sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin")
_HALVES = (DType.FLOAT16, DType.BFLOAT16)
_UNSIGNED = (DType.UINT64, DType.UINT32, DType.UINT16, DType.UINT8)


def wide_dtype(reduction: str, dtype: DType) -> DType:
    """The dtype a reduction's state is kept in (and stored in between, if it is split)."""
    if dtype in _HALVES:
        return DType.FLOAT32
    if dtype is DType.BOOL:
        return DType.UINT8
    if reduction == "mean" and dtype.is_integer:
        return DType.INT64
    return dtype


def make_reducer(
    k: KernelBuilder, reduction: str, dtype: DType, lanes: int, *, select_last: bool = False
) -> Reducer:
    """The reducer of that name (of `REDUCTIONS`) for elements of a dtype in vectors of `lanes`."""
    if reduction in ("argmax", "argmin"):
        return _Arg(k, reduction, dtype, lanes, select_last)
    if reduction in ("max", "min"):
        return _Extreme(k, reduction, dtype, lanes)
    return _Arithmetic(k, reduction, dtype, lanes)


class Reducer(ABC):
    """Base class; `dtype` is that of the elements, `wide` that of the state."""

    def __init__(self, k: KernelBuilder, reduction: str, dtype: DType, lanes: int) -> None:
        self.k, self.b = k, k.b
        self.reduction, self.dtype, self.lanes = reduction, dtype, lanes
        self.wide = wide_dtype(reduction, dtype)

    @abstractmethod
    def initial(self) -> list[ir.Value]:
        """The state before any element."""

    @abstractmethod
    def step(
        self,
        state: Sequence[ir.Value],
        x: ir.Value,
        index: ir.Value | None = None,
        mask: ir.Value | None = None,
    ) -> list[ir.Value]:
        """The state after a vector of elements in register form, of those lanes in `mask`.

        `index` holds the elements' positions as int32, for arg max.
        """

    @abstractmethod
    def merge(self, a: Sequence[ir.Value], c: Sequence[ir.Value]) -> list[ir.Value]:
        """The state of the elements of two states."""

    @abstractmethod
    def finish(self, state: Sequence[ir.Value], count: ir.Value | None = None) -> ir.Value:
        """The result, in register form; `count` elements were reduced (for the mean)."""

    def single(self) -> Reducer:
        """The same reducer for scalars."""
        return make_reducer(self.k, self.reduction, self.dtype, 1)

    def horizontal(self, state: Sequence[ir.Value]) -> list[ir.Value]:
        """The state of all lanes together, as scalars."""
        lanes, values = self.lanes, list(state)
        while lanes > 1:
            lanes //= 2
            halves = []
            for start in (0, lanes):
                order = ir.Constant(
                    ir.VectorType(I32, lanes), [I32(start + lane) for lane in range(lanes)]
                )
                halves.append(
                    [
                        self.b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), order)
                        for v in values
                    ]
                )
            values = self._narrow(lanes).merge(*halves)
        if self.lanes > 1:
            values = [self.b.extract_element(v, I32(0)) for v in values]
        return values

    def _narrow(self, lanes: int) -> Reducer:
        return make_reducer(self.k, self.reduction, self.dtype, lanes)

    def _filled(self, value: float | int) -> ir.Value:
        return self.k.constant(value, self.wide, self.lanes)

    def _keep(self, mask: ir.Value | None, new: ir.Value, old: ir.Value) -> ir.Value:
        return new if mask is None else self.b.select(mask, new, old)

    def _widened(self, x: ir.Value) -> ir.Value:
        """An element in the state's dtype."""
        if self.dtype is DType.BOOL:
            return self.b.zext(x, register_type(self.wide, self.lanes))
        target = register_type(self.wide, self.lanes)
        if x.type == target:
            return x
        return (self.b.zext if self.dtype in _UNSIGNED else self.b.sext)(x, target)

    def _narrowed(self, value: ir.Value) -> ir.Value:
        """A value of the state's dtype as an element in register form."""
        target = register_type(self.dtype, self.lanes)
        if self.dtype is DType.BOOL:
            return self.b.icmp_unsigned("!=", value, ir.Constant(value.type, None))
        return value if value.type == target else self.b.trunc(value, target)


class _Arithmetic(Reducer):
    """Sum, mean, product, any, all."""

    def initial(self) -> list[ir.Value]:
        return [self._filled(1 if self.reduction in ("prod", "all") else 0)]

    def step(self, state, x, index=None, mask=None):
        return [self._keep(mask, self._combine(state[0], self._widened(x)), state[0])]

    def merge(self, a, c):
        return [self._combine(a[0], c[0])]

    def _combine(self, a: ir.Value, c: ir.Value) -> ir.Value:
        b = self.b
        if self.reduction in ("any", "all"):
            return b.or_(a, c) if self.reduction == "any" else b.and_(a, c)
        if self.reduction == "prod":
            return b.fmul(a, c) if self.wide.is_float else b.mul(a, c)
        return b.fadd(a, c) if self.wide.is_float else b.add(a, c)

    def finish(self, state, count=None):
        value = state[0]
        if self.reduction == "mean":
            assert count is not None
            if self.wide.is_float:
                divisor = self.b.sitofp(count, register_type(self.wide))
                return self.b.fdiv(value, self.k.splat(divisor, self.lanes))
            value = self.b.sdiv(value, self.k.splat(count, self.lanes))
        return self._narrowed(value)


class _Extreme(Reducer):
    """Maximum and minimum; NaN wins."""

    def initial(self) -> list[ir.Value]:
        return [self._filled(lowest(self.wide, self.reduction == "min"))]

    def step(self, state, x, index=None, mask=None):
        return [self._keep(mask, self._pick(state[0], self._widened(x)), state[0])]

    def merge(self, a, c):
        return [self._pick(a[0], c[0])]

    def finish(self, state, count=None):
        return self._narrowed(state[0])

    def _pick(self, a: ir.Value, c: ir.Value) -> ir.Value:
        b = self.b
        sign = ">" if self.reduction == "max" else "<"
        if not self.wide.is_float:
            compare = b.icmp_unsigned if self.wide in _UNSIGNED else b.icmp_signed
            return b.select(compare(sign, a, c), a, c)
        # an ordered comparison gives the second where either is NaN
        other = b.select(b.fcmp_ordered(sign, a, c), a, c)
        return b.select(b.fcmp_unordered("uno", a, a), a, other)


class _Arg(Reducer):
    """Position of the maximum or minimum: of the first or the last of equals. NaN wins.

    The state is the best element and its position.
    """

    def __init__(
        self, k: KernelBuilder, reduction: str, dtype: DType, lanes: int, select_last: bool
    ) -> None:
        super().__init__(k, reduction, dtype, lanes)
        self.last = select_last

    def initial(self) -> list[ir.Value]:
        best = self._filled(lowest(self.wide, self.reduction == "argmin"))
        return [best, self.k.zero(DType.INT32, self.lanes)]

    def step(self, state, x, index=None, mask=None):
        assert index is not None
        x = self._widened(x)
        better = self._better(x, state[0], or_equal=self.last)
        if mask is not None:
            better = self.b.and_(better, mask)
        return [self.b.select(better, x, state[0]), self.b.select(better, index, state[1])]

    def merge(self, a, c):
        b = self.b
        better = self._better(c[0], a[0], or_equal=False)
        worse = self._better(a[0], c[0], or_equal=False)
        nearer = b.icmp_signed(">" if self.last else "<", c[1], a[1])
        pick = b.or_(better, b.and_(b.not_(worse), nearer))
        return [b.select(pick, old, new) for old, new in zip(c, a, strict=True)]

    def _better(self, x: ir.Value, best: ir.Value, or_equal: bool) -> ir.Value:
        b = self.b
        sign = (">" if self.reduction == "argmax" else "<") + ("=" if or_equal else "")
        if not self.wide.is_float:
            compare = b.icmp_unsigned if self.wide in _UNSIGNED else b.icmp_signed
            return compare(sign, x, best)
        if or_equal:
            return b.or_(b.fcmp_ordered(sign, x, best), b.fcmp_unordered("uno", x, x))
        return b.and_(b.fcmp_unordered(sign, x, best), b.fcmp_ordered("ord", best, best))

    def finish(self, state, count=None):
        return self.b.zext(state[1], ir.VectorType(I64, self.lanes) if self.lanes > 1 else I64)

    def _narrow(self, lanes: int) -> Reducer:
        return _Arg(self.k, self.reduction, self.dtype, lanes, self.last)

    def single(self) -> Reducer:
        return self._narrow(1)


def lowest(dtype: DType, highest: bool = False) -> float | int:
    """What every element is at least (or at most)."""
    if dtype.is_float:
        return np.inf if highest else -np.inf
    limits = np.iinfo(dtype.numpy)
    return int(limits.max if highest else limits.min)
