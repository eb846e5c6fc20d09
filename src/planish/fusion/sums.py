"""Recognises two convolutions whose results are added.

    a ─▶ Conv ─▶ bias ─┐
    b ─▶ Conv ─▶ bias ─┴▶ Add ─▶ epilogue

Residual networks have them where a block changes the image's size: a 1x1 convolution then stands
beside the block. As one task, beside both convolutions alone, their products are summed as one
over both depths, and what one gives, which is as large as the result, is neither written nor read.
In quantized networks both have sums of their own, of which each is scaled, and one rounded to
levels, before they are added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.quantization import ConvInteger

LONGEST = 8
"""Most nodes between a convolution and the sum."""


@dataclass(frozen=True)
class Sum:
    """What a task of two convolutions adds to its anchor, the second one, as data.

    Attributes
    ----------
    first : Conv or ConvInteger
    image, filters : int
        Which of the task's inputs it reads.
    """

    first: Conv | ConvInteger
    image: int
    filters: int

    def __str__(self) -> str:
        return f"{self.first} of {self.image}, {self.filters} plus"


@dataclass(frozen=True)
class FoundSum:
    """The nodes of a sum by what they do, without an epilogue.

    Attributes
    ----------
    first, second : Node
        The convolutions.
    added : frozenset of Node
        What is done to both results before the sum: additions of constants, or whatever is done to
        sums of levels.
    join : Node
        The sum.
    """

    first: Node
    second: Node
    added: frozenset[Node]
    join: Node

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {self.first, self.second, *self.added, self.join}


def sum_with(conv: Node, free: Collection[Node], outputs: Collection[Value]) -> FoundSum | None:
    """The sum in a graph of what a convolution gives and another one; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return find_sum(conv, lambda n: n not in free, lambda v: v not in outputs)


def sum_of(nodes: Collection[Node]) -> FoundSum | None:
    """The sum that these nodes are, perhaps with an epilogue behind it; None for anything else."""
    convolutions = [n for n in nodes if isinstance(n.op, Conv | ConvInteger)]
    if len(convolutions) != 2:
        return None
    found = find_sum(convolutions[1], set(nodes).__contains__, lambda v: True)
    return found if found and found.first is convolutions[0] else None


def find_sum(
    conv: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundSum | None:
    """The sum below a convolution, of open nodes whose results are hidden."""
    if not _is_plain(conv):
        return None
    value = conv.output
    added: set[Node] = set()
    while len(added) <= LONGEST and len(value.users) == 1 and is_hidden(value):
        (user,) = value.users
        if not is_open(user):
            return None
        if _goes_on(user, value, conv):
            added.add(user)
            value = user.output
            continue
        other = _added_to(user, value)
        above = _convolution_above(other, type(conv.op), is_open, is_hidden) if other else None
        if above is None:
            return None
        first, more = above
        return FoundSum(first, conv, frozenset(added | more), user)
    return None


def _convolution_above(
    value: Value,
    kind: type,
    is_open: Callable[[Node], bool],
    is_hidden: Callable[[Value], bool],
) -> tuple[Node, set[Node]] | None:
    """The convolution of a kind above a value, and the nodes between them."""
    nodes: list[Node] = []
    while len(nodes) <= LONGEST and len(value.users) == 1 and is_hidden(value):
        node = value.producer
        if node is None or not is_open(node):
            return None
        if isinstance(node.op, kind) and _is_plain(node):
            below = [(n, next(v for v in n.inputs if not v.is_constant)) for n in nodes]
            if not all(_goes_on(n, v, node) for n, v in below):
                return None
            return node, set(nodes)
        sources = [v for v in node.inputs if not v.is_constant]
        if len(sources) != 1:
            return None
        nodes.append(node)
        value = sources[0]
    return None


def _goes_on(node: Node, value: Value, conv: Node) -> bool:
    """Whether a node does something to a value that a convolution led to, with constants alone:
    adds them, or is any elementwise op where there are sums of levels.
    """
    if not isinstance(node.op, Elementwise) or node.output.shape != value.shape:
        return False
    others = [v for v in node.inputs if v is not value]
    if len(others) == len(node.inputs) or not all(v.is_constant for v in others):
        return False
    if isinstance(conv.op, ConvInteger):
        return node.inputs.count(value) == 1
    return _added_to(node, value) is not None


def _added_to(node: Node, value: Value) -> Value | None:
    """What an addition adds to a value of its result's type; None for other nodes."""
    if not isinstance(node.op, Elementwise) or node.op.name != "add":
        return None
    others = [v for v in node.inputs if v is not value]
    return others[0] if len(others) == 1 and node.output.type == value.type else None


def _is_plain(node: Node) -> bool:
    """Whether it is a convolution of two dimensions with constant filters and without groups."""
    op = node.op
    if not isinstance(op, Conv | ConvInteger) or op.groups != 1 or len(op.strides) != 2:
        return False
    return node.inputs[1].is_constant and not node.inputs[0].is_constant
