"""Runs a network and shows its inner tensors: an engine of which they are outputs.

The outputs of one run stay below a limit of memory. Where batches are independent rows, a batch is
run in smaller ones; elsewhere the tensors are divided among several engines, each of which runs the
whole network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np

from planish.graph.dims import DimLike, evaluate
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph, Value
from planish.graph.types import DType
from planish.ops import Concat
from planish.ops.row_wise import is_row_wise
from planish.precision.kinds import Kind, kind_of
from planish.runtime.context import ExecutionContext
from planish.runtime.engine import Engine
from planish.targets.devices import find_target

MOST_BYTES = 256 << 20
"""Memory of the tensors that one run shows."""

_KINDS = (Kind.PRODUCT, Kind.WINDOW, Kind.POINT)


def quantizable(graph: Graph) -> list[Value]:
    """The values that may be quantized, in the order in which they are computed.

    They are the float32 inputs and outputs of products, convolutions, pooling, concatenations, and
    elementwise work; constants are left out.
    """
    wanted: set[Value] = set()
    for node in graph.nodes:
        if kind_of(node) in _KINDS or isinstance(node.op, Concat):
            wanted.update(v for v in (*node.inputs, *node.outputs) if v.dtype is DType.FLOAT32)
    return [value for value in graph.values() if value in wanted and not value.is_constant]


class Observer:
    """Shows values of a graph for batches of inputs. A context manager.

    Parameters
    ----------
    graph : Graph
        An optimised float32 graph; it is not changed.
    values : sequence of Value
        Which to show; no constants.
    device : str
    threads : int, optional
        None: all cores.
    """

    def __init__(
        self, graph: Graph, values: Sequence[Value], device: str, threads: int | None = None
    ) -> None:
        self._graph, self._device, self._threads = graph, device, threads
        self._unlimited, _ = duplicate(graph)
        self._unlimited.ranges = {}  # a batch of more rows than the profile allows is divided
        self._given = [v for v in values if v in set(graph.inputs)]
        self._inner = [v for v in values if v not in set(graph.inputs)]
        self._rows = independent_rows(graph)
        self._parts: list[_Part] = []
        self._exit = ExitStack()

    def __enter__(self) -> Observer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def run(self, batch: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Arrays by the names of values; all the values together, perhaps in several portions.

        Arrays are valid until the next portion is asked for.

        Raises
        ------
        ShapeError
            The inputs disagree about a dimension, or one is outside the profile.
        """
        yield {v.name: batch[v.name] for v in self._given}
        symbols = self._unlimited.bindings({name: a.shape for name, a in batch.items()})
        sizes = {v: self._bytes(v, symbols) for v in self._inner}
        portions = [batch]
        if self._rows:
            rows = symbols[self._rows]
            step = min(rows * MOST_BYTES // max(sum(sizes.values()), 1), rows)
            if self._rows in self._graph.ranges:
                step = min(step, self._graph.ranges[self._rows].max)
            step = max(step, 1)
            portions = [
                {name: a[at : at + step] for name, a in batch.items()}
                for at in range(0, rows, step)
            ]
            sizes = {v: size * step // rows for v, size in sizes.items()}
        if not self._parts:
            self._build(sizes)
        for portion in portions:
            for part in self._parts:
                shown = part.run(portion)
                yield shown
                if len(self._parts) > 1:  # memory for the values of one part at a time
                    shown.clear()
                    part.forget()

    def _bytes(self, value: Value, symbols: Mapping[str, int]) -> int:
        known = {
            **symbols,
            **{s: evaluate(c.limit, symbols) for s, c in self._graph.counts.items()},
        }
        return int(np.prod(value.type.bind(known), dtype=np.int64)) * value.dtype.size

    def _build(self, sizes: Mapping[Value, int]) -> None:
        """Divides the values among as few engines as the limit allows, and builds them."""
        parts: list[list[Value]] = [[]] if self._inner else []
        filled = 0
        for value in self._inner:
            if parts[-1] and filled + sizes[value] > MOST_BYTES:
                parts.append([])
                filled = 0
            parts[-1].append(value)
            filled += sizes[value]
        for values in parts:
            part = _Part(self._graph, values, self._device, self._threads)
            self._parts.append(self._exit.enter_context(part))


class _Part:
    """An engine whose outputs are some of a graph's values."""

    def __init__(
        self, graph: Graph, values: Sequence[Value], device: str, threads: int | None
    ) -> None:
        from planish.builder import build_graph

        copy, made = duplicate(graph)
        hidden = {count.output for count in copy.counts.values()}
        kept = [(n, v) for n, v in zip(copy.output_names, copy.outputs, strict=True) if n in hidden]
        copy.outputs, copy.output_names = [v for _, v in kept], [n for n, _ in kept]
        copy.trims = {}
        self._names = {}
        for place, value in enumerate(values):
            self._names[f"observed {place}"] = value.name
            copy.mark_output(made[value], f"observed {place}")
        self._engine: Engine = build_graph(
            copy, find_target(device), threads=threads, tuning_seconds=0
        )
        self._context: ExecutionContext = self._engine.create_execution_context()
        self._out: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *exception: object) -> None:
        self._out = {}
        self._context.close()
        self._engine.close()

    def run(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values by name; the arrays are written anew by the next run."""
        own = {info.name: batch[info.name] for info in self._engine.inputs}
        shapes = {name: a.shape for name, a in own.items()}
        again = self._out if shapes == self._shapes and not self._engine.plan.graph.counts else None
        # memory that is used again need not be mapped and cleared by the system again
        result = self._context.execute(own, out=again)
        if not isinstance(result, dict):
            result = {self._engine.outputs[0].name: result}
        self._out, self._shapes = result, shapes
        return {self._names[name]: array for name, array in result.items()}

    def forget(self) -> None:
        """Frees the values of the last run."""
        self._out, self._shapes = {}, {}


def independent_rows(graph: Graph) -> str:
    """The dimension along which batches are independent rows; empty if there is none."""
    first: set[DimLike] = {v.shape[0] if v.shape else 1 for v in graph.inputs}
    if len(first) != 1 or graph.counts:
        return ""
    (dim,) = first
    name = str(dim)
    if isinstance(dim, int) or name not in graph.symbols():
        return ""
    if any(name in map(str, v.shape[1:]) for v in graph.inputs):
        return ""
    limit = graph.ranges[name].max if name in graph.ranges else 1 << 31
    return name if all(is_row_wise(node, name, limit) for node in graph.nodes) else ""
