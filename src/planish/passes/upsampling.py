"""Upsampling by repetition is a resize to the nearest neighbour.

x [N, H, W, C]
|
Reshape [N, H, 1, W, C]              x
|                                    |
Tile (1, 1, 2, 1, 1)        =>      Resize (2 * H, W), nearest
|                                    |
Reshape [N, 2 * H, W, C]

reshape(tile(reshape(x)))     => resize(x)
resize(resize(x))             => resize(x)     along different dimensions
"""

from __future__ import annotations

from planish.graph.graph import Graph, Value
from planish.ops.shape import Reshape, Tile
from planish.ops.spatial import Resize
from planish.passes.rewrite import Apply, Match, Rule, Var, rewrite

# positions of a half-pixel grid round safely to the nearest: for a factor r they are never nearer
# to a tie than 1 / (2 * r)
MODE, COORDINATES = "nearest", "half_pixel"


def recognize_upsampling(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _resize(m: Match) -> Value | None:
    tile, apart, x, y = m.ops["tile"], m.ops["apart"], m["x"], m.output
    assert isinstance(tile, Tile)
    assert isinstance(apart, Reshape)
    repeated = [axis for axis, count in enumerate(tile.repeats) if count != 1]
    if len(repeated) != 1 or x.type.rank < 3:
        return None
    axis, factor = repeated[0] - 1, tile.repeats[repeated[0]]
    if not 1 <= axis < x.type.rank - 1 or not isinstance(factor, int) or factor < 1:
        return None
    if apart.shape != (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]):
        return None
    if y.shape != (*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :]):
        return None
    return m.add(Resize(y.shape[1:-1], MODE, COORDINATES), x)


def _resize_once(m: Match) -> Value | None:
    ops = m.ops["first"], m.ops["second"]
    x, middle, y = m["x"], m.root.inputs[0], m.output
    if any(op != Resize(op.size, MODE, COORDINATES) for op in ops):  # type: ignore[attr-defined]
        return None
    # a dimension that changes twice would be rounded twice
    if any(a != b != c for a, b, c in zip(x.shape, middle.shape, y.shape, strict=True)):
        return None
    return m.add(ops[1], x)


RULES = (
    Rule(
        "reshape(tile(reshape(x))) => resize(x)",
        Apply(
            Reshape,
            Apply(Tile, Apply(Reshape, Var("x"), called="apart"), called="tile"),
        ),
        _resize,
    ),
    Rule(
        "resize(resize(x)) => resize(x)",
        Apply(Resize, Apply(Resize, Var("x"), called="first"), called="second"),
        _resize_once,
    ),
)
