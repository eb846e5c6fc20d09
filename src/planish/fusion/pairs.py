"""Recognises two convolutions of which the second only mixes the channels of what the first gives.

    x ─▶ depthwise Conv ─▶ bias, activation ─▶ 1x1 Conv ─▶ epilogue
    x ─▶ 1x1 Conv ─▶ bias, residual, activation ─┬─▶ 1x1 Conv ─▶ epilogue
                                                 └─▶ others

The nodes become one candidate task, beside both convolutions alone. What the first one gives, often
the largest tensor of the network, is then not read again, nor written unless others read it, too:
in that case it is the task's second output.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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
        Elementwise work on its result. Behind a depthwise convolution its operands are constants
        of one number per channel.
    kept : bool
        Whether what it gives is an output of the task.
    """

    first: Conv
    filters: int
    between: Fused
    kept: bool

    @property
    def is_depthwise(self) -> bool:
        """Whether the first convolution mixes no channels."""
        return self.first.groups > 1

    def __str__(self) -> str:
        kept = ", kept" if self.kept else ""
        return f"{self.first} [{self.between.expression} of {self.between.sources}{kept}] then"


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

    @property
    def inner(self) -> Value:
        """What the second convolution reads."""
        return self.second.inputs[0]

    @property
    def is_kept(self) -> bool:
        """Whether others read it, too."""
        return len(self.inner.users) > 1

    def feeds(self, after: Collection[Node]) -> bool:
        """Whether nodes behind the second convolution read what lies before it."""
        return reads_of(after, self.nodes - {self.second})


def pair_before(
    second: Node, free: Collection[Node], outputs: Collection[Value]
) -> FoundPair | None:
    """The pair in a graph that a convolution ends; None if there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    return find_pair(second, lambda n: n not in free, lambda v: v not in outputs)


def pair_of(nodes: Collection[Node]) -> FoundPair | None:
    """The pair that these nodes are, perhaps with an epilogue behind it; None for anything else."""
    convolutions = [n for n in nodes if isinstance(n.op, Conv)]
    if len(convolutions) != 2:
        return None
    members = set(nodes)
    return find_pair(convolutions[1], members.__contains__, lambda v: True)


def find_pair(
    second: Node, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> FoundPair | None:
    """The pair that a convolution ends, of open nodes, the values between them hidden."""
    if not is_pointwise(second) or not is_hidden(second.inputs[0]):
        return None
    above = chain_above(second.inputs[0], LONGEST, is_open, is_hidden)
    if above is None:
        return None
    first, *chain = above
    found = FoundPair(first, tuple(chain), second)
    if is_pointwise(first):
        return found
    return None if found.is_kept or not is_by_channel(above) else found


def reads_of(after: Collection[Node], before: Collection[Node]) -> bool:
    """Whether nodes read what others give."""
    given = {v for n in before for v in n.outputs}
    return any(v in given for n in after for v in n.inputs)


def is_by_channel(chain: Sequence[Node]) -> bool:
    """Whether the nodes behind a convolution have operands of one number per channel only."""
    inside = {v for n in chain for v in n.outputs}
    return all(_is_per_channel(v) for n in chain[1:] for v in n.inputs if v not in inside)


def chain_above(
    value: Value, longest: int, is_open: Callable[[Node], bool], is_hidden: Callable[[Value], bool]
) -> list[Node] | None:
    """The 1x1 or depthwise convolution above a value, and the elementwise nodes between them."""
    node = value.producer
    if node is None or not is_open(node):
        return None
    if isinstance(node.op, Conv):
        return [node] if is_pointwise(node) or _is_depthwise(node) else None
    if not isinstance(node.op, Elementwise) or longest == 0:
        return None
    for source in dict.fromkeys(node.inputs):
        if source.shape == value.shape and len(source.users) == 1 and is_hidden(source):
            above = chain_above(source, longest - 1, is_open, is_hidden)
            if above is not None:
                return [*above, node]
    return None


def _is_per_channel(value: Value) -> bool:
    """Whether a value is a constant of one number, or one per channel."""
    return value.data is not None and value.data.size == (value.data.shape or (1,))[-1]


def is_pointwise(node: Node) -> bool:
    """Whether it is a 1x1 convolution that keeps every pixel."""
    op = node.op
    if not isinstance(op, Conv) or op.groups != 1 or not node.inputs[1].is_constant:
        return False
    window = node.inputs[1].shape[:-2]
    padded = any(edge != 0 for edges in op.padding for edge in edges)
    return len(window) == 2 and {*window, *op.strides} == {1} and not padded


def _is_depthwise(node: Node) -> bool:
    """Whether it has two spatial axes, several channels, and one filter for each."""
    op = node.op
    assert isinstance(op, Conv)
    x, filters = node.inputs
    if len(op.strides) != 2 or not filters.is_constant or op.groups == 1:
        return False
    return op.groups == x.shape[-1] == filters.shape[-1] and filters.shape[-2] == 1
