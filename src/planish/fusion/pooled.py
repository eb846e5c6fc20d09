"""Recognises a convolution with the pooling behind it.

    x ─▶ Conv ─▶ bias, relu ─▶ MaxPool 2x2, by steps of two ─▶
    x ─▶ cast, Transpose, … ─▶ Conv ─▶ bias, relu ─▶ MaxPool 2x2 or 3x3, by steps of two ─▶

The second of an image of few channels, as networks begin, also of levels; with what stands before
it, or without. As one task, beside its parts, what the convolution gives is neither written nor
read. Steps before the pooling keep the order of numbers, so that they may as well come behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from planish.fusion.images import LONGEST, image_before, image_of
from planish.fusion.openings import FEW_CHANNELS, POOL, orderly_above
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.pool import MaxPool
from planish.ops.quantization import ConvInteger

OVERLAPPING = tuple(
    MaxPool((3, 3), (2, 2), ((above, below), (left, right)), (1, 1))
    for above in (0, 1)
    for below in (0, 1)
    for left in (0, 1)
    for right in (0, 1)
)
"""Poolings behind a convolution of an image of few channels, beside `POOL`."""


@dataclass(frozen=True)
class Pooled:
    """What happens to an anchor's result before the epilogue, as data: `pool`."""

    pool: MaxPool

    def __str__(self) -> str:
        return f"{self.pool} of"


@dataclass(frozen=True)
class FoundPooled:
    """A convolution, what stands before and behind it, and the pooling.

    `transpose` is one of the nodes before, if one of them is one.
    """

    conv: Node
    behind: tuple[Node, ...]
    pool: Node
    before: tuple[Node, ...] = ()
    transpose: Node | None = None

    @property
    def source(self) -> Value:
        """What the first node reads."""
        first = (*self.before, self.conv)[0]
        return next(v for v in first.inputs if not v.is_constant)

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {*self.unpooled, self.pool}

    @property
    def unpooled(self) -> tuple[Node, ...]:
        """All but the pooling, in order."""
        return *self.before, self.conv, *self.behind


def pooled_before(
    pool: Node, free: Collection[Node], outputs: Collection[Value]
) -> Iterator[FoundPooled]:
    """The convolution in a graph that a pooling ends, if there is one: alone, and with what stands
    before it.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    found = _find(pool, lambda n: n not in free, lambda v: v not in outputs)
    if found is None:
        return
    yield found
    if not _has_few_channels(found.conv):
        return
    image = image_before(found.conv, free, outputs)
    if image is not None:
        yield replace(found, before=image.before, transpose=image.transpose)
        return
    above = _elementwise_above(found.conv, lambda n: n not in free, lambda v: v not in outputs)
    if above:
        yield replace(found, before=above)


def pooled_of(nodes: Collection[Node]) -> FoundPooled | None:
    """What these nodes are, if it is a convolution with a pooling; else None."""
    order = list(nodes)
    if not order:
        return None
    found = _find(order[-1], set(order).__contains__, lambda v: True)
    if found is None:
        return None
    image = image_of(order[: order.index(found.conv) + 1])
    if image is not None:
        found = replace(found, before=image.before, transpose=image.transpose)
    elif found.nodes != set(order):
        above = _elementwise_above(found.conv, set(order).__contains__, lambda v: True)
        found = replace(found, before=above)
    return found if found.nodes == set(order) else None


def _elementwise_above(
    conv: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> tuple[Node, ...]:
    """The open nodes before a convolution that compute with single numbers, results hidden."""
    value = conv.inputs[0]
    chain: list[Node] = []
    while len(chain) < LONGEST and len(value.users) == 1 and is_hidden(value):
        node = value.producer
        if node is None or not is_open(node) or not isinstance(node.op, Elementwise):
            break
        read = [v for v in node.inputs if not v.is_constant]
        if len(read) != 1 or read[0].shape != value.shape:
            break
        if any(v.data is None or v.data.size != 1 for v in node.inputs if v is not read[0]):
            break
        chain.append(node)
        value = read[0]
    return tuple(reversed(chain))


def _find(
    pool: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundPooled | None:
    if pool.op not in (POOL, *OVERLAPPING) or pool.inputs[0].type.rank != 4:
        return None
    above = orderly_above(pool.inputs[0], _is_plain, is_open, is_hidden)
    if above is None or (pool.op != POOL and not _has_few_channels(above[0])):
        return None
    return FoundPooled(above[0], tuple(above[1:]), pool)


def _is_plain(node: Node) -> bool:
    op = node.op
    if not isinstance(op, Conv | ConvInteger) or op.groups > 1 or not node.inputs[1].is_constant:
        return False
    return isinstance(op, Conv) or _has_few_channels(node)


def _has_few_channels(conv: Node) -> bool:
    channels = conv.inputs[0].shape[-1]
    return isinstance(channels, int) and channels <= FEW_CHANNELS
