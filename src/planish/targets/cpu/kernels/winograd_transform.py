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
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Transform:
    """The matrices of ``F(results, taps)`` along one dimension; of one tap, nothing is transformed.

    Attributes
    ----------
    results : int
        Results of a tile; 1 if there is one tap.
    taps : int
    """

    results: int
    taps: int

    @property
    def size(self) -> int:
        """Elements of a tile of the source, and products."""
        return self.results + self.taps - 1

    @cached_property
    def _points(self) -> tuple[Fraction, ...]:
        pairs = _PAIRS[self.size // 2 - 1]
        return (Fraction(0), *(sign * p for p in pairs for sign in (1, -1)))

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
        last = self.results - 1
        return tuple(
            (*(p**i for p in self._points), Fraction(i == last)) for i in range(self.results)
        )


def transform_filters(weights: np.ndarray, down: Transform, along: Transform) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` to ``[rows' x columns', C, K]``, float32.

    Computed in float64 and rounded once.
    """
    both = np.kron(*(np.array(t.filter, np.float64) for t in (down, along)))
    taps = weights.reshape(both.shape[1], -1)
    result = np.empty((len(both), taps.shape[1]), np.float32)
    for start in range(0, taps.shape[1], _PART):
        part = slice(start, start + _PART)
        result[:, part] = both @ taps[:, part]
    return result.reshape(-1, *weights.shape[2:])


def apply(k: KernelBuilder, matrix: Matrix, vectors: Sequence[ir.Value]) -> list[ir.Value]:
    """The matrix times a vector whose elements are registers.

    Where two columns, or two rows, differ in every second sign only, they share their sums and
    differences: half the arithmetic.
    """
    known: dict[tuple[Fraction, ...], ir.Value] = {}
    columns = [list(c) for c in zip(*matrix, strict=True)]
    vectors = list(vectors)
    for i, j in _mirrored(columns):
        plus = k.b.fadd(vectors[i], vectors[j])
        minus = k.b.fsub(vectors[i], vectors[j])
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
    if factor == 1:
        return vector if total is None else k.b.fadd(total, vector)
    if factor == -1 and total is not None:
        return k.b.fsub(total, vector)
    spread = k.constant(float(factor), F32, k.lanes)
    return k.b.fmul(spread, vector) if total is None else k.fma(spread, vector, total)


def _product(points: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """The coefficients of the polynomial with these roots, the constant one first."""
    result = [Fraction(1)]
    for p in points:
        shifted = [Fraction(0), *result]
        result = [a - p * b for a, b in zip(shifted, [*result, Fraction(0)], strict=True)]
    return tuple(result)
