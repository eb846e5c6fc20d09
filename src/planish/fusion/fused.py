"""Elementwise work inside a task: an expression, and what its leaves read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.graph import Node, Value
from planish.ops.elementwise import Elementwise

ACCUMULATOR = -1
"""The operand number of a leaf that is the anchor's (first) output, or a prologue's result."""


@dataclass(frozen=True)
class Fused:
    """An expression with, for each leaf, which of the task's inputs it reads.

    ``sources[i]`` is an index into `Task.inputs`, `ACCUMULATOR`, or None for a constant leaf.
    """

    expression: Expression
    sources: tuple[int | None, ...]


def fuse(
    nodes: Sequence[Node],
    results: Sequence[Value],
    operand: Callable[[Value], int],
    accumulator: Value | None,
    skipped: Collection[Node] = (),
    beside: Value | None = None,
) -> Fused:
    """The expression of elementwise nodes in topological order.

    `operand` numbers the values that come from outside. Constants of one element become constant
    leaves. Nodes that are `skipped` give their input. What lies `beside` the accumulator was summed
    with it: the expression, which only adds the two, is given a zero for one of them.
    """
    leaves: list[Leaf] = []
    sources: list[int | None] = []
    slots: dict[Value, int] = {}
    computed = {v for n in nodes for v in n.outputs}

    def leaf(value: Value, source: int | None, constant: object = None) -> None:
        slots[value] = len(leaves)
        leaves.append(Leaf(value.dtype, constant))  # type: ignore[arg-type]
        sources.append(source)

    for value in (accumulator, beside):
        if value is not None:
            leaf(value, ACCUMULATOR)
    for node in nodes:
        for value in node.inputs:
            if value in slots or value in computed:
                continue
            if value.data is not None and value.data.size == 1:
                leaf(value, None, value.data.reshape(())[()].item())
            else:
                leaf(value, operand(value))
    instructions: list[Instruction] = []
    for node in nodes:
        if node in skipped:
            slots[node.output] = slots[node.inputs[0]]
            continue
        assert isinstance(node.op, Elementwise)
        slots[node.output] = len(leaves) + len(instructions)
        args = tuple(slots[v] for v in node.inputs)
        instructions.append(Instruction(node.op, args, node.output.dtype))
    expression = Expression(tuple(leaves), tuple(instructions), tuple(slots[v] for v in results))
    return Fused(expression, tuple(sources))
