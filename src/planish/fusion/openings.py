"""Recognises the first two convolutions of a network with the pooling behind them.

    x ─▶ cast, Transpose, … ─▶ Conv 3x3 ─▶ bias, relu ─▶ Conv 3x3 ─▶ bias, relu ─▶ MaxPool 2x2

Of an image of few channels: VGG's first block. As one task, beside its parts, what both
convolutions give, often the largest tensors of the network, is neither written nor read. Steps
before the pooling keep the order of numbers, so that they may as well come behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from planish.fusion.fused import Fused
from planish.fusion.images import FoundImage, image_before, image_of
from planish.fusion.pairs import is_by_channel
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.pool import MaxPool
from planish.ops.quantization import ConvInteger

FEW_CHANNELS = 4
"""Of the image, at most."""
LONGEST = 6
"""Most elementwise nodes behind each convolution."""
ORDERLY = ("add", "relu", "clip", "cast", "mul", "quantize")
"""Elementwise ops which, by constants, give more for more; if scales are positive."""

POOL = MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
"""What ends an opening."""

_CONV = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))


@dataclass(frozen=True)
class Opening:
    """What a task of two convolutions and a pooling computes beside its anchor, the second
    convolution, as data.

    Attributes
    ----------
    filters : int
        Which of the task's inputs are those of the first convolution; its image is input 0.
    between : Fused
        Elementwise work on its result, by constants of one number per channel.
    perm : tuple of int or None
        Axis ``i`` of the image is axis ``perm[i]`` of the task's input 0, if that is transposed.
    """

    filters: int
    between: Fused
    perm: tuple[int, ...] | None

    def __str__(self) -> str:
        work = f"[{self.between.expression} of {self.between.sources}]"
        return f"{_CONV} by {self.filters} of {self.perm} {work} then {POOL} of"


@dataclass(frozen=True)
class FoundOpening:
    """The nodes of an opening by what they do.

    Attributes
    ----------
    image : FoundImage or None
        What stands before the first convolution.
    first, second : Node
        The convolutions.
    between, behind : tuple of Node
        What stands behind each.
    pool : Node
    """

    image: FoundImage | None
    first: Node
    between: tuple[Node, ...]
    second: Node
    behind: tuple[Node, ...]
    pool: Node

    @property
    def source(self) -> Value:
        """What the task reads."""
        return self.image.source if self.image else self.first.inputs[0]

    @property
    def before(self) -> tuple[Node, ...]:
        """The nodes before the first convolution."""
        return self.image.before if self.image else ()

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {*self.before, self.first, *self.between, self.second, *self.behind, self.pool}


def opening_before(
    pool: Node, free: Collection[Node], outputs: Collection[Value]
) -> FoundOpening | None:
    """The opening in a graph that a pooling ends; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    found = _find(pool, lambda n: n not in free, lambda v: v not in outputs)
    if found is None:
        return None
    return FoundOpening(image_before(found[0], free, outputs), *found)


def opening_of(nodes: Collection[Node]) -> FoundOpening | None:
    """The opening that these nodes are; None for anything else."""
    order = list(nodes)
    if not order or order[-1].op != POOL:
        return None
    parts = _find(order[-1], set(order).__contains__, lambda v: True)
    if parts is None:
        return None
    early = order[: order.index(parts[0]) + 1]
    found = FoundOpening(image_of(early), *parts)
    return found if found.nodes == set(order) else None


_Parts = tuple[Node, tuple[Node, ...], Node, tuple[Node, ...], Node]


def _find(
    pool: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> _Parts | None:
    """Both convolutions above a pooling, with what stands behind each; None if they are none."""
    if pool.op != POOL or pool.inputs[0].type.rank != 4:
        return None
    above = orderly_above(pool.inputs[0], _is_plain, is_open, is_hidden)
    if above is None:
        return None
    second, *behind = above
    above = orderly_above(second.inputs[0], _is_plain, is_open, is_hidden)
    if above is None:
        return None
    first, *between = above
    channels = first.inputs[0].shape[-1]
    if not isinstance(channels, int) or channels > FEW_CHANNELS:
        return None
    return first, tuple(between), second, tuple(behind), pool


def orderly_above(
    value: Value,
    is_wanted: Callable[[Node], bool],
    is_open: Callable[[Node], bool],
    is_hidden: Callable[[Value], bool],
) -> list[Node] | None:
    """The convolution above a value, if it is a wanted one, and the nodes between them, which keep
    numbers' order.
    """
    chain: list[Node] = []
    while len(value.users) == 1 and is_hidden(value):
        node = value.producer
        if node is None or not is_open(node):
            return None
        if isinstance(node.op, Conv | ConvInteger):
            found = [node, *reversed(chain)]
            return found if is_wanted(node) and is_by_channel(found) else None
        read = [v for v in node.inputs if not v.is_constant]
        if len(read) != 1 or read[0].shape != value.shape or len(chain) == LONGEST:
            return None
        if not _is_orderly(node):
            return None
        chain.append(node)
        value = read[0]
    return None


def _is_orderly(node: Node) -> bool:
    """Whether a node of one operand and constants gives more for more."""
    if not isinstance(node.op, Elementwise) or node.op.name not in ORDERLY:
        return False
    scales = {"mul": node.inputs, "quantize": node.inputs[1:2]}.get(node.op.name, ())
    return all(bool(np.all(v.data > 0)) for v in scales if v.data is not None)


def _is_plain(node: Node) -> bool:
    filters = node.inputs[1]
    return node.op == _CONV and filters.shape[:2] == (3, 3) and filters.is_constant
