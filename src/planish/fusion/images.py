"""Recognises a convolution of an image whose axes lie in another order.

    x ─▶ cast, scale ─▶ Transpose ─▶ cast, scale, quantize ─▶ Conv ─▶ epilogue

Frameworks hand images over channels first, usually in float32. As one task, beside its parts, the
convolution reads them as they lie, and nobody writes them in another order first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.quantization import ConvInteger
from planish.ops.shape import Transpose

LONGEST = 8
"""Most nodes before the convolution."""


@dataclass(frozen=True)
class Image:
    """How a task's first input becomes what its convolution reads, beside the prologue, as data.

    Attributes
    ----------
    perm : tuple of int
        Axis ``i`` of the image is axis ``perm[i]`` of the task's input 0.
    """

    perm: tuple[int, ...]

    def __str__(self) -> str:
        return f"{Transpose(self.perm)} then"


@dataclass(frozen=True)
class FoundImage:
    """The nodes by what they do, without an epilogue.

    Attributes
    ----------
    source : Value
        What the first node reads.
    before : tuple of Node
        All nodes before the convolution, in order; `transpose` is one of them.
    """

    source: Value
    before: tuple[Node, ...]
    transpose: Node
    conv: Node

    @property
    def perm(self) -> tuple[int, ...]:
        """See `Image`."""
        assert isinstance(self.transpose.op, Transpose)
        return self.transpose.op.perm


def image_before(
    conv: Node, free: Collection[Node], outputs: Collection[Value]
) -> FoundImage | None:
    """The transposed image that a convolution of a graph reads; None if it reads none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return _find(conv, lambda n: n not in free, lambda v: v not in outputs)


def image_of(nodes: Collection[Node]) -> FoundImage | None:
    """What these nodes are, perhaps with an epilogue behind it; None for anything else."""
    order = list(nodes)
    convolutions = [n for n in order if isinstance(n.op, Conv | ConvInteger)]
    if len(convolutions) != 1:
        return None
    found = _find(convolutions[0], set(order).__contains__, lambda v: True)
    if found is None or set(order[: order.index(found.conv)]) != set(found.before):
        return None
    return found


def _find(
    conv: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundImage | None:
    """The chain above a convolution, of open nodes whose results are hidden."""
    value = conv.inputs[0]
    chain: list[Node] = []
    transpose: Node | None = None
    while len(chain) < LONGEST and len(value.users) == 1 and is_hidden(value):
        node = value.producer
        if node is None or not is_open(node):
            break
        source = _source(node, transpose)
        if source is None:
            break
        if isinstance(node.op, Transpose):
            transpose = node
        chain.append(node)
        value = source
    if transpose is None or conv.inputs.count(conv.inputs[0]) != 1:
        return None
    return FoundImage(value, tuple(reversed(chain)), transpose, conv)


def _source(node: Node, transpose: Node | None) -> Value | None:
    """What a node of the chain reads beside constants; None if it is no such node.

    Above the transposition constants are single numbers: others have axes in the image's order.
    """
    if isinstance(node.op, Transpose):
        return node.inputs[0] if transpose is None and node.op.perm[:1] == (0,) else None
    if not isinstance(node.op, Elementwise):
        return None
    read = [v for v in node.inputs if not v.is_constant]
    if len(read) != 1 or read[0].shape != node.output.shape:
        return None
    constants = [v.data for v in node.inputs if v is not read[0]]
    if transpose is not None and any(c is None or c.size != 1 for c in constants):
        return None
    return read[0]
