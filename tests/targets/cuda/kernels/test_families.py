"""What runs on GPUs without a host step: every op, of every dtype, but for a list of exceptions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.fuzz.generate import op_recipes
from helpers.fuzz.specs import has_spec
from planish.errors import PlanishError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.graph import Node
from planish.ops.base import OPS
from planish.ops.elementwise import Elementwise
from planish.targets.base import Binding
from planish.targets.cuda.kernels import FAMILIES

HOST_STEPS = {
    "onnx_fallback": "ONNX's own reference computes it: there is no other definition",
}
"""Ops that no kernel computes, each with its reason."""
UNUSUAL = {
    ("conv", DType.BOOL): "the CPU has no kernel either: no framework convolves truth values",
    ("conv_transpose", DType.BOOL): "as conv",
}
"""Dtypes of ops that no kernel computes, each with its reason."""
LIBRARIES = ("cudnn", "cublas")
"""Families that are not always there."""


def task_of(node: Node) -> Task:
    return make_task([node], None if isinstance(node.op, Elementwise) else node)


def has_kernel(task: Task, binding: Binding) -> bool:
    """Whether a generated kernel computes a task; whatever is fused with it or not."""
    return any(
        tactic.accepts(binding)
        for family in FAMILIES
        if family.pattern == task.pattern and not family.name.startswith(LIBRARIES)
        for tactic in family.tactics(task, binding)
    )


def nodes_of(name: str, count: int) -> Iterator[tuple[Node, Binding]]:
    """Nodes with random operands and attributes, none of which is empty."""
    for _, recipe in op_recipes(name, count):
        binding = Binding(dict(recipe.points[0]))
        for node in recipe.graph().nodes:
            if node.op.name == name and not binding.has_empty(task_of(node)):
                yield node, binding


def of_every_dtype(node: Node) -> Iterator[tuple[DType, Node]]:
    """The node with its first operand, and those of the same dtype, of every dtype it accepts."""
    for dtype in DType if node.inputs else ():
        graph = Graph()
        values = [
            graph.input(f"x{i}", TensorType(v.type.shape, dtype if same else v.dtype))
            for i, v in enumerate(node.inputs)
            for same in [v.dtype is node.inputs[0].dtype]
        ]
        try:
            yield dtype, graph.add_node(node.op, values)
        except PlanishError:
            continue  # it does not accept that dtype


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_has_kernels(name: str) -> None:
    if name in HOST_STEPS:
        assert not has_spec(OPS[name])
        return
    found = list(nodes_of(name, 6))
    assert found
    for node, binding in found:
        shown = f"{node.op} of {[str(v.type) for v in node.inputs]}"
        assert has_kernel(task_of(node), binding), shown


@pytest.mark.parametrize("name", sorted(OPS))
def test_every_op_has_kernels_of_every_dtype(name: str) -> None:
    if name in HOST_STEPS:
        return
    for node, binding in nodes_of(name, 1):
        for dtype, changed in of_every_dtype(node):
            expected = (name, dtype) not in UNUSUAL
            assert has_kernel(task_of(changed), binding) == expected, f"{node.op} of {dtype.value}"
