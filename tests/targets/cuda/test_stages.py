"""Shapes that depend on the data, on a target with memory of its own: what travels, what stays.

The plans are those of a GPU, their kernels are interpreted.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted_target import InterpretedArray, InterpretedExecutable, interpreted_engine
from helpers.networks import Net
from planish.errors import InputError
from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.ops import (
    Gather,
    NonZero,
    ReduceSum,
    Reshape,
    RoiAlign,
    SelectBoxes,
    Slice,
    ew,
)
from planish.runtime.engine import Engine


def first(graph: Graph, value: Value, size: DimLike) -> Value:
    """The first elements of a tensor along its first axis."""
    shape = (size, *value.shape[1:])
    return graph.add(Slice((0,) * len(shape), shape, (1,) * len(shape)), value)


def rows_net(shared: bool = False) -> Net:
    """The rows of a table where a vector is positive, through two dense layers.

    With `shared` a result of the first stage is read by the second.
    """
    net = Net()
    graph, x, table = net.graph, net.input(50, name="x"), net.input(50, 6, name="table")
    zero = graph.constant(np.zeros((), np.float32))
    node = graph.add_node(NonZero(), [graph.add(ew.Greater(), x, zero)])
    n = graph.measure(node.outputs[1], 50, "n")
    found = graph.add(Reshape((n,)), first(graph, node.outputs[0], n))
    rows = graph.add(Gather(), table, found)
    dense = net.relu(net.dense(net.relu(net.dense(rows, 9)), 7))
    if shared:
        total = graph.add(ReduceSum((0,), True), net.relu(table))
        net.output(net.add(graph.add(Slice((0, 0), (n, 6), (1, 1)), dense), total), total)
    else:
        net.output(dense, found)
    return net


def data(share: float, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(50) < share, 1.0, -1.0).astype(np.float32)
    return {"x": x, "table": rng.standard_normal((50, 6)).astype(np.float32)}


def assert_like_reference(engine: Engine, graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    expected = dict(zip([n for n, _, _ in graph.results()], interpret(graph, arrays), strict=True))
    got = engine(arrays)
    got = got if isinstance(got, dict) else {next(iter(expected)): got}
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


def test_counts_change() -> None:
    engine = interpreted_engine(rows_net().graph)
    assert len(engine.plan.stages.parts) == 2
    assert not engine.host_steps()
    with engine.create_execution_context() as context:
        for share in (0.1, 1.0, 0.4):
            arrays = data(share)
            expected = interpret(rows_net().graph, arrays)
            for got, array in zip(context.execute(arrays).values(), expected, strict=True):
                np.testing.assert_allclose(got, array, rtol=1e-5, atol=1e-5)


def test_only_results_travel() -> None:
    """What a stage hands over lies in memory of the target; what a stage does not read or write is
    not given to it.
    """
    engine = interpreted_engine(rows_net().graph)
    arrays = data(0.5)
    with engine.create_execution_context() as context:
        context.execute(arrays)
        memory, stages = context._memory, engine.plan.stages
        assert memory.nbytes > 0
        assert all(isinstance(b, InterpretedArray) for b in memory._buffers.values())
        own = {b.address for b in memory._buffers.values()}
    symbols = {"n": 32}  # 26 rows or so
    bound = [engine.bound({}, 0), engine.bound(symbols, 1)]
    executables = [b.executable for b in bound]
    for part, executable in zip(stages.parts, executables, strict=True):
        assert isinstance(executable, InterpretedExecutable)
        for inputs, outputs in executable.runs:
            assert [i for i, a in enumerate(inputs) if a] == list(part.inputs)
            for index, address in enumerate(outputs):
                alone = index in part.writes and index not in stages.shared
                assert (address in own) == (index in stages.shared and address != 0)
                assert alone or index in stages.shared or address == 0


def regions_net() -> Net:
    """Detection in two steps: boxes that are kept, and what their regions of an image hold."""
    net = Net()
    graph = net.graph
    image = net.input(1, 8, 9, 4, name="image")
    boxes, scores = net.input(1, 20, 4, name="boxes"), net.input(1, 20, 2, name="scores")
    given = graph.add(Reshape((1, 20, 1, 4)), boxes)
    node = graph.add_node(SelectBoxes(20, 0.5, 0.3), [given, scores])
    n = graph.measure(node.outputs[1], 40, "n")
    kept = first(graph, node.outputs[0], n)
    number = graph.add(Slice((0, 2), (n, 1), (1, 1)), kept)
    regions = graph.add(
        Gather(), graph.add(Reshape((20, 4)), boxes), graph.add(Reshape((n,)), number)
    )
    images = graph.add(Reshape((n,)), graph.add(Slice((0, 0), (n, 1), (1, 1)), kept))
    pooled = graph.add(RoiAlign((2, 2)), net.relu(net.conv(image, 5)), regions, images)
    net.output(net.dense(graph.add(Reshape((n, 20)), pooled), 3), regions)
    return net


@pytest.mark.parametrize("kept", [0, 1, 9])
def test_detection_in_two_steps(kept: int) -> None:
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 4, (1, 20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 4, (1, 20, 2))], -1)
    scores = np.zeros((1, 20, 2)) if kept == 0 else rng.uniform(0.0, 1.0, (1, 20, 2))
    if kept == 1:
        scores[...] = 0
        scores[0, 7, 1] = 0.9
    arrays = {
        "image": rng.standard_normal((1, 8, 9, 4)).astype(np.float32),
        "boxes": boxes.astype(np.float32),
        "scores": scores.astype(np.float32),
    }
    engine = interpreted_engine(regions_net().graph)
    assert not engine.host_steps()
    assert len(engine.plan.stages.parts) > 1
    assert_like_reference(engine, regions_net().graph, arrays)


def test_a_result_that_a_later_stage_reads() -> None:
    for share in (0.0, 0.6):
        engine = interpreted_engine(rows_net(shared=True).graph)
        assert engine.plan.stages.shared & set(range(len(engine.plan.graph.outputs)))
        assert_like_reference(engine, rows_net(shared=True).graph, data(share))


def test_results_are_where_an_input_is() -> None:
    engine = interpreted_engine(rows_net().graph)
    arrays = data(0.5)
    expected = interpret(rows_net().graph, arrays)
    given = InterpretedArray((50, 6), np.dtype(np.float32))
    engine.target.write_array(given, arrays["table"])
    results = engine({"x": arrays["x"], "table": given})
    for got, array in zip(results.values(), expected, strict=True):
        assert isinstance(got, InterpretedArray)
        np.testing.assert_allclose(got.numpy(), array, rtol=1e-5, atol=1e-5)
    out = InterpretedArray(expected[0].shape, expected[0].dtype)
    name = next(iter(results))
    with engine.create_execution_context() as context:
        assert context.execute(arrays, out={name: out, **_rest(results, expected)})[name] is out
        np.testing.assert_allclose(out.numpy(), expected[0], rtol=1e-5, atol=1e-5)
        with pytest.raises(InputError, match="out="):
            context.execute(data(0.1), out={name: out, **_rest(results, expected)})


def _rest(results: dict, expected: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {n: np.empty_like(a) for n, a in list(zip(results, expected, strict=True))[1:]}
