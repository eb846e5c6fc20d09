"""Optimization profiles: which sizes the dimensions of an input may have."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass

from planish.errors import ShapeError
from planish.graph.graph import DimRange, Graph

UNBOUNDED = 2**31 - 1
USUAL_SIZE = 128
"""The usual size of an unbounded dimension that is not a batch, where nobody said another."""

BATCHES = 8
"""An unbounded batch is tuned at its usual size and at so many times that."""


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
                cure="give three shapes of equal rank in that order",
            )


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


def is_batch(graph: Graph, name: str) -> bool:
    """Whether a dimension is the first one of some input."""
    return any(v.shape and str(v.shape[0]) == name for v in graph.inputs)


def tuning_points(graph: Graph) -> list[Mapping[str, int]]:
    """The sizes of the dimensions to tune at, the usual ones first."""
    ranges = {name: graph.ranges.get(name, DimRange(1, 1, UNBOUNDED)) for name in graph.symbols()}
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
    return [dict(p) for p in dict.fromkeys(tuple(sorted(p.items())) for p in points)]
