"""A random graph as data: what to build it from, so that it can be built again, cut and printed.

A `Recipe` is a list of entries (inputs, weights, applied ops) that refer to earlier ones by number.
Arrays of inputs are drawn from a seed of their own, so that they stay the same while a failing
graph is cut down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from planish.graph import Graph, TensorType
from planish.graph.graph import DimRange, Value
from planish.graph.types import DType
from planish.ops.base import Op

Symbols = Mapping[str, int]


@dataclass(frozen=True)
class Ref:
    """An output of an entry."""

    entry: int
    output: int = 0


@dataclass(frozen=True)
class Domain:
    """Which numbers an array holds: uniform between two limits, or (floats) normal."""

    low: float | None = None
    high: float | None = None

    def sample(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
        """An array of such numbers."""
        if dtype is DType.BOOL:
            return rng.integers(0, 2, shape).astype(bool)
        if dtype.is_integer:
            low = -9 if self.low is None else int(self.low)
            high = 9 if self.high is None else int(self.high)
            if dtype.value[0] == "u":
                low = max(low, 0)
            return rng.integers(low, high, shape, endpoint=True).astype(dtype.numpy)
        if self.low is None or self.high is None:
            return np.asarray(rng.standard_normal(shape)).astype(dtype.numpy)
        return np.asarray(rng.uniform(self.low, self.high, shape)).astype(dtype.numpy)


@dataclass(frozen=True)
class Source:
    """An input of the graph. `fixed` holds its arrays by the symbols' values, where it is a cut."""

    type: TensorType
    domain: Domain
    seed: int
    fixed: Mapping[tuple, np.ndarray] = field(default_factory=dict, compare=False)

    def sample(self, symbols: Symbols) -> np.ndarray:
        """The array for these sizes."""
        key = tuple(sorted(symbols.items()))
        if key in self.fixed:
            return self.fixed[key]
        rng = np.random.default_rng((self.seed, *(size for _, size in key)))
        return self.domain.sample(rng, self.type.bind(symbols), self.type.dtype)


@dataclass(frozen=True, eq=False)
class Weight:
    """A constant."""

    data: np.ndarray


@dataclass(frozen=True)
class Step:
    """An op applied to earlier values."""

    op: Op
    args: tuple[Ref, ...]


Entry = Source | Weight | Step


@dataclass(frozen=True)
class Recipe:
    """A graph as data.

    Attributes
    ----------
    entries : tuple of Entry
    outputs : tuple of Ref
    points : tuple of mapping
        Sizes of the symbolic dimensions to run it at, the usual ones first.
    """

    entries: tuple[Entry, ...]
    outputs: tuple[Ref, ...]
    points: tuple[Symbols, ...] = ({},)

    def build(self) -> tuple[Graph, dict[Ref, Value]]:
        """The graph, and its values by what they are here."""
        graph = Graph("fuzz")
        values: dict[Ref, Value] = {}
        for i, entry in enumerate(self.entries):
            if isinstance(entry, Source):
                values[Ref(i)] = graph.input(f"x{i}", entry.type)
            elif isinstance(entry, Weight):
                values[Ref(i)] = graph.constant(entry.data, f"w{i}")
            else:
                node = graph.add_node(entry.op, [values[a] for a in entry.args], name=f"n{i}")
                values.update({Ref(i, k): v for k, v in enumerate(node.outputs)})
        for ref in self.outputs:
            graph.mark_output(values[ref], f"y{ref.entry}_{ref.output}")
        for name, size in self.points[0].items():
            graph.ranges[name] = DimRange(1, size, 16)
        return graph, values

    def graph(self) -> Graph:
        """The graph."""
        return self.build()[0]

    def arrays(self, symbols: Symbols) -> dict[str, np.ndarray]:
        """Arrays for the graph's inputs, by name."""
        return {f"x{i}": e.sample(symbols) for i, e in self.sources()}

    def sources(self) -> Iterator[tuple[int, Source]]:
        """The inputs with their numbers."""
        return ((i, e) for i, e in enumerate(self.entries) if isinstance(e, Source))

    def steps(self) -> list[int]:
        """The numbers of the entries that apply ops."""
        return [i for i, e in enumerate(self.entries) if isinstance(e, Step)]

    def with_outputs(self, *outputs: Ref) -> Recipe:
        """The part of the graph that these outputs need."""
        return replace(self, outputs=outputs).trimmed()

    def with_source(self, entry: int, source: Source) -> Recipe:
        """The graph with an input in place of an op of one output."""
        entries = [*self.entries[:entry], source, *self.entries[entry + 1 :]]
        return replace(self, entries=tuple(entries)).trimmed()

    def trimmed(self) -> Recipe:
        """Without what no output needs; entries are numbered anew."""
        needed: set[int] = set()
        stack = [r.entry for r in self.outputs]
        while stack:
            i = stack.pop()
            if i not in needed:
                needed.add(i)
                entry = self.entries[i]
                stack += [a.entry for a in entry.args] if isinstance(entry, Step) else []
        number = {old: new for new, old in enumerate(sorted(needed))}

        def moved(ref: Ref) -> Ref:
            return Ref(number[ref.entry], ref.output)

        entries = [
            replace(e, args=tuple(map(moved, e.args))) if isinstance(e, Step) else e
            for e in (self.entries[i] for i in sorted(needed))
        ]
        return replace(self, entries=tuple(entries), outputs=tuple(map(moved, self.outputs)))
