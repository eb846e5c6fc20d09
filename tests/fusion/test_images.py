"""Which convolutions of transposed images become one task, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.images import Image
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.ops.shape import Transpose
from planish.plan.check import check_nodes
from planish.targets.base import Binding
from planish.tuning.rows import sampled_rows, take

F16, F32 = DType.FLOAT16, DType.FLOAT32
PERM = (0, 2, 3, 1)


class ImageNet:
    """A cast, a transposition, a scale, a convolution, a bias."""

    def __init__(
        self, perm=PERM, scale=(), before=True, shape=(2, 3, 8, 9), shared=False, dtype=F16
    ) -> None:
        rng = np.random.default_rng(2)
        self.graph = Graph()
        self.x = self.graph.input("x", TensorType(shape, F32 if before else dtype))
        y = self.graph.add(Cast(dtype), self.x) if before else self.x
        y = self.graph.add(Transpose(perm), y)
        if shared:
            self.graph.mark_output(self.graph.add(ew.Neg(), y), "others")
        if scale is not None:
            numbers = rng.standard_normal(scale or (shape[perm[-1]],)).astype(dtype.numpy)
            y = self.graph.add(ew.Mul(), y, self.graph.constant(numbers))
        weights = rng.standard_normal((3, 3, shape[perm[-1]], 5)).astype(dtype.numpy)
        self.conv = self.graph.add(
            Conv((2, 1), ((1, 1), (1, 1)), (1, 1)), y, self.graph.constant(weights)
        )
        bias = rng.standard_normal(5).astype(dtype.numpy)
        self.result = self.graph.add(ew.Add(), self.conv, self.graph.constant(bias))
        self.graph.mark_output(self.result, "y")

    def task(self) -> Task:
        return make_task(self.graph.nodes, self.conv.producer)


def images(graph: Graph) -> list[frozenset[str]]:
    return [frozenset(n.name for n in t.nodes) for t in propose(graph) if t.image]


def test_it_is_proposed_beside_its_parts() -> None:
    graph = ImageNet().graph
    everything = frozenset(n.name for n in graph.nodes)
    last = graph.nodes[-1].name
    assert set(images(graph)) == {everything, everything - {last}}
    others = [t for t in propose(graph) if not t.image]
    assert {n for t in others for n in t.nodes} == set(graph.nodes)


def test_the_task() -> None:
    net = ImageNet()
    task = net.task()
    assert task.image == Image(PERM)
    assert (task.kind, task.pattern, task.precision) == ("image", "image", "fp16")
    assert task.anchor is net.conv.producer
    assert task.inputs[0] is net.x
    assert task.prologue is not None
    assert [str(i.op) for i in task.prologue.expression.instructions] == [
        str(Cast(F16)),
        str(ew.Mul()),
    ]
    assert "perm=(0, 2, 3, 1)" in task.key
    assert task.key != ImageNet(perm=(0, 3, 2, 1)).task().key


def test_without_elementwise_work() -> None:
    net = ImageNet(scale=None, before=False)
    task = net.task()
    assert task.image and task.prologue is not None and task.prologue.expression.is_copy
    assert task.inputs[0] is net.x


@pytest.mark.parametrize(
    "more",
    [
        {"shared": True},  # others need the transposed image, too
        {"perm": (2, 0, 3, 1), "shape": (4, 8, 2, 9)},  # rows of which others cannot be told
        {
            "scale": (2, 4, 9, 3),
            "shape": (2, 3, 4, 9),
        },  # fine: constants behind may be of any shape
    ],
    ids=str,
)
def test_what_is_none(more) -> None:
    found = images(ImageNet(**more).graph)
    assert bool(found) == ("scale" in more)


def test_numbers_per_channel_before_the_transposition_are_left_out() -> None:
    graph = Graph()
    x = graph.input("x", TensorType((1, 3, 4, 4), F32))
    scaled = graph.add(ew.Mul(), x, graph.constant(np.ones((3, 1, 1), np.float32)))
    turned = graph.add(Transpose(PERM), scaled)
    weights = graph.constant(np.ones((1, 1, 3, 4), np.float32))
    y = graph.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), turned, weights)
    graph.mark_output(y, "y")
    assert images(graph) == [frozenset({turned.producer.name, y.producer.name})]  # type: ignore[union-attr]


def test_rows_stand_for_all() -> None:
    task = ImageNet(shape=(128, 3, 96, 96)).task()
    binding = Binding({})
    rows = sampled_rows(task, binding)
    assert rows is not None
    rng = np.random.default_rng(3)
    arrays = [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(np.float32)
        for v in task.inputs
    ]
    few = take(task, binding, arrays, rows)
    assert few[0].shape[0] == len(rows)
    (whole,), (part,) = task.evaluate(arrays), task.evaluate([np.asarray(a) for a in few])
    np.testing.assert_array_equal(whole[rows], part)


def test_plans_may_hold_it() -> None:
    net = ImageNet()
    nodes = net.graph.nodes
    check_nodes(net.graph, nodes, net.conv.producer)
    check_nodes(net.graph, nodes[:-1], net.conv.producer)
    check_nodes(net.graph, nodes[1:], net.conv.producer)
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(net.graph, nodes, nodes[1])
    with pytest.raises(PlanError):
        check_nodes(net.graph, nodes[:-2], None)
