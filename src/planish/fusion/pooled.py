"""Recognises a convolution with the pooling behind it.

    x ─▶ Conv ─▶ bias, relu ─▶ MaxPool 2x2, by steps of two ─▶

As one task, beside its parts, what the convolution gives is neither written nor read. Steps before
the pooling keep the order of numbers, so that they may as well come behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.fusion.openings import POOL, orderly_above
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.pool import MaxPool


@dataclass(frozen=True)
class Pooled:
    """What happens to an anchor's result before the epilogue, as data: `pool`."""

    pool: MaxPool

    def __str__(self) -> str:
        return f"{self.pool} of"


@dataclass(frozen=True)
class FoundPooled:
    """A convolution, what stands behind it, and the pooling."""

    conv: Node
    behind: tuple[Node, ...]
    pool: Node

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {self.conv, *self.behind, self.pool}

    @property
    def unpooled(self) -> tuple[Node, ...]:
        """All but the pooling, in order."""
        return self.conv, *self.behind


def pooled_before(
    pool: Node, free: Collection[Node], outputs: Collection[Value]
) -> FoundPooled | None:
    """The convolution in a graph that a pooling ends; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return _find(pool, lambda n: n not in free, lambda v: v not in outputs)


def pooled_of(nodes: Collection[Node]) -> FoundPooled | None:
    """What these nodes are, if it is a convolution with a pooling; else None."""
    order = list(nodes)
    if not order:
        return None
    found = _find(order[-1], set(order).__contains__, lambda v: True)
    return found if found and found.nodes == set(order) else None


def _find(
    pool: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundPooled | None:
    if pool.op != POOL or pool.inputs[0].type.rank != 4:
        return None
    above = orderly_above(pool.inputs[0], _is_plain, is_open, is_hidden)
    return FoundPooled(above[0], tuple(above[1:]), pool) if above else None


def _is_plain(node: Node) -> bool:
    op = node.op
    return isinstance(op, Conv) and op.groups == 1 and node.inputs[1].is_constant
