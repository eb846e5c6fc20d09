"""The whole list of passes: real models, random graphs, and what `optimize` promises."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

import planish.passes
from planish.errors import ModelError
from planish.graph.dims import symbol
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, LeakyRelu, ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import BatchNorm, Softmax
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.reduce import ReduceMax, ReduceMean
from planish.ops.shape import Concat, Identity, Pad, Reshape, ShapeOf, Slice, Transpose
from planish.passes import PASSES, Group, optimize

N = symbol("N")
SAME = ((1, 1), (1, 1))
DATA = os.environ.get("PLANISH_TEST_DATA")


def test_stages_are_observed(net):
    x = net.add(Identity(), net.input(N, 3))
    net.output(net.add(ew.Relu(), x))
    stages = []
    optimize(net.graph, observe=lambda name, graph: stages.append((name, len(graph.nodes))))
    assert stages == [("input", 2), ("remove_identities", 1)]


def test_every_pass_has_a_name_of_its_own():
    for group in PASSES:
        names = [one.__name__ for one in group.passes]
        assert len(names) == len(set(names))


def test_a_faulty_pass_is_named(net, monkeypatch):
    def break_it(graph):
        graph.nodes[0].output.users.clear()
        return True

    net.output(net.add(ew.Exp(), net.add(ew.Relu(), net.input(N, 3))))
    monkeypatch.setattr(planish.passes, "PASSES", (Group("faulty", (break_it,)),))
    with pytest.raises(ModelError, match="break_it"):
        optimize(net.graph)


def test_unused_nodes_disappear(net, check):
    x = net.input(N, 3)
    net.add(ew.Exp(), x)
    net.output(net.add(ew.Tanh(), x))
    assert check(net, optimize) == ["tanh"]


def test_outputs_that_are_inputs_constants_or_equal(net, check):
    x = net.input(N, 3)
    y = net.add(ew.Mul(), x, net.constant(1.0))
    net.output(x, y, net.add(ew.Exp(), net.weights(3)), net.add(ew.Exp(), x), net.add(ew.Exp(), y))
    assert check(net, optimize) == ["exp"]
    assert net.graph.output_names == [f"out{i}" for i in range(5)]


def test_a_shape_as_output(net, check):
    x = net.input(N, 3)
    net.output(net.add(Cast(DType.FLOAT32), net.add(ShapeOf(), x)), net.add(ew.Exp(), x))
    assert sorted(check(net, optimize)) == ["cast", "dims", "exp"]


@pytest.mark.parametrize("seed", range(80))
def test_random_graphs(net, check, seed):
    random = np.random.default_rng(1000 + seed)
    values = [net.input(N, 6, 6, 4), net.input(N, 6, 6, 4, name="y")]
    for _ in range(18):
        a, b = (values[i] for i in random.integers(max(0, len(values) - 4), len(values), 2))
        values.append(random_op(net, random, a, b))
    net.output(*(values[i] for i in random.choice(range(2, len(values)), 3, replace=False)))
    check(net, optimize, rtol=2e-3, atol=2e-3)
    count = len(net.graph.nodes)
    optimize(net.graph)
    assert len(net.graph.nodes) == count, "optimizing again finds more to do"


def random_op(net, random, a, b):
    """A node or small pattern from and to [N, 6, 6, 4], with values of moderate size."""
    number = float(random.choice([-1.0, 0.0, 0.5, 1.0]))
    channels = net.constant(random.uniform(-1, 1, 4))
    filters = net.constant(random.uniform(-0.3, 0.3, (3, 3, 4, 4)))
    point = net.constant(random.uniform(-0.5, 0.5, (1, 1, 4, 4)))
    matrix = net.constant(random.uniform(-0.5, 0.5, (4, 4)))
    axis = int(random.integers(1, 4))
    perm = tuple(random.permutation([1, 2]).tolist())
    match int(random.integers(0, 22)):
        case 0:
            return net.add(ew.Add(), a, channels)
        case 1:
            return net.add(ew.Mul(), channels, a)
        case 2:
            return net.add(ew.Sub(), a, net.constant(number))
        case 3:
            return net.add(ew.Mul(), a, net.constant(number))
        case 4:
            return net.add(Conv((1, 1), SAME, (1, 1)), a, filters)
        case 5:
            return net.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), a, point)
        case 6:
            padded = net.add(Pad(((0, 0), (1, 1), (1, 1), (0, 0))), a)
            return net.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), padded, filters)
        case 7:
            variance = net.constant(random.uniform(0.5, 1, 4))
            return net.add(BatchNorm(1e-3), a, channels, channels, channels, variance)
        case 8:
            return net.add(ew.Tanh(), net.add(ew.Add(), a, b))
        case 9:
            return net.add(ew.Tanh(), net.add(ew.Mul(), a, b))
        case 10:
            return net.add(ew.Relu(), a)
        case 11:
            return net.add(Clip(min(number, 0.0), 1.0), a)
        case 12:
            return net.add(ew.Maximum(), a, net.add(ew.Mul(), a, net.constant(0.25)))
        case 13:
            return net.add(ew.Mul(), a, net.add(ew.Sigmoid(), a))
        case 14:
            both = net.add(Concat(axis), a, b)
            start = int(random.integers(0, (1, 7, 7, 5)[axis]))
            begin = tuple(start if i == axis else 0 for i in range(4))
            return net.add(Slice(begin, a.shape, (1,) * 4), both)
        case 15:
            flat = net.add(Reshape((N * 36, 4)), a)
            return net.add(Reshape((N, 6, 6, 4)), net.add(MatMul(), flat, matrix))
        case 16:
            return net.add(Transpose((0, *perm, 3)), net.add(Transpose((0, 2, 1, 3)), a))
        case 17:
            first = net.add(Transpose((0, 3, 1, 2)), a)
            return net.add(Transpose((0, 2, 3, 1)), net.add(LeakyRelu(0.1), first))
        case 18:
            return net.add(ew.Sub(), a, net.add(ReduceMean((axis,), True), b))
        case 19:
            value = float(random.choice([0.0, -math.inf]))
            padded = net.add(Pad(((0, 0), (1, 1), (1, 1), (0, 0)), value=value), a)
            return net.add(MaxPool((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)), padded)
        case 20:
            e = net.add(ew.Exp(), net.add(ew.Sub(), a, net.add(ReduceMax((3,), True), a)))
            return net.add(Softmax(axis), e)
        case _:
            return net.add(AvgPool((3, 3), (1, 1), SAME, bool(random.integers(0, 2))), a)


# ---- real models -----------------------------------------------------------------------------

MODELS = {
    # name: (most nodes that may be left, transposes left)
    "squeezenet1.1.onnx": (91, 1),
    "resnet20_cifar10.onnx": (74, 1),
    "nanodet_m_320_coco.onnx": (290, 17),  # 16 channel shuffles of the last two axes
    "mobilenet_v2_1.0_224_frozen.pb": (152, 0),
    "resnet20_cifar10_frozen.pb": (74, 0),
    "ssd_mobilenet_v1_0.75_300_coco_frozen.pb": (173, 0),
}


def import_model(name):
    path = Path(DATA) / name
    if path.suffix == ".onnx":
        pytest.importorskip("onnx")
        from planish.frontends.onnx.convert import import_model
    else:
        pytest.importorskip("tensorflow")
        from planish.frontends.tensorflow.convert import import_model
    return import_model(path)


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="PLANISH_TEST_DATA is not set")
@pytest.mark.parametrize("name", MODELS)
def test_real_models(name):
    nodes, transposes = MODELS[name]
    graph = import_model(name)
    optimize(graph)
    assert len(graph.nodes) <= nodes
    assert sum(isinstance(n.op, Transpose) for n in graph.nodes) == transposes
    assert all(n.origin for n in graph.nodes)


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="PLANISH_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["resnet20_cifar10.onnx", "resnet20_cifar10_frozen.pb"])
def test_real_models_keep_their_results(name):
    before, after = import_model(name), import_model(name)
    optimize(after)
    shape = [2 if not isinstance(d, int) else d for d in before.inputs[0].shape]
    given = {before.inputs[0].name: np.random.default_rng(0).random(shape, np.float32)}
    for old, new in zip(interpret(before, given), interpret(after, given), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-3, atol=1e-4)
