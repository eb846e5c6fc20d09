"""A task: what may become one kernel. An anchor with the elementwise work around it, as data.

    inputs ──▶ prologue ──▶ anchor ──▶ epilogue ──▶ outputs
                 (elementwise,   (conv, matmul,   (elementwise, with more
                  on input 0)     reduction, …)    operands, residuals too)

A task without an anchor is elementwise altogether: then everything stands in the epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planish.fusion.expression import Expression, Instruction, Leaf, identity
from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.elementwise import Cast, Elementwise

ACCUMULATOR = -1
"""The operand number of a leaf that is the anchor's (first) output, or a prologue's result."""

PRECISIONS = {
    DType.FLOAT64: "fp64",
    DType.FLOAT32: "fp32",
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
}
"""What the precision of a floating-point dtype is called; others have their dtype's name."""


@dataclass(frozen=True)
class Fused:
    """An expression with, for each leaf, which of the task's inputs it reads.

    ``sources[i]`` is an index into `Task.inputs`, `ACCUMULATOR`, or None for a constant leaf.
    """

    expression: Expression
    sources: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class Task:
    """A convex set of nodes that one kernel can run.

    Attributes
    ----------
    nodes : tuple of Node
        In topological order.
    anchor : Node or None
        The one node that is not elementwise.
    inputs : tuple of Value
        What comes from outside: the anchor's inputs first (its input 0 replaced by the prologue's
        first operand, if there is a prologue), then further operands, each once.
    outputs : tuple of Value
        What goes outside. With an anchor of several outputs: those, and no epilogue.
    prologue : Fused or None
        Elementwise work on the anchor's input 0. Its leaves read `inputs`.
    epilogue : Fused
        Elementwise work on the anchor's output; as many results as `outputs`.
    """

    nodes: tuple[Node, ...]
    anchor: Node | None
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    prologue: Fused | None
    epilogue: Fused

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def name(self) -> str:
        """The name of the node whose result this is."""
        return self.nodes[-1].name

    @property
    def origin(self) -> str:
        """The user's ops in this task."""
        return " + ".join(dict.fromkeys(n.origin or n.name for n in self.nodes))

    @cached_property
    def precision(self) -> str:
        """The precision it computes in, by its dtypes: "fp32", "fp16", "int8", "bool", …."""
        for node in (self.anchor, *self.nodes):
            if node is None or (isinstance(node.op, Cast) and node is not self.nodes[-1]):
                continue
            values = (*node.outputs[:1], *node.inputs)
            found = next(
                (v for v in values if v.dtype.is_float), (*node.inputs, node.outputs[0])[0]
            )
            return PRECISIONS.get(found.dtype, found.dtype.numpy.name)
        raise AssertionError("a task has nodes")

    @cached_property
    def key(self) -> str:
        """Everything that a kernel for this task depends on but the constants' values."""
        anchor = str(self.anchor.op) if self.anchor else "elementwise"
        types = ", ".join(f"{'@' if v.is_constant else ''}{v.type}" for v in self.inputs)
        before = f"{self.prologue.expression} of {self.prologue.sources}" if self.prologue else "-"
        after = f"{self.epilogue.expression} of {self.epilogue.sources}"
        outputs = ", ".join(str(v.type) for v in self.outputs)
        return f"{anchor} ({types}) [{before}] [{after}] -> {outputs}"

    def evaluate(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs by the references, for concrete arrays of `inputs`. Attributes that hold
        symbolic dimensions must have been bound before.
        """
        known = dict(zip(self.inputs, arrays, strict=True))
        for node in self.nodes:
            values = [known.get(v, v.data) for v in node.inputs]
            known.update(zip(node.outputs, node.op.reference(*values), strict=True))  # type: ignore[arg-type]
        return [known[v] for v in self.outputs]


def make_task(nodes: Iterable[Node], anchor: Node | None = None) -> Task:
    """The task of a set of nodes in topological order.

    Nodes before the anchor form the prologue, nodes after it the epilogue. Constants of one
    element become constant leaves. The anchor must come with its inputs 1.. from outside the set.
    """
    nodes = tuple(nodes)
    inside = {v for n in nodes for v in n.outputs}
    members = set(nodes)
    position = nodes.index(anchor) if anchor else -1
    before, after = nodes[: max(position, 0)], nodes[position + 1 :]
    outputs = tuple(
        v for n in nodes for v in n.outputs if not v.users or any(u not in members for u in v.users)
    )
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    prologue = None
    if anchor:
        if before:
            fed = anchor.inputs[0]
            for node in before:  # the operand of the anchor's own shape comes first
                for value in node.inputs:
                    if value not in inside and value.shape == fed.shape:
                        operand(value)
            prologue = _fuse(before, (fed,), inside, operand, None)
        for value in anchor.inputs[1 if before else 0 :]:
            operand(value)
    if anchor and len(anchor.outputs) > 1:
        outputs = anchor.outputs
        dtype = outputs[0].dtype
        epilogue = Fused(identity(dtype), (ACCUMULATOR,))
    elif anchor:
        epilogue = _fuse(after, outputs, inside, operand, anchor.output)
    else:
        epilogue = _fuse(nodes, outputs, inside, operand, None)
    return Task(nodes, anchor, tuple(inputs), outputs, prologue, epilogue)


def _fuse(
    nodes: Sequence[Node],
    results: Sequence[Value],
    inside: set[Value],
    operand,
    accumulator: Value | None,
) -> Fused:
    """The expression of elementwise nodes; `operand` numbers the values that come from outside."""
    leaves: list[Leaf] = []
    sources: list[int | None] = []
    slots: dict[Value, int] = {}

    def leaf(value: Value, source: int | None, constant: object = None) -> None:
        slots[value] = len(leaves)
        leaves.append(Leaf(value.dtype, constant))  # type: ignore[arg-type]
        sources.append(source)

    if accumulator is not None:
        leaf(accumulator, ACCUMULATOR)
    for node in nodes:
        for value in node.inputs:
            if value in slots or (value in inside and value is not accumulator):
                continue
            if value.data is not None and value.data.size == 1:
                leaf(value, None, value.data.reshape(())[()].item())
            else:
                leaf(value, operand(value))
    instructions: list[Instruction] = []
    for node in nodes:
        assert isinstance(node.op, Elementwise)
        slots[node.output] = len(leaves) + len(instructions)
        args = tuple(slots[v] for v in node.inputs)
        instructions.append(Instruction(node.op, args, node.output.dtype))
    expression = Expression(tuple(leaves), tuple(instructions), tuple(slots[v] for v in results))
    return Fused(expression, tuple(sources))
