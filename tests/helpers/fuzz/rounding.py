"""How far two right ways to compute a graph may differ: the references with rounding errors added.

Every op's result is changed by a few units in the last place, at random: relative to each element
for elementwise ops, relative to the largest element for ops that sum. What comes out several times
shows, element by element, how rounding spreads: through cancellation, through divisions by small
numbers, through comparisons that fall the other way, through products that leave the range of
floats on their way in one order and not in another. This is Monte Carlo arithmetic (D. S. Parker,
"Monte Carlo arithmetic: exploiting randomness in floating-point arithmetic", UCLA CSD-970002,
1997). Elements whose noisy results differ in kind (an index, a bool) carry no information and are
not compared; how many are is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from planish.graph.graph import Node, Value
from planish.graph.interpret import bind
from planish.graph.types import DType
from planish.ops.base import Op
from planish.ops.elementwise import Cast, Elementwise
from planish.ops.operands import widen
from planish.ops.reduce import ReduceProd

UNITS = 4.0
"""Noise in units in the last place: what the elementary functions are accurate to."""

FACTOR = 16.0
"""How much further than the noise showed a result may be off: noise is random, errors add up."""

EXACT = {
    *("neg", "abs", "sign", "relu", "floor", "ceil", "trunc", "round", "clip", "select"),
    *("maximum", "minimum", "reshape", "transpose", "broadcast_to", "slice", "pad", "concat"),
    *("tile", "identity", "gather", "gather_nd", "one_hot", "top_k", "max_pool", "reduce_max"),
    *("reduce_min", "shape_of", "dims", "combined_non_max_suppression", "non_max_suppression"),
    *("select_boxes", "non_zero", "unique", "max_pool_indices"),
}
"""Ops that only choose or move numbers."""

CANCELLING = {"gelu", "mish", "softplus", "hard_sigmoid", "hard_swish"}
"""Ops whose definition subtracts numbers of the size of 1: their errors do not get smaller."""

SATURATING = {"tanh", "sigmoid", "erf", *CANCELLING}
"""Ops that make much the same of large operands: equal results of other operands may differ."""

_EPSILON = {
    DType.FLOAT64: 2.0**-52,
    DType.FLOAT32: 2.0**-23,
    DType.FLOAT16: 2.0**-10,
    DType.BFLOAT16: 2.0**-7,
}


class Noise:
    """Rounding errors, the same for equal numbers in one elementwise op.

    Equal elements then stay equal, as they do in any implementation.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._cancels = seed % 2 == 0
        self._salt = np.uint64(self._rng.integers(1, 2**63, dtype=np.uint64) | np.uint64(1))

    def units(self, wide: np.ndarray) -> np.ndarray:
        """Numbers between -1 and 1 that depend on the elements alone."""
        bits = np.atleast_1d(np.ascontiguousarray(wide)).view(np.uint64) * self._salt
        bits = (bits ^ (bits >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1).reshape(wide.shape)

    def results(self, op: Op, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What an op, its sizes bound, makes of arrays that hold the noise already."""
        exact = [_small_first(op, *arrays)] if isinstance(op, ReduceProd) else op.reference(*arrays)
        told = arrays[0] if op.name in SATURATING else None
        return [self.on(op, a, told) for a in exact]

    def on(self, op: Op | None, array: np.ndarray, told: np.ndarray | None = None) -> np.ndarray:
        """A result with rounding errors; `op` is None for what the graph is given.

        The errors of an elementwise op are the same where `told`, else the result, is.
        """
        dtype = DType.of(array.dtype)
        if not dtype.is_float or (op is not None and op.name in EXACT) or not array.size:
            return array
        if isinstance(op, Cast) and dtype is DType.FLOAT64:
            return array
        wide = array.astype(np.float64)
        if op is None or isinstance(op, Elementwise):
            least = 1.0 if op is not None and op.name in CANCELLING else 0.0
            units = self.units(wide if told is None else told.astype(np.float64))
            error = units * np.maximum(np.abs(wide), least)
        else:
            finite = np.abs(wide[np.isfinite(wide)])
            largest = finite.max() if finite.size else 0.0
            error = self._rng.uniform(-1, 1, wide.shape) * largest
            if self._cancels:  # what is no larger than its error may be 0, which no error makes it
                wide = np.where(np.abs(wide) <= _EPSILON[dtype] * largest, 0.0, wide)
                error = np.where(wide == 0, 0.0, error)
        size = UNITS if dtype.size >= 4 else 1.0
        with np.errstate(all="ignore"):
            return (wide + size * _EPSILON[dtype] * error).astype(array.dtype)


def evaluate(
    nodes: Iterable[Node],
    known: dict[Value, np.ndarray],
    symbols: Mapping[str, int],
    noise: Noise | None = None,
) -> dict[Value, np.ndarray]:
    """Adds the results of nodes to the arrays that are known, which hold the noise already."""
    for node in nodes:
        op = bind(node.op, symbols)
        arrays = [_array(v, known, noise) for v in node.inputs]
        results = noise.results(op, arrays) if noise else op.reference(*arrays)
        known.update(zip(node.outputs, results, strict=True))
    return known


@np.errstate(all="ignore")
def _small_first(op: ReduceProd, x: np.ndarray) -> np.ndarray:
    """A product in an order that leaves the range of floats if any order does.

    That of all numbers below 1 times that of all others: no order has smaller or larger products
    on its way.
    """
    if DType.of(x.dtype).is_integer:
        return op.reference(x)[0]
    wide = widen(x)
    size = np.abs(wide)
    parts = (np.minimum(size, 1), np.maximum(size, 1), np.where(wide < 0, -1, 1))
    small, large, sign = (op.reference(part.astype(wide.dtype))[0] for part in parts)
    return (small * large * sign).astype(x.dtype)


def _array(value: Value, known: dict[Value, np.ndarray], noise: Noise | None) -> np.ndarray:
    if value not in known:
        assert value.data is not None
        known[value] = noise.on(None, value.data) if noise else value.data
    return known[value]


class Bounds:
    """What a result must be, and how far it may be off, element by element.

    Parameters
    ----------
    exact : np.ndarray
        The result by the references.
    noisy : list of np.ndarray
        The same with noise.

    Attributes
    ----------
    compared : np.ndarray
        bool; elements that say something.
    """

    def __init__(self, exact: np.ndarray, noisy: list[np.ndarray]) -> None:
        self.exact = exact
        self._dtype = DType.of(exact.dtype)
        if not self._dtype.is_float:
            self.compared = np.ones(exact.shape, bool)
            for other in noisy:
                self.compared &= other == exact
            return
        wide = exact.astype(np.float64)
        with np.errstate(all="ignore"):
            apart = np.stack([np.abs(o.astype(np.float64) - wide) for o in noisy])
            same = (np.stack([o.astype(np.float64) for o in noisy]) == wide) | np.isnan(wide)
        apart = np.where(same, 0.0, apart)
        spread = apart.max(0)
        finite = np.abs(wide[np.isfinite(wide)])
        scale = float(finite.max()) if finite.size else 0.0
        self._scale = scale
        self.compared = np.isfinite(spread) & (spread <= 0.02 * max(scale, 1e-30))
        kinds = [np.isnan(o.astype(np.float64)) == np.isnan(wide) for o in noisy]
        self.compared &= np.logical_and.reduce(kinds)
        usual = float(np.median(spread[self.compared])) if self.compared.any() else 0.0
        rounding = _EPSILON[self._dtype] * np.abs(np.where(np.isfinite(wide), wide, 0))
        least = float(np.finfo(np.float32).tiny) if self._dtype.size <= 4 else 1e-300
        if self._dtype is DType.FLOAT16:
            least = 2.0**-24
        self._limit = FACTOR * (spread + usual + rounding) + least

    def difference(self, got: np.ndarray, slack: float = 0.0, least: float = 0.0) -> str:
        """What is wrong with a result; empty if nothing is.

        `slack` is a share of the largest element that it may be off by besides, `least` what any
        element may.
        """
        if got.shape != self.exact.shape or got.dtype != self.exact.dtype:
            return f"{got.dtype}{got.shape} instead of {self.exact.dtype}{self.exact.shape}"
        if not self._dtype.is_float:
            bad = (got != self.exact) & self.compared
        else:
            a, b = got.astype(np.float64), self.exact.astype(np.float64)
            with np.errstate(all="ignore"):
                near = (
                    (np.abs(a - b) <= self._limit + slack * self._scale + least)
                    | (a == b)
                    | (np.isnan(a) & np.isnan(b))
                )
            bad = ~near & self.compared
        if not bad.any():
            return ""
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        limit = f", may be off by {self._limit[where]:.3g}" if self._dtype.is_float else ""
        return (
            f"{int(bad.sum())} of {bad.size} elements, first {where}: {got[where]} instead of "
            f"{self.exact[where]}{limit}"
        )
