"""Runs plans whose shapes depend on the data: stage by stage, and cuts results to size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from planish.errors import ShapeError
from planish.graph.dims import DimLike, evaluate
from planish.graph.graph import Graph
from planish.plan.plan import Plan
from planish.plan.stages import Stage
from planish.runtime.arrays import address_of, no_memory
from planish.runtime.bind import BoundPlan
from planish.targets.execution import ForeignArray
from planish.targets.target import Target

Runner = Callable[[BoundPlan, Stage, list[int]], None]
"""Runs a bound stage to its end, given the addresses of what is kept: 0 of what it leaves alone."""


class Binder(Protocol):
    """What makes stages ready to run: an engine."""

    plan: Plan

    def bound(self, symbols: Mapping[str, int], stage: int = 0) -> BoundPlan:
        """A stage for these sizes."""


class StageMemory:
    """What stages hand to one another in the executions of one caller, one at a time.

    It lies where the target's arrays lie: on a GPU nothing of it passes the host.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._buffers: dict[int, np.ndarray | ForeignArray] = {}

    @property
    def is_apart(self) -> bool:
        """Whether it is no memory of the host."""
        return self._target.has_own_memory

    def take(self, number: int, shape: Sequence[int], dtype: np.dtype) -> int:
        """The address of memory of that number; what it held before is lost.

        Raises
        ------
        DeviceError
            There is no memory.
        """
        size = _bytes(shape, dtype)
        known = self._buffers.get(number)
        if known is None or known.nbytes < size:
            self._buffers.pop(number, None)
            known = self._buffers[number] = self._new(size)
        return address_of(known)

    def read(self, number: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """A copy on the host of what lies in memory of that number."""
        buffer = self._buffers[number]
        raw = buffer.copy() if isinstance(buffer, np.ndarray) else buffer.numpy()
        return raw[: _bytes(shape, dtype)].view(dtype).reshape(shape)

    def _new(self, size: int) -> np.ndarray | ForeignArray:
        kind = np.dtype(np.uint8)
        if self.is_apart:
            return self._target.new_array((size,), kind)
        try:
            return np.empty(size, kind)
        except MemoryError as error:
            raise no_memory("what a stage hands over", error) from error

    @property
    def nbytes(self) -> int:
        """How much it holds now."""
        return sum(b.nbytes for b in self._buffers.values())


def run_stages(
    engine: Binder, symbols: Mapping[str, int], memory: StageMemory, run: Runner
) -> tuple[list[np.ndarray], dict[str, int]]:
    """The outputs of the graph, and the sizes of all dimensions.

    Outputs are arrays on the host. Where memory of stages lies elsewhere, those that several stages
    touch lie there, too, until all have run: what is on the host is then written by one stage.

    Raises
    ------
    ShapeError
        A size that was computed is impossible.
    DeviceError
        There is no memory.
    """
    plan, stages = engine.plan, engine.plan.stages
    graph, addresses = plan.graph, [0] * len(stages.kept)
    results: dict[int, np.ndarray] = {}
    apart: dict[int, tuple[int, ...]] = {}
    sizes, given = dict(symbols), dict(symbols)

    def result(index: int) -> np.ndarray:
        if index not in results:
            return memory.read(index, apart[index], stages.kept[index].dtype.numpy)
        return results[index]

    for number, part in enumerate(stages.parts):
        bound = engine.bound(given, number)
        for index, shape in zip(part.writes, bound.output_shapes, strict=True):
            dtype = stages.kept[index].dtype.numpy
            if index >= len(graph.outputs) or (memory.is_apart and index in stages.shared):
                addresses[index], apart[index] = memory.take(index, shape, dtype), shape
                continue
            try:
                results[index] = np.empty(shape, dtype)
            except MemoryError as error:
                raise no_memory("the results of a stage", error) from error
            addresses[index] = address_of(results[index])
        mine = {*part.writes, *stages.shared}
        run(bound, part, [a if i in mine else 0 for i, a in enumerate(addresses)])
        for name in part.counts:
            array = result(graph.output_names.index(graph.counts[name].output))
            sizes[name] = checked_count(graph, name, int(array.reshape(())), given)
            given[name] = sizes[name]
            if name in stages.row_wise:
                most = evaluate(graph.counts[name].limit, given)
                given[name] = rounded(sizes[name], most)
    return [result(i) for i in range(len(graph.outputs))], sizes


def _bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def cut(array: np.ndarray, shape: Sequence[DimLike], sizes: Mapping[str, int]) -> np.ndarray:
    """The part of a padded result that means something: a view."""
    wanted = tuple(evaluate(d, sizes) for d in shape)
    return array if array.shape == wanted else array[tuple(map(slice, wanted))]


def checked_count(graph: Graph, name: str, count: int, sizes: Mapping[str, int]) -> int:
    """A count, if it can be the size of a dimension.

    Raises
    ------
    ShapeError
        It is negative, or more than there is room for.
    """
    most = evaluate(graph.counts[name].limit, sizes)
    if 0 <= count <= most:
        return count
    raise ShapeError(
        f"The model computed {count} for the size of a dimension",
        where=f"dimension {name}",
        why=f"it can be 0 to {most}" if count >= 0 else "no dimension is negative",
        cure="check the values of the inputs",
    )


def rounded(count: int, most: int) -> int:
    """A size for which programs are made: 1, 2, 3, 4, 6, 8, 12, 16, …, and at most `most`."""
    size = 1 << max(count - 1, 0).bit_length()
    if size >= 4 and count <= size * 3 // 4:
        size = size * 3 // 4
    return min(size, most)
