"""Lowered graphs are valid, keep their inputs and outputs, and give nearly what they gave."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.encoders import EncoderSize, bert, tokens
from helpers.halves import (
    BF16,
    F16,
    F32,
    detector,
    deviation,
    lowered,
    masked_attention,
    named,
    normalized,
)
from helpers.networks import N, Net, feeds, mobile_net, residual_net
from planish.frontends import import_model
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import Cast, Conv, MatMul, ReduceMean, TopK, ew
from planish.precision.lower import lower

ROUNDING = {F16: 2.0**-11, BF16: 2.0**-8}


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(
    "make", [residual_net, lambda: mobile_net(32), masked_attention, lambda: normalized(1e-12)]
)
def test_networks_give_nearly_the_same(make, dtype: DType) -> None:
    before, after, _ = lowered(make(), dtype)
    given = feeds(before, 3, seed=1)
    if "mask" in given:
        given["mask"] = np.round(np.abs(given["mask"]) % 1).astype(np.float32)
    for error, scale in deviation(before, after, given):
        assert 0 < error < 12 * ROUNDING[dtype] * scale
    assert [v.type for v in after.inputs] == [v.type for v in before.inputs]
    assert [v.dtype for v in after.outputs] == [v.dtype for v in before.outputs]
    products = [n for n in after.nodes if isinstance(n.op, Conv | MatMul)]
    assert products
    assert all(v.dtype is dtype for n in products for v in (*n.inputs, *n.outputs))


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_an_encoder_with_a_mask(dtype: DType) -> None:
    size = EncoderSize()
    before, after, decision = lowered(import_model(bert(size)), dtype)
    ids, mask = tokens(size, 3, 10)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    for error, scale in deviation(before, after, given):
        assert 0 < error < 12 * ROUNDING[dtype] * scale
    softmaxes = [n for n in decision.kept if n.op.name == "softmax"]
    assert len(softmaxes) == size.depth, "scores under a mask of -3.4e38 need float32"


def test_a_detector_finds_the_same() -> None:
    before, after, _ = lowered(detector())
    for name in ("centre", "grown", "half", "likely", "suppress"):
        assert all(v.dtype is not F16 for v in named(after, name).outputs), name
    assert all(n.output.dtype is F16 for n in after.nodes if isinstance(n.op, Conv))
    boxes, scores, classes, valid = deviation(before, after, feeds(before, seed=4))
    assert boxes[0] < 1e-2 * boxes[1]
    assert scores[0] < 1e-2
    assert (classes[0], valid[0]) == (0, 0)


def shown(graph: Graph) -> list[str]:
    """The nodes in order: op, and dtype of the output."""
    return [f"{n.op.name} {n.outputs[0].dtype.value}" for n in graph.nodes]


def test_casts_stand_at_the_borders_only() -> None:
    _, after, _ = lowered(residual_net())
    assert shown(after) == [
        "cast f16",
        "conv f16",
        "add f16",
        "relu f16",
        "conv f16",
        "add f16",
        "add f16",
        "relu f16",
        "reduce_mean f16",
        "mat_mul f16",
        "add f16",
        "cast f32",
    ]


def test_one_narrow_copy_and_a_wide_one_for_each_reader() -> None:
    net = Net()
    x = net.input(N, 8)
    a = net.dense(x, 8)
    b = net.dense(x, 8)
    graph = net.output(
        net.graph.add(ew.Erf(), a), net.graph.add(ew.Tanh(), a), net.add(a, net.relu(b))
    )
    products = [n for n in graph.nodes if isinstance(n.op, MatMul)]
    lower(graph, dict.fromkeys(products, F16))
    casts = [n for n in graph.nodes if isinstance(n.op, Cast)]
    assert sum(n.op == Cast(F16) for n in casts) == 1
    assert sum(n.op == Cast(F32) for n in casts) == 4
    assert all(len(n.output.users) == 1 for n in casts if n.op == Cast(F32))
    assert all(n.origin for n in casts), "layers are called after users' ops"


def test_names_stay() -> None:
    before, after, _ = lowered(residual_net())
    kept = [n.name for n in after.nodes if not isinstance(n.op, Cast)]
    assert kept == [n.name for n in before.nodes]


def test_a_value_that_is_two_outputs_and_is_read() -> None:
    net = Net()
    y = net.relu(net.dense(net.input(N, 4), 4))
    graph = net.output(y, y, net.dense(y, 2))
    before, after, _ = lowered(graph)
    assert [v.dtype for v in after.outputs] == [F32] * 3
    assert after.outputs[0] is after.outputs[1]
    assert all(error <= 1e-2 * scale for error, scale in deviation(before, after, feeds(before)))


def test_the_models_own_halves_need_no_cast() -> None:
    """f16 → f32 → product → f16, as models with mixed precision have it."""
    net = Net()
    x = net.graph.input("x", TensorType((2, 4), F16))
    wide = net.graph.add(Cast(F32), x)
    y = net.graph.add(Cast(F16), net.dense(wide, 3))
    before, after, _ = lowered(net.output(y))
    assert shown(after) == ["mat_mul f16"]
    assert after.outputs[0].dtype is F16
    deviation(before, after, feeds(before))


def test_constants_are_converted_once() -> None:
    net = Net()
    w = net.weights(4, 4)
    x = net.input(N, 4)
    y = net.graph.add(MatMul(), net.graph.add(MatMul(), x, w), w)
    _, after, _ = lowered(net.output(net.add(y, net.graph.add(MatMul(), y, w))))
    assert [v.dtype for v in after.constants()] == [F16]


def test_several_precisions_in_one_graph() -> None:
    net = Net()
    y = net.dense(net.relu(net.dense(net.input(N, 4), 4)), 4)
    graph = net.output(y)
    first, relu, second = graph.nodes
    lower(graph, {first: F16, relu: BF16, second: BF16})
    assert shown(graph) == [
        "cast f16",
        "mat_mul f16",
        "cast bf16",
        "relu bf16",
        "mat_mul bf16",
        "cast f32",
    ]


def test_nothing_to_lower_changes_nothing() -> None:
    graph = residual_net()
    text = str(graph)
    lower(graph, dict.fromkeys(graph.nodes, F32))
    assert str(graph) == text


def test_ops_of_several_outputs_and_integers() -> None:
    net = Net()
    y = net.dense(net.input(N, 8), 8)
    values, places = net.graph.add_node(TopK(2), (y,)).outputs
    mean = net.graph.add(ReduceMean((1,), False), y)
    graph = net.output(values, places, net.graph.add(ew.Greater(), mean, mean))
    before, after, _ = lowered(graph)
    assert [v.dtype for v in after.outputs] == [F32, DType.INT64, DType.BOOL]
    assert "greater bool" in shown(after)
    assert shown(after).count("cast f32") == 1
    deviation(before, after, feeds(before))


@pytest.mark.parametrize("seed", range(12))
def test_random_elementwise_graphs(seed: int) -> None:
    """Whatever is decided, the graph stays valid, and what it gives stays near."""
    random = np.random.default_rng(seed)
    net = Net(seed=seed)
    values = [net.input(N, 8), net.dense(net.input(N, 8, name="y"), 8)]
    unary = (ew.Tanh, ew.Sigmoid, ew.Relu, ew.Abs, ew.Softplus, ew.Sin)
    for _ in range(14):
        a, b = (values[i] for i in random.integers(max(0, len(values) - 4), len(values), 2))
        match int(random.integers(0, 7)):
            case 0:
                made = net.dense(a, 8)
            case 1:
                made = net.add(a, net.graph.constant(np.float32(10.0 ** random.integers(-12, 0))))
            case 2:
                made = net.concat(net.slice(a, 1, 0, 3), net.slice(b, 1, 3, 5), axis=1)
            case 3:
                made = net.graph.add(ew.Minimum(), a, b)
            case 4:
                squares = net.graph.add(ew.Square(), a)
                mean = net.graph.add(ReduceMean((1,), True), squares)
                epsilon = net.graph.constant(np.float32(1e-5))
                root = net.graph.add(ew.Rsqrt(), net.add(mean, epsilon))
                made = net.graph.add(ew.Mul(), a, root)
            case 5:
                made = net.graph.add(ew.Mul(), net.graph.add(ew.Tanh(), a), b)
            case _:
                made = net.graph.add(unary[int(random.integers(len(unary)))](), a)
        values.append(made)
    before, after, _ = lowered(net.output(*values[-3:]))
    for error, scale in deviation(before, after, feeds(before, 3, seed)):
        assert error <= 0.05 * scale
