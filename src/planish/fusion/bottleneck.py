"""Recognises inverted bottlenecks: a 1x1 convolution before a pair whose first one is depthwise.

    x ─▶ 1x1 Conv ─▶ bias, activation ─▶ depthwise Conv ─▶ bias, activation ─▶ 1x1 Conv ─▶ epilogue

MobileNetV2 is made of them: the first convolution makes many channels of few and the last one few
of many, so that the two tensors between them are the largest of the network. As one task, beside
the three convolutions alone and the pair, neither need ever be in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.fusion.fused import Fused
from planish.fusion.pairs import (
    LONGEST,
    FoundPair,
    chain_above,
    find_pair,
    is_by_channel,
    is_pointwise,
    reads_of,
)
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv


@dataclass(frozen=True)
class Bottleneck:
    """What comes before the pair in a task of three convolutions, as data.

    Attributes
    ----------
    first : Conv
    filters : int
        Which of the task's inputs are its filters; its image is input 0.
    between : Fused
        Elementwise work on its result; the operands are constants of one number per channel.
    """

    first: Conv
    filters: int
    between: Fused

    def __str__(self) -> str:
        return f"{self.first} [{self.between.expression} of {self.between.sources}] then"


@dataclass(frozen=True)
class FoundBottleneck:
    """The nodes of a bottleneck by what they do, without an epilogue."""

    first: Node
    chain: tuple[Node, ...]
    pair: FoundPair

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {self.first, *self.chain, *self.pair.nodes}

    def feeds(self, after: Collection[Node]) -> bool:
        """Whether nodes behind the last convolution read what lies before it."""
        return reads_of(after, self.nodes - {self.pair.second})


def bottleneck_before(
    pair: FoundPair, free: Collection[Node], outputs: Collection[Value]
) -> FoundBottleneck | None:
    """The bottleneck in a graph that a pair ends; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return _find(pair, lambda n: n not in free, lambda v: v not in outputs)


def bottleneck_of(nodes: Collection[Node]) -> FoundBottleneck | None:
    """The bottleneck that these nodes are, perhaps with an epilogue; None for anything else."""
    members = set(nodes)
    convolutions = [n for n in nodes if isinstance(n.op, Conv)]
    if len(convolutions) != 3:
        return None
    pair = find_pair(convolutions[2], members.__contains__, lambda v: True)
    return _find(pair, members.__contains__, lambda v: True) if pair else None


def _find(
    pair: FoundPair, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundBottleneck | None:
    image = pair.first.inputs[0]
    if is_pointwise(pair.first) or len(image.users) != 1 or not is_hidden(image):
        return None
    above = chain_above(image, LONGEST, is_open, is_hidden)
    if above is None or not is_pointwise(above[0]) or not is_by_channel(above):
        return None
    return FoundBottleneck(above[0], tuple(above[1:]), pair)
