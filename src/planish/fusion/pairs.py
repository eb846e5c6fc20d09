"""Recognises a depthwise convolution whose result only a convolution of single pixels reads.

    x ─▶ depthwise Conv ─▶ bias, activation ─▶ 1x1 Conv ─▶ epilogue

The nodes become one candidate task, beside both convolutions alone: what the first one gives, often
the largest tensor of the network, is then never written. What stands between them may have operands
of one number per channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.fusion.fused import Fused
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise

LONGEST = 8
"""Most elementwise nodes between the convolutions."""


@dataclass(frozen=True)
class Pair:
    """What a task of two convolutions computes before its anchor, the second one, as data.

    Attributes
    ----------
    first : Conv
    filters : int
        Which of the task's inputs are its filters; its image is input 0.
    between : Fused
        Elementwise work on its result; its operands broadcast along all axes but the channels.
    """

    first: Conv
    filters: int
    between: Fused

    def __str__(self) -> str:
        return f"{self.first} [{self.between.expression} of {self.between.sources}] then"


@dataclass(frozen=True)
class FoundPair:
    """The nodes of a pair by what they do, without an epilogue."""

    first: Node
    chain: tuple[Node, ...]
    second: Node

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {self.first, *self.chain, self.second}


def pair_before(
    second: Node, free: Collection[Node], outputs: Collection[Value]
) -> FoundPair | None:
    """The pair in a graph that a convolution ends; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return _find(second, lambda n: n not in free, lambda v: v not in outputs)


def pair_of(nodes: Collection[Node]) -> FoundPair | None:
    """The pair that these nodes are, perhaps with an epilogue behind it; None for anything else."""
    convolutions = [n for n in nodes if isinstance(n.op, Conv)]
    if len(convolutions) != 2:
        return None
    members = set(nodes)
    return _find(convolutions[1], members.__contains__, lambda v: True)


def _find(
    second: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundPair | None:
    if not _is_pointwise(second):
        return None
    chain: list[Node] = []
    value = second.inputs[0]
    while len(chain) <= LONGEST and len(value.users) == 1 and is_hidden(value):
        node = value.producer
        if node is None or not is_open(node):
            return None
        if isinstance(node.op, Conv):
            found = FoundPair(node, tuple(reversed(chain)), second)
            return found if _is_depthwise(node) else None
        if not isinstance(node.op, Elementwise) or node.output.shape != value.shape:
            return None
        sources = [v for v in node.inputs if v.shape == value.shape and not v.is_constant]
        others = [v for v in node.inputs if v not in sources]
        if len(sources) != 1 or not all(map(_is_per_channel, others)):
            return None
        chain.append(node)
        (value,) = sources
    return None


def _is_per_channel(value: Value) -> bool:
    """Whether a value is a constant of one number, or one per channel."""
    return value.data is not None and value.data.size == (value.data.shape or (1,))[-1]


def _is_pointwise(node: Node) -> bool:
    op = node.op
    if not isinstance(op, Conv) or op.groups != 1 or not node.inputs[1].is_constant:
        return False
    window = node.inputs[1].shape[:-2]
    return len(window) == 2 and {*window, *op.strides} == {1} and not _is_padded(op)


def _is_padded(op: Conv) -> bool:
    return any(edge != 0 for edges in op.padding for edge in edges)


def _is_depthwise(node: Node) -> bool:
    """Whether it has two spatial axes, and one filter for each channel."""
    op = node.op
    assert isinstance(op, Conv)
    x, filters = node.inputs
    channels = x.shape[-1]
    if len(op.strides) != 2 or not filters.is_constant or math.prod(filters.shape) == 0:  # type: ignore[arg-type]
        return False
    return op.groups == channels == filters.shape[-1] and filters.shape[-2] == 1
