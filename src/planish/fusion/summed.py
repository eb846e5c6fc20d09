"""Recognises a pair of 1x1 convolutions of which the first one is a sum of two.

    a ─▶ 1x1 Conv ─▶ bias ─┐
    b ─▶ 1x1 Conv ─▶ bias ─┴▶ Add ─▶ activation ─┬─▶ 1x1 Conv ─▶ epilogue
                                                 └─▶ others

Residual networks have it behind the blocks that change the number of channels. It is a pair
(`planish.fusion.pairs`) and a sum (`planish.fusion.sums`) in one: what is added is not written, and
what the sum gives is not read again by the last convolution.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from planish.fusion.pairs import FoundPair, find_pair, is_pointwise, reads_of
from planish.fusion.sums import FoundSum, find_sum
from planish.graph.graph import Node, Value
from planish.ops.conv import Conv


@dataclass(frozen=True)
class FoundSummed:
    """The nodes of such a pair by what they do, without an epilogue."""

    pair: FoundPair
    added: FoundSum

    @property
    def first(self) -> Node:
        """The convolution that is added to the pair's first one."""
        return self.added.first

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return self.pair.nodes | self.added.nodes

    @property
    def chain(self) -> set[Node]:
        """Those between the convolutions."""
        return self.nodes - {self.first, self.pair.first, self.pair.second}

    def feeds(self, after: Collection[Node]) -> bool:
        """Whether nodes behind the last convolution read what lies before it."""
        return reads_of(after, self.nodes - {self.pair.second})


def summed_before(
    pair: FoundPair, free: Collection[Node], outputs: Collection[Value]
) -> FoundSummed | None:
    """The sum in a graph that a pair begins with; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    added = find_sum(pair.first, lambda n: n not in free, lambda v: v not in outputs)
    return _checked(pair, added)


def summed_of(nodes: Collection[Node]) -> FoundSummed | None:
    """What these nodes are, perhaps with an epilogue; None for anything else."""
    members = set(nodes)
    convolutions = [n for n in nodes if isinstance(n.op, Conv)]
    if len(convolutions) != 3:
        return None
    pair = find_pair(convolutions[2], members.__contains__, lambda v: True)
    if pair is None:
        return None
    return _checked(pair, find_sum(pair.first, members.__contains__, lambda v: True))


def _checked(pair: FoundPair, added: FoundSum | None) -> FoundSummed | None:
    if added is None or added.join not in pair.chain or added.first is pair.first:
        return None
    both = is_pointwise(pair.first) and isinstance(added.first.op, Conv)
    window = added.first.inputs[1].shape[:-2]
    return FoundSummed(pair, added) if both and set(window) == {1} else None
