"""Runs plans whose shapes depend on the data: stage by stage, and cuts results to size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from planish.errors import ShapeError
from planish.graph.dims import DimLike, evaluate
from planish.graph.graph import Graph
from planish.plan.plan import Plan
from planish.runtime.arrays import no_memory
from planish.runtime.bind import BoundPlan

Runner = Callable[[BoundPlan, list[int]], None]
"""Runs a bound stage; given the addresses of what is kept, 0 for what nothing has written yet."""


class Binder(Protocol):
    """What makes stages ready to run: an engine."""

    plan: Plan

    def bound(self, symbols: Mapping[str, int], stage: int = 0) -> BoundPlan:
        """A stage for these sizes."""


class StageMemory:
    """What stages hand to one another in the executions of one caller, one at a time."""

    def __init__(self) -> None:
        self._buffers: dict[int, np.ndarray] = {}

    def take(self, number: int, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """Memory of that number; what it held before is lost."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        known = self._buffers.get(number)
        if known is None or known.nbytes < size:
            known = self._buffers[number] = np.empty(size, np.uint8)
        return known[:size].view(dtype).reshape(shape)

    @property
    def nbytes(self) -> int:
        """How much it holds now."""
        return sum(b.nbytes for b in self._buffers.values())


def run_stages(
    engine: Binder, symbols: Mapping[str, int], memory: StageMemory, run: Runner
) -> tuple[list[np.ndarray], dict[str, int]]:
    """The outputs of the graph, and the sizes of all dimensions.

    Raises
    ------
    ShapeError
        A size that was computed is impossible.
    DeviceError
        There is no memory.
    """
    plan, stages = engine.plan, engine.plan.stages
    graph = plan.graph
    arrays: list[np.ndarray | None] = [None] * len(stages.kept)
    sizes, given = dict(symbols), dict(symbols)
    for number, part in enumerate(stages.parts):
        bound = engine.bound(given, number)
        for index, shape in zip(part.writes, bound.output_shapes, strict=True):
            dtype = stages.kept[index].dtype.numpy
            try:
                outside = index < len(graph.outputs)
                arrays[index] = (
                    np.empty(shape, dtype) if outside else memory.take(index, shape, dtype)
                )
            except MemoryError as error:
                raise no_memory("the results of a stage", error) from error
        run(bound, [0 if a is None else a.ctypes.data for a in arrays])
        for name in part.counts:
            array = arrays[graph.output_names.index(graph.counts[name].output)]
            assert array is not None
            sizes[name] = checked_count(graph, name, int(array.reshape(())), given)
            given[name] = sizes[name]
            if name in stages.row_wise:
                most = evaluate(graph.counts[name].limit, given)
                given[name] = rounded(sizes[name], most)
    return [a for a in arrays[: len(graph.outputs)] if a is not None], sizes


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
