"""The matrices of Winograd's minimal filtering, and the code that applies them.

``F(m, r)`` computes m results of a filter of r taps with m + r - 1 products instead of m * r: the
source and the filter are evaluated as polynomials at m + r - 2 points and at infinity (Toom and
Cook), multiplied there, and the result is interpolated. Lavin and Gray, "Fast algorithms for
convolutional neural networks" (2015), tile images with it.

Rounding errors grow with the size of the matrices' elements, which the points decide: Barabasz,
Anderson, Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution
for deep neural networks" (2018). Points here come as 0 and pairs +p, -p: both share most of their
arithmetic, and pairs whose squares multiply to about one keep the elements small. Measured at 256
channels of random data, largest error as a share of the largest result: a direct sum in float32
1.4e-6, F(2, 3) 0.6e-6, F(4, 3) 2.3e-6 (7.4e-6 with the usual 1 and 2), F(6, 3) 12e-6.

Integers need not be rounded at all. At the points 0, +-1 and +-2 the matrices of the source and of
the result are integers, and so is that of the filter times 24: the results are sums times 24 along
each axis, and right modulo 2^32, whatever overflows on the way. 24 is 8 times 3. 3 has an inverse
modulo 2^32, so that only 8 costs bits: three along each axis (`Transform.shift`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import llvmlite.ir as ir
import numpy as np

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder

F32 = DType.FLOAT32

Matrix = tuple[tuple[Fraction, ...], ...]

_PART = 1 << 14
"""So many filters are transformed at a time: float64 copies of all would be large."""

_HALF = Fraction(1, 2)
_PAIRS: dict[int, tuple[Fraction, ...]] = {
    1: (Fraction(1),),
    2: (Fraction(3, 4), Fraction(3, 2)),
    3: (_HALF, Fraction(1), Fraction(3, 2)),
}
"""The points p of the pairs +p, -p, by their number. One more point lies at 0, one at infinity."""
_INTEGERS: dict[int, tuple[Fraction, ...]] = {1: (Fraction(1),), 2: (Fraction(1), Fraction(2))}
"""The same where all is to be integers."""


@dataclass(frozen=True)
class Transform:
    """The matrices of ``F(results, taps)`` along one dimension; of one tap, nothing is transformed.

    Attributes
    ----------
    results : int
        Results of a tile; 1 if there is one tap.
    taps : int
    exact : bool
        Whether its matrices are of integers, and the results `scale` times as large.
    """

    results: int
    taps: int
    exact: bool = False

    @property
    def size(self) -> int:
        """Elements of a tile of the source, and products."""
        return self.results + self.taps - 1

    @cached_property
    def _points(self) -> tuple[Fraction, ...]:
        pairs = (_INTEGERS if self.exact else _PAIRS)[self.size // 2 - 1]
        return (Fraction(0), *(sign * p for p in pairs for sign in (1, -1)))

    @cached_property
    def scale(self) -> int:
        """By how much results are too large: what makes integers of the filter's matrix."""
        if not self.exact or self.taps == 1:
            return 1
        return math.lcm(*(a.denominator for row in self._filter for a in row))

    @property
    def shift(self) -> int:
        """How often 2 divides `scale`."""
        return (self.scale & -self.scale).bit_length() - 1

    @property
    def gain(self) -> Fraction:
        """How much larger filters may become: the most that a row of their matrix adds up."""
        return max(sum(map(abs, row), Fraction(0)) for row in self.filter)

    @property
    def _last(self) -> int:
        """The part of `scale` that is in the filter's matrix at infinity, where it would be larger
        than elsewhere; the rest is in that of the result.
        """
        return self.scale if self.scale % 2 else self.scale // 2

    @cached_property
    def source(self) -> Matrix:
        """``[size, size]``: a tile of the source to what is multiplied."""
        if self.taps == 1:
            return ((Fraction(1),),)
        points = self._points
        rows = [(*_product([q for q in points if q is not p]), Fraction(0)) for p in points]
        return (*rows, _product(points))

    @cached_property
    def filter(self) -> Matrix:
        """``[size, taps]``: the taps to what is multiplied."""
        *rows, last = self._filter
        whole = [tuple(a * self.scale for a in row) for row in rows]
        return (*whole, tuple(a * self._last for a in last))

    @cached_property
    def _filter(self) -> Matrix:
        """The same without `scale`."""
        if self.taps == 1:
            return ((Fraction(1),),)
        points = self._points
        rows = []
        for p in points:
            scale = Fraction(1)
            for q in points:
                scale *= p - q if q is not p else 1
            rows.append(tuple(p**i / scale for i in range(self.taps)))
        return (*rows, (*(Fraction(0),) * (self.taps - 1), Fraction(1)))

    @cached_property
    def result(self) -> Matrix:
        """``[results, size]``: products to results."""
        if self.taps == 1:
            return ((Fraction(1),),)
        last, rest = self.results - 1, self.scale // self._last
        return tuple(
            (*(p**i for p in self._points), Fraction(rest * (i == last)))
            for i in range(self.results)
        )


def transform_filters(
    weights: np.ndarray, down: Transform, along: Transform, dtype: type = np.float32
) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` to ``[rows' x columns', C, K]``.

    Computed in float64 and rounded once; integers by exact transforms are integers there.
    """
    both = np.kron(*(np.array(t.filter, np.float64) for t in (down, along)))
    taps = weights.reshape(both.shape[1], -1)
    result: np.ndarray = np.empty((len(both), taps.shape[1]), dtype)
    for start in range(0, taps.shape[1], _PART):
        part = slice(start, start + _PART)
        result[:, part] = both @ taps[:, part]
    return result.reshape(-1, *weights.shape[2:])


def divide(k: KernelBuilder, value: ir.Value, down: Transform, along: Transform) -> ir.Value:
    """A register of int32 of exact results, without the scale of both axes."""
    scale, shift = down.scale * along.scale, down.shift + along.shift
    lanes = value.type.count
    inverse = pow(scale >> shift, -1, 1 << 32)
    inverse -= (inverse >> 31) << 32  # as int32
    if inverse != 1:
        value = k.b.mul(value, k.constant(inverse, DType.INT32, lanes))
    return k.b.ashr(value, k.constant(shift, DType.INT32, lanes)) if shift else value


def apply(k: KernelBuilder, matrix: Matrix, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """The matrix times a vector whose elements are registers of float32, or of integers if it is of
    integers.

    Where two columns, or two rows, differ in every second sign only, they share their sums and
    differences: half the arithmetic.
    """
    known: dict[tuple[Fraction, ...], ir.Value] = {}
    columns = [list(c) for c in zip(*matrix, strict=True)]
    vectors = list(vectors)
    for i, j in _mirrored(columns):
        plus = _add(k, Fraction(1), vectors[j], vectors[i])
        minus = _add(k, Fraction(-1), vectors[j], vectors[i])
        vectors[i], vectors[j] = plus, minus
        pairs = list(zip(columns[i], columns[j], strict=True))
        columns[i] = [a if a == b else Fraction(0) for a, b in pairs]
        columns[j] = [a if a != b else Fraction(0) for a, b in pairs]
    rows = [tuple(r) for r in zip(*columns, strict=True)]
    for i, j in _mirrored(rows):
        even = [a if a == b else Fraction(0) for a, b in zip(rows[i], rows[j], strict=True)]
        odd = [a - b for a, b in zip(rows[i], even, strict=True)]
        scale = next((a for a in reversed(odd) if a), Fraction(1))
        base, other = _sum(k, even, vectors), _sum(k, [a / scale for a in odd], vectors)
        known[rows[i]] = _add(k, scale, other, base)
        known[rows[j]] = _add(k, -scale, other, base)
    return [known[r] if r in known else _sum(k, r, vectors) for r in rows]


def _mirrored(lines: Sequence[Sequence[Fraction]]) -> list[tuple[int, int]]:
    """Pairs of lines that differ in the signs of their even elements only, or of the odd ones."""
    pairs: list[tuple[int, int]] = []
    for i, line in enumerate(lines):
        flipped = [(-1) ** n * a for n, a in enumerate(line)]
        for j in range(i + 1, len(lines)):
            other = list(lines[j])
            if other != list(line) and other in (flipped, [-a for a in flipped]):
                pairs.append((i, j))
                break
    return pairs


def _sum(k: KernelBuilder, factors: Sequence[Fraction], vectors: Sequence[ir.Value]) -> ir.Value:
    total: ir.Value | None = None
    # factors of one first: they need no multiplication to start with
    order = sorted((n for n, a in enumerate(factors) if a), key=lambda n: factors[n] != 1)
    for n in order:
        total = _add(k, factors[n], vectors[n], total)
    assert total is not None
    return total


def _add(k: KernelBuilder, factor: Fraction, vector: ir.Value, total: ir.Value | None) -> ir.Value:
    """``total + factor * vector``."""
    if factor == 1 and total is None:
        return vector
    if isinstance(getattr(vector.type, "element", vector.type), ir.IntType):
        if abs(factor) != 1:
            vector = k.b.mul(_spread(int(abs(factor)), vector.type), vector)
        if total is None:
            return vector if factor > 0 else k.b.neg(vector)
        return (k.b.add if factor > 0 else k.b.sub)(total, vector)
    if factor == 1:
        return k.b.fadd(total, vector)
    if factor == -1 and total is not None:
        return k.b.fsub(total, vector)
    spread = k.constant(float(factor), F32, k.lanes)
    return k.b.fmul(spread, vector) if total is None else k.fma(spread, vector, total)


def _spread(value: int, kind: ir.Type) -> ir.Constant:
    """An integer in every lane of a register, or of one lane."""
    many = isinstance(kind, ir.VectorType)
    return ir.Constant(kind, [value] * kind.count if many else value)


def _product(points: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The coefficients of the polynomial with these roots, the constant one first."""
    result = [Fraction(1)]
    for p in points:
        shifted = [Fraction(0), *result]
        result = [a - p * b for a, b in zip(shifted, [*result, Fraction(0)], strict=True)]
    return tuple(result)
