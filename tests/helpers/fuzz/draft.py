"""A graph under construction: what the specs of ops choose their operands from.

Every value carries sample arrays, exact and with rounding errors (`rounding.py`), so that an op is
taken only where its result is finite, of moderate size and not drowned in rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.fuzz.recipe import Domain, Entry, Recipe, Ref, Source, Step, Symbols, Weight
from helpers.fuzz.rounding import Bounds, Noise
from planish.errors import PlanishError
from planish.graph import Graph, TensorType
from planish.graph.dims import Dim, DimLike, evaluate, symbol
from planish.graph.graph import Value
from planish.graph.interpret import bind
from planish.graph.types import DType
from planish.ops.base import Op

LARGEST = 12_000
"""Elements of a tensor."""

GREATEST = 1e4
"""Magnitude of a float; halves hold less."""

INFORMATIVE = 0.9
"""Least share of elements that rounding errors leave comparable."""

FLOATS = (DType.FLOAT32, DType.FLOAT64, DType.FLOAT16, DType.BFLOAT16)
INTEGERS = tuple(d for d in DType if d.is_integer)
NUMBERS = (*FLOATS, *INTEGERS)


class Skip(Exception):
    """An op cannot be applied to what there is."""


@dataclass
class _Known:
    value: Value
    exact: np.ndarray
    noisy: list[np.ndarray]


class Draft:
    """Grows a recipe, an op at a time.

    Parameters
    ----------
    seed : int
        Decides everything.
    dynamic : bool
        Whether dimensions may be symbolic.
    """

    def __init__(self, seed: int, dynamic: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self._seed = seed
        self._graph = Graph("draft")
        self.entries: list[Entry] = []
        self._known: dict[Ref, _Known] = {}
        self.focus: Ref | None = None
        """The value to pick next, where it fits."""
        self._read: set[Ref] = set()
        self._noise = [Noise(seed + k) for k in (1, 2)]
        self.symbols: Symbols = {"N": int(self.rng.integers(1, 5))} if dynamic else {}
        self.batch: DimLike = symbol("N") if dynamic else int(self.rng.integers(1, 4))

    # ---- chance ---------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        """An integer between the limits, both included."""
        return int(self.rng.integers(low, high, endpoint=True))

    def one_of(self, things: Sequence):
        if not things:
            raise Skip
        return things[int(self.rng.integers(len(things)))]

    def dtype(self, among: Sequence[DType]) -> DType:
        """float32 mostly, where it is among them."""
        if DType.FLOAT32 in among and self.chance(0.7):
            return DType.FLOAT32
        return self.one_of(among)

    # ---- looking --------------------------------------------------------------------------

    def value(self, ref: Ref) -> Value:
        return self._known[ref].value

    def array(self, ref: Ref) -> np.ndarray:
        """The sample of a value."""
        return self._known[ref].exact

    def size(self, dim: DimLike) -> int:
        """A dimension where the samples are."""
        return evaluate(dim, self.symbols)

    def refs(self, where: Callable[[Value], bool] = lambda v: True) -> list[Ref]:
        """The values that are no weights, oldest first."""
        return [r for r, k in self._known.items() if not k.value.is_constant and where(k.value)]

    # ---- operands -------------------------------------------------------------------------

    def pick(
        self,
        dtypes: Sequence[DType] = tuple(DType),
        ranks: tuple[int, int] = (0, 5),
        where: Callable[[Value], bool] = lambda v: True,
        shape: Sequence[DimLike] | None = None,
    ) -> Ref:
        """An existing value, the later the likelier; now and then, or if there is none, an input.

        `shape` is what such an input has; None: a new one by chance, which must fit `where`.
        """
        low, high = ranks
        focus = self.focus
        if focus in self._known and self.chance(0.8):
            assert focus is not None
            found = self.value(focus)
            if found.dtype in dtypes and low <= found.type.rank <= high and where(found):
                return focus
        fitting = self.refs(lambda v: v.dtype in dtypes and low <= v.type.rank <= high and where(v))
        if fitting and self.chance(0.95):
            return self._recent(fitting)
        if shape is None:
            rank = self.integer(max(low, 1), min(high, 4)) if high else 0
            shape = self.shape(rank)
        ref = self.input(shape, self.dtype(dtypes))
        if not where(self.value(ref)):
            raise Skip
        return ref

    def _recent(self, refs: list[Ref]) -> Ref:
        """One of them, the later the likelier; mostly one that nothing reads yet."""
        if self.chance(0.6):
            refs = [r for r in refs if r not in self._read] or refs
        return refs[-1 - min(int(self.rng.exponential(3.0)), len(refs) - 1)]

    def shape(self, rank: int) -> tuple[DimLike, ...]:
        """A shape of that rank, such as activations have: batch first, channels last."""
        channels = self.one_of([1, 2, 3, 4, 5, 8, 11, 16, 17, 19, 24, 33])
        if rank == 0:
            return ()
        if rank == 1:
            return (channels,)
        middle = [self.integer(1, 9) for _ in range(rank - 2)]
        return (self.batch, *middle, channels)

    def input(self, shape: Sequence[DimLike], dtype: DType, domain: Domain | None = None) -> Ref:
        """A new input of the graph."""
        type = TensorType(tuple(shape), dtype)
        source = Source(type, domain or Domain(), self.integer(0, 2**31))
        ref = Ref(len(self.entries))
        self.entries.append(source)
        value = self._graph.input(f"x{ref.entry}", type)
        self._remember(ref, value, source.sample(self.symbols))
        return ref

    def weight(
        self, shape: Sequence[int], dtype: DType, domain: Domain | None = None, scale: float = 1.0
    ) -> Ref:
        """A new constant."""
        data = (domain or Domain()).sample(self.rng, tuple(shape), dtype)
        if dtype.is_float:
            data = (data * scale).astype(dtype.numpy)
        return self.constant(data)

    def constant(self, data: np.ndarray) -> Ref:
        """A constant with that content."""
        ref = Ref(len(self.entries))
        self.entries.append(Weight(data))
        self._remember(ref, self._graph.constant(data, f"w{ref.entry}"), data)
        return ref

    def operand(self, shape: Sequence[DimLike], dtype: DType, domain: Domain | None = None) -> Ref:
        """A new constant of that shape, or an input."""
        static = [d for d in shape if isinstance(d, int)]
        if len(static) == len(shape) and self.chance(0.6):
            return self.weight(static, dtype, domain)
        return self.input(shape, dtype, domain)

    def beside(self, ref: Ref) -> Ref:
        """A value, weight or input that broadcasts with another one, of its dtype."""
        mine = self.value(ref)

        def fits(v: Value) -> bool:
            pairs = zip(reversed(v.shape), reversed(mine.shape), strict=False)
            return v.dtype is mine.dtype and all(a == b or 1 in (a, b) for a, b in pairs)

        others = [r for r in self.refs(fits) if r != ref or self.chance(0.1)]
        if others and self.chance(0.5):
            return self._recent(others)
        shape = [d if self.chance(0.7) else 1 for d in mine.shape]
        shape = shape[self.integer(0, len(shape)) if self.chance(0.4) else 0 :]
        if self.chance(0.3):
            shape = list(mine.shape[-1:])
        return self.operand(shape, mine.dtype)

    # ---- growing --------------------------------------------------------------------------

    def apply(self, op: Op, *args: Ref) -> bool:
        """Applies an op if it fits and its sample is fit for comparing; whether it did."""
        if any(a not in self._known for a in args):
            return False
        known = [self._known[a] for a in args]
        try:
            node = self._graph.add_node(op, [k.value for k in known])
        except PlanishError:
            return False
        types = [v.type for v in node.outputs]
        if any(self._too_large(t) for t in types):
            return False
        bound = bind(op, self.symbols)
        try:
            exact = bound.reference(*(k.exact for k in known))
            noisy = [
                noise.results(bound, [k.noisy[i] for k in known])
                for i, noise in enumerate(self._noise)
            ]
        except PlanishError:
            return False
        for i, array in enumerate(exact):
            if not _is_fit(array, [run[i] for run in noisy]):
                return False
        entry = len(self.entries)
        self.entries.append(Step(op, args))
        self._read.update(args)
        for i, value in enumerate(node.outputs):
            self._known[Ref(entry, i)] = _Known(value, exact[i], [run[i] for run in noisy])
        return True

    def applied(self, op: Op, *args: Ref) -> Ref:
        """The result of an op, which must fit."""
        if not self.apply(op, *args):
            raise Skip
        return Ref(len(self.entries) - 1)

    def forget(self, entries: int) -> None:
        """Drops what was added after so many entries."""
        del self.entries[entries:]
        for ref in [r for r in self._known if r.entry >= entries]:
            del self._known[ref]

    def recipe(self, outputs: Sequence[Ref]) -> Recipe:
        """What was drafted, as far as the outputs need it."""
        points: list[Symbols] = [self.symbols]
        if self.symbols:
            points.append({"N": self.symbols["N"] % 7 + self.integer(1, 3)})
        return Recipe(tuple(self.entries), tuple(outputs), tuple(points)).trimmed()

    def _too_large(self, type: TensorType) -> bool:
        largest = dict.fromkeys(self.symbols, 12)
        shape = type.bind(largest)
        return int(np.prod(shape)) > LARGEST or len(shape) > 6

    def _remember(self, ref: Ref, value: Value, array: np.ndarray) -> None:
        self._known[ref] = _Known(value, array, [n.on(None, array) for n in self._noise])


def _is_fit(exact: np.ndarray, noisy: list[np.ndarray]) -> bool:
    dtype = DType.of(exact.dtype)
    if dtype.is_float and exact.size:
        wide = exact.astype(np.float64)
        limit = 300.0 if dtype.size == 2 else GREATEST
        if not np.isfinite(wide).all() or np.abs(wide).max() > limit:
            return False
    return not exact.size or bool(Bounds(exact, noisy).compared.mean() >= INFORMATIVE)


def is_static(dim: DimLike) -> bool:
    """Whether a dimension is an integer."""
    return not isinstance(dim, Dim)
