"""Which nodes stay in float32, and why."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.attentions import Form, attention, attention_task
from helpers.halves import BF16, F16, F32, deviation, lowered, masked_attention, named, normalized
from helpers.networks import N, Net, feeds, residual_net
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import (
    Cast,
    Clip,
    Concat,
    CumSum,
    Gather,
    GridSample,
    Lstm,
    MatMul,
    Pad,
    ReduceMean,
    ReduceSum,
    Reshape,
    Transpose,
    ew,
)
from planish.precision.policy import decide


def reasons(graph: Graph, dtype: DType = F16) -> dict[str, str]:
    """Why nodes are kept, by name."""
    return {n.name: why for n, why in decide(graph, dtype).kept.items()}


def scalar(net: Net, number: float):
    return net.graph.constant(np.float32(number))


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_an_epsilon_stays_an_epsilon(epsilon: float) -> None:
    """Rows of zeros are divided by the root of epsilon: where that became 0 they would be NaN."""
    before, after, decision = lowered(normalized(epsilon))
    kept = {n.name for n in decision.kept}
    assert {"squares", "total", "inverse", "unit"} <= kept
    zeros = {"x": np.zeros((2, 8), np.float32)}
    assert deviation(before, after, zeros) == [(0.0, 0.0)]
    ((error, scale),) = deviation(before, after, feeds(before, 4))
    assert 0 < error < 1e-2 * scale


@pytest.mark.parametrize("op", ["add", "maximum", "clip"])
def test_epsilons_in_other_places(op: str) -> None:
    net = Net()
    x = net.relu(net.dense(net.input(N, 4), 4))
    made = {
        "add": lambda: net.graph.add(ew.Add(), x, scalar(net, 1e-9), name="guard"),
        "maximum": lambda: net.graph.add(ew.Maximum(), x, scalar(net, 1e-9), name="guard"),
        "clip": lambda: net.graph.add(Clip(1e-9, float("inf")), x, name="guard"),
    }[op]()
    log = net.graph.add(ew.Log(), made, name="log")
    why = reasons(net.output(net.dense(log, 2)))
    assert "too small for float16" in why["guard"]
    assert "too small" in why["log"]
    assert "guard" not in reasons(net.graph, BF16), "bfloat16 holds 1e-9"


@pytest.mark.parametrize("number", [65504.0, 7e4, -1e9, np.inf])
def test_constants_that_overflow(number: float) -> None:
    net = Net()
    y = net.graph.add(
        ew.Maximum(), net.dense(net.input(N, 4), 4), scalar(net, number), name="limit"
    )
    why = reasons(net.output(net.dense(y, 2)))
    overflows = np.isfinite(number) and abs(number) > 65504
    assert ("limit" in why) == overflows
    if overflows:
        assert "overflows float16" in why["limit"]
        assert "mat_mul_1" in why, "what it gives may overflow too"


def test_weights_that_overflow_and_weights_that_are_tiny() -> None:
    net = Net()
    x = net.input(N, 4)
    big = net.graph.constant(np.full((4, 4), 1e6, np.float32))
    tiny = net.graph.constant(np.full((4, 4), 1e-8, np.float32))
    few = net.graph.constant(np.array([[1, 1e-9]] * 4, np.float32))
    for name, w in (("big", big), ("tiny", tiny), ("few", few)):
        net.graph.mark_output(net.graph.add(MatMul(), x, w, name=name), name)
    why = reasons(net.graph)
    assert set(why) == {"big", "tiny"}, "single weights may vanish"


def test_a_mask_keeps_the_softmax() -> None:
    before, after, decision = lowered(masked_attention())
    assert [n.name for n in decision.kept] == ["off", "total", "weights"]
    given = feeds(before)
    given["mask"] = np.ones_like(given["mask"])
    given["mask"][0, 0, 2:] = 0
    ((error, scale),) = deviation(before, after, given)
    assert error < 1e-2 * scale, "rows that are masked altogether are not NaN"


def test_attention_of_levels_stays_together() -> None:
    """What is between levels and levels is one kernel's; its mask comes from halves."""
    graph = attention(Form(levels="floats", mask="keys", scaled="q"))
    mask = next(v for v in graph.inputs if v.name == "mask")
    (reader,) = mask.users
    (y,) = graph.outputs
    net = Net()
    net.graph = graph
    scaled = graph.add(ew.Tanh(), mask, name="mask_of_halves")
    inputs = tuple(scaled if v is mask else v for v in reader.inputs)
    graph.set_inputs(reader, inputs)
    after = graph.add(MatMul(), y, net.weights(16, 16), name="after")
    graph.mark_output(after, "z")
    decision = decide(graph, BF16)
    inside = set(attention_task(graph).nodes)
    assert not inside & decision.lowered.keys()
    assert {"after"} <= {node.name for node in decision.lowered}


def test_padding_with_the_least_float() -> None:
    net = Net()
    y = net.dense(net.input(2, 4), 4)
    padded = net.graph.add(Pad(((0, 0), (1, 1)), "constant", -3e38), y, name="padded")
    assert "overflows" in reasons(net.output(net.graph.add(ew.Relu(), padded)))["padded"]


def test_powers_that_are_summed() -> None:
    net = Net()
    y = net.dense(net.input(N, 8), 8)
    square = net.graph.add(ew.Square(), y, name="square")
    mean = net.graph.add(ReduceMean((1,), True), net.graph.add(ew.Mul(), square, scalar(net, 2)))
    alone = net.graph.add(ew.Square(), y, name="alone")
    bounded = net.graph.add(ew.Square(), net.graph.add(ew.Tanh(), y), name="bounded")
    total = net.graph.add(ReduceMean((1,), False), bounded, name="total")
    graph = net.output(
        net.add(mean, y), net.dense(alone, 4), net.dense(net.reshape(total, N, 1), 2)
    )
    why = reasons(graph)
    assert {"square", "mul", "reduce_mean"} <= set(why)
    assert not {"alone", "bounded", "total"} & set(why)


def test_coordinates() -> None:
    net = Net()
    y = net.dense(net.input(N, 2), 5000)
    places = net.graph.constant(np.arange(5000, dtype=np.float32), "places")
    moved = net.graph.add(ew.Add(), y, places, name="moved")
    ids = net.graph.input("ids", TensorType((N, 5000), DType.INT32))
    number = net.graph.add(Cast(F32), ids, name="number")
    shifted = net.graph.add(ew.Add(), number, y, name="shifted")
    flags = net.graph.add(Cast(F32), net.graph.add(ew.Less(), ids, ids), name="flags")
    off = net.graph.add(ew.Mul(), flags, y, name="off")
    why = reasons(net.output(moved, shifted, off))
    assert "coordinates apart" in why["moved"]
    assert "coordinate" in why["number"]
    assert "coordinate" in why["shifted"]
    assert not {"flags", "off"} & set(why)


def test_features_under_a_mask_of_integers_are_no_coordinates() -> None:
    net = Net()
    mask = net.graph.input("mask", TensorType((N, 1), DType.INT64))
    y = net.dense(net.input(N, 8), 8)
    off = net.graph.add(ew.Mul(), y, net.graph.add(Cast(F32), mask), name="off")
    graph = net.output(net.dense(net.graph.add(ew.Relu(), off, name="after"), 4))
    assert "after" not in reasons(graph)


def test_sampling_places() -> None:
    net = Net()
    x = net.conv(net.input(1, 8, 8, 3), 4, 3)
    raw = net.conv(net.input(1, 8, 8, 3, name="z"), 2, 3)
    grid = net.graph.add(ew.Tanh(), raw, name="grid")
    net.graph.add(GridSample("linear", "zeros"), x, grid, name="sample")
    graph = net.output(net.conv(named(net.graph, "sample").output, 4))
    before, after, decision = lowered(graph)
    assert [n.name for n in decision.kept] == ["grid"]
    sample = named(after, "sample")
    assert [v.dtype for v in sample.inputs] == [F16, F32]
    deviation(before, after, feeds(before))


def test_sums_recurrence_and_float64_stay() -> None:
    net = Net()
    y = net.dense(net.input(2, 8), 8)
    net.graph.add(CumSum(1), y, name="running")
    net.graph.add(ReduceSum((1,), False), y, name="total")
    wide = net.graph.add(Cast(DType.FLOAT64), y, name="wide")
    x = net.input(3, 2, 1, 4, 5, name="steps")
    states = net.input(1, 2, 5, name="state"), net.input(1, 2, 5, name="cell")
    activations = tuple((name, 0.0, 0.0) for name in ("sigmoid", "tanh", "tanh"))
    op = Lstm((False,), activations)
    lstm = net.graph.add_node(op, (x, net.weights(1, 5, 4, 5), *states), name="lstm")
    outputs = [named(net.graph, name).output for name in ("running", "total")]
    why = reasons(net.output(*outputs, wide, lstm.outputs[0]))
    assert {"running", "total", "wide", "lstm"} <= set(why)


def test_moves_go_with_their_neighbours() -> None:
    net = Net()
    x = net.input(2, 4, 6)
    turned = net.graph.add(Transpose((0, 2, 1)), x, name="turned")
    y = net.dense(turned, 6)
    back = net.graph.add(Transpose((0, 2, 1)), y, name="back")
    kept = net.graph.add(CumSum(1), x, name="running")
    moved = net.graph.add(Transpose((0, 2, 1)), kept, name="moved")
    mixed = net.graph.add(Concat(2), back, moved, name="mixed")
    why = reasons(net.output(back, mixed))
    assert "turned" not in why
    assert "back" not in why
    assert {"moved", "mixed"} <= set(why), "rounding there would be for nothing"


def test_what_gives_an_output_its_shape_stays() -> None:
    """The product behind it then gives float32 at once, not rounded to halves before."""
    net = Net()
    y = net.bias(net.conv(net.input(N, 4, 4, 8), 6, 3))
    graph = net.output(net.graph.add(Reshape((N, 6 * 4 * 4)), y))
    before, after, decision = lowered(graph)
    assert {n.name for n in decision.kept} == {"reshape"}
    (cast,) = (n for n in after.nodes if isinstance(n.op, Cast) and n.op.to is F32)
    assert cast.inputs[0].producer is not None
    assert isinstance(cast.inputs[0].producer.op, ew.Add)
    ((error, scale),) = deviation(before, after, feeds(before, 4))
    assert 0 < error < 1e-2 * scale


def test_tables_are_halved_where_only_halves_read_them() -> None:
    net = Net()
    ids = net.graph.input("ids", TensorType((N,), DType.INT64))
    first = net.graph.add(Gather(), net.weights(10, 8), ids, name="first")
    second = net.graph.add(Gather(), net.weights(10, 8), ids, name="second")
    graph = net.output(net.dense(first, 4), net.dense(second, 4), second)
    assert set(reasons(graph)) == {"second"}


def test_elementwise_networks_have_nothing_to_gain() -> None:
    net = Net()
    x = net.input(N, 8)
    graph = net.output(net.graph.add(ew.Exp(), net.relu(net.bias(x))))
    decision = decide(graph, F16)
    assert not decision.lowered
    assert len(decision.kept) == len(graph.nodes)


def test_what_users_ask_for_counts() -> None:
    graph = residual_net()
    conv, exp = graph.nodes[0], graph.nodes[1]
    decision = decide(graph, F16, {conv: F32, exp: BF16})
    assert conv in decision.kept
    assert decision.lowered[exp] is BF16
    graph = normalized(1e-12)
    total = named(graph, "total")
    assert total in decide(graph, F16).kept
    assert decide(graph, F16, {total: F16}).lowered[total] is F16


def test_halves_of_the_model_are_no_business_of_the_policy() -> None:
    net = Net()
    x = net.graph.input("x", TensorType((2, 3), F16))
    decision = decide(net.output(net.relu(x)), F16)
    assert not decision.lowered
    assert not decision.kept
