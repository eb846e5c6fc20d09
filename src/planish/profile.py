"""Optimization profiles: which sizes the dimensions of an input may have."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.errors import ShapeError
from planish.graph.dims import evaluate
from planish.graph.graph import DimRange, Graph
from planish.graph.sizes import check_sizes

UNBOUNDED = 2**31 - 1
USUAL_SIZE = 128
"""The usual size of an unbounded dimension that is not a batch, where nobody said another."""

BATCHES = 8
"""An unbounded batch is tuned at its usual size and at so many times that."""


FACTORS = (1, 2, 3, 5, 7, 8, 13, 21, 34, 55, 89, 144)
"""What the usual sizes are multiplied by where the model does not take them, or does nothing."""

MOST_COUNTED = 4096
"""A dimension that depends on the data is tuned at half of its greatest size, at 1, and at that
size, which is taken to be no larger than this."""

UNLIMITED = 32
"""Where there is no greatest size, this is taken for it."""


@dataclass(frozen=True)
class Profile:
    """Least, usual and greatest shape of an input; engines accept every shape in between.

    Tactics are tuned at all three. ``Profile((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224,
    224))`` makes the batch range from 1 to 32.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("min", "opt", "max"):
            object.__setattr__(self, name, _sizes(getattr(self, name), name))
        ordered = len(self.min) == len(self.opt) == len(self.max) and all(
            0 <= a <= b <= c for a, b, c in zip(self.min, self.opt, self.max, strict=True)
        )
        if not ordered:
            raise ShapeError(
                "A profile needs min <= opt <= max in every dimension",
                where=f"Profile(min={self.min}, opt={self.opt}, max={self.max})",
                why=self._disorder(),
                cure="give three shapes of equal rank in that order",
            )

    def _disorder(self) -> str:
        """Why the shapes are in no order."""
        if not len(self.min) == len(self.opt) == len(self.max):
            return f"they have {len(self.min)}, {len(self.opt)} and {len(self.max)} dimensions"
        for axis, sizes in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not 0 <= sizes[0] <= sizes[1] <= sizes[2]:
                return f"dimension {axis} is {sizes[0]}, {sizes[1]} and {sizes[2]}"
        return ""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of an input, for models that do not know them (PyTorch modules).

    Attributes
    ----------
    shape : tuple or Profile
        Integers, names of dimensions that may change, or None for an unnamed one.
    dtype : dtype or str, optional
        None: the model's own, float32 where it has none.
    """

    shape: Any
    dtype: Any = None

    @classmethod
    def of(cls, given: Any) -> TensorSpec:
        """From a shape, a `Profile`, an array, or anything else with a shape and a dtype."""
        if isinstance(given, cls):
            return given
        if hasattr(given, "shape") and hasattr(given, "dtype"):
            dtype = str(given.dtype).removeprefix("torch.")
            return cls(tuple(given.shape), getattr(given.dtype, "as_numpy_dtype", dtype))
        return cls(given)


def _sizes(shape: object, name: str) -> tuple[int, ...]:
    try:
        return tuple(operator.index(n) for n in shape)  # type: ignore[attr-defined]
    except TypeError:
        raise ShapeError(
            f"{name} of a profile is not a shape",
            where=f"Profile({name}={shape!r})",
            why="a shape is a tuple of whole numbers",
            cure="give three shapes, such as Profile((1, 3), (8, 3), (32, 3))",
        ) from None


def settle_ranges(graph: Graph) -> None:
    """Gives unbounded dimensions that are no batch a usual size that is worth tuning for."""
    for name, limits in graph.ranges.items():
        if limits.opt == limits.min == 1 and limits.max == UNBOUNDED and not is_batch(graph, name):
            graph.ranges[name] = DimRange(1, USUAL_SIZE, UNBOUNDED)
    free = {n: r.opt for n, r in graph.ranges.items() if r.min == 1 and r.max == UNBOUNDED}
    for factor in FACTORS if free else ():
        for name, usual in free.items():
            graph.ranges[name] = DimRange(1, usual * factor, UNBOUNDED)
        if _takes_usual(graph):
            return
    for name, usual in free.items():
        graph.ranges[name] = DimRange(1, usual, UNBOUNDED)


def _takes_usual(graph: Graph) -> bool:
    """Whether the model takes the usual sizes: it may slice, or split, or need multiples."""
    known = {n: r.opt for n, r in graph.ranges.items() if n not in graph.counts}
    try:
        check_sizes(graph, known)
    except ShapeError:
        return False
    return True


def is_batch(graph: Graph, name: str) -> bool:
    """Whether a dimension is the first one of some input."""
    return any(v.shape and str(v.shape[0]) == name for v in graph.inputs)


def tuning_points(graph: Graph) -> list[Mapping[str, int]]:
    """The sizes of the dimensions to tune at, the usual ones first."""
    names = graph.symbols() - graph.counts.keys()
    ranges = {name: graph.ranges.get(name, DimRange(1, 1, UNBOUNDED)) for name in names}
    points = [{name: r.opt for name, r in ranges.items()}]
    points.append({name: r.min for name, r in ranges.items()})
    bounded = {}
    for name, r in ranges.items():
        if r.max < UNBOUNDED:
            bounded[name] = r.max
        else:
            bounded[name] = r.opt * BATCHES if is_batch(graph, name) else r.opt
    points.append(bounded)
    unbounded_minimum = {
        n for n, r in ranges.items() if r.max == UNBOUNDED and not is_batch(graph, n)
    }
    if unbounded_minimum:  # size 1 of a sequence is legal, not worth a tactic of its own
        points[1] = {
            n: (ranges[n].opt if n in unbounded_minimum else s) for n, s in points[1].items()
        }
    for point, share in zip(points, (2, UNBOUNDED, 1), strict=True):
        for name, count in graph.counts.items():
            if not count.padded:
                limit = evaluate(count.limit, point)
                most = UNLIMITED if limit >= UNBOUNDED else min(limit, MOST_COUNTED)
                point[name] = max(most // share, 1)
    ordered = dict.fromkeys(tuple(sorted(p.items())) for p in points)
    distinct: list[Mapping[str, int]] = [dict(p) for p in ordered]
    if not graph.counts:
        return distinct
    return [p for p in distinct if _possible(graph, p)] or distinct[:1]


def _possible(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether sizes that depend on the data go together, and leave something to do."""
    if any(0 in v.type.bind(sizes) for node in graph.nodes for v in node.outputs):
        return False
    try:
        check_sizes(graph, sizes)
    except ShapeError:
        return False
    return True
