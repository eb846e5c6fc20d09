"""Shapes that depend on the data: stages, padding, and cutting results to size."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import planish
from helpers.networks import N, Net, build
from planish.errors import InputError, ShapeError
from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import Gather, MatMul, NonZero, ReduceSum, Reshape, ShapeOf, Slice, ew
from planish.passes.counted import settle_counts
from planish.runtime.engine import Engine
from planish.runtime.staged import rounded


def first(graph: Graph, value: Value, size: DimLike) -> Value:
    """The first elements of a tensor along its first axis."""
    shape = (size, *value.shape[1:])
    return graph.add(Slice((0,) * len(shape), shape, (1,) * len(shape)), value)


def places(graph: Graph, x: Value) -> tuple[Value, DimLike]:
    """Where a vector is positive: the places [n], and n."""
    zero = graph.constant(np.zeros((), np.float32))
    node = graph.add_node(NonZero(), [graph.add(ew.Greater(), x, zero)])
    n = graph.measure(node.outputs[1], x.shape[0], "n")
    return graph.add(Reshape((n,)), first(graph, node.outputs[0], n)), n


def rows_net(size: DimLike = 40, dense: int = 0) -> Net:
    """The rows of a table where a vector is positive, and what dense layers make of them."""
    net = Net()
    graph, x, table = net.graph, net.input(size, name="x"), net.input(size, 6, name="table")
    found, _ = places(graph, x)
    rows = graph.add(Gather(), table, found)
    for _ in range(dense):
        rows = net.relu(net.dense(rows, 9))
    net.output(rows, found)
    return net


def data(count: int, share: float = 0.5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = np.where(rng.random(count) < share, 1.0, -1.0).astype(np.float32)
    return {"x": x, "table": rng.standard_normal((count, 6)).astype(np.float32)}


def assert_like_reference(engine: Engine, graph: Graph, arrays: dict[str, np.ndarray]) -> None:
    expected = dict(zip([n for n, _, _ in graph.results()], interpret(graph, arrays), strict=True))
    got = engine(arrays)
    got = got if isinstance(got, dict) else {next(iter(expected)): got}
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


SHARES = [0.0, 0.05, 0.5, 1.0]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [40, N])
def test_rows_that_are_read_by_index_are_padded(share, size) -> None:
    engine = build(rows_net(size).graph)
    assert len(engine.plan.stages.parts) == 1
    assert [str(d) for d in engine.outputs[0].shape] == ["n", "6"]
    assert_like_reference(engine, rows_net(size).graph, data(40, share))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("size", [40, N])
def test_dense_layers_make_a_stage_of_their_own(share, size) -> None:
    engine = build(rows_net(size, dense=2).graph)
    assert len(engine.plan.stages.parts) == 2
    assert engine.plan.stages.row_wise == {"n"}
    for seed in range(3):
        assert_like_reference(engine, rows_net(size, dense=2).graph, data(40, share, seed))


def mean_net() -> Net:
    """A sum over the rows that were picked: it must not see padding."""
    net = Net()
    graph, x = net.graph, net.input(50, name="x")
    table = net.input(50, 6, name="table")
    found, _ = places(graph, x)
    rows = graph.add(Gather(), table, found)
    net.output(graph.add(ReduceSum((0,), False), rows), graph.add(ew.Square(), rows))
    return net


@pytest.mark.parametrize("share", SHARES)
def test_what_combines_rows_runs_with_their_exact_number(share) -> None:
    engine = build(mean_net().graph)
    assert len(engine.plan.stages.parts) == 2
    assert not engine.plan.stages.row_wise
    assert_like_reference(engine, mean_net().graph, data(50, share))


def chain_net() -> Net:
    """Two counts, the second of what the first left; the number of rows is a result too."""
    net = Net()
    graph, x = net.graph, net.input(60, name="x")
    table = net.input(60, 6, name="table")
    found, _ = places(graph, x)
    rows = net.dense(graph.add(Gather(), table, found), 4)
    score = graph.add(Reshape((rows.shape[0],)), graph.add(ReduceSum((1,), False), rows))
    again, _ = places(graph, score)
    kept = graph.add(Gather(), rows, again)
    net.output(net.dense(net.relu(kept), 40), graph.add(ShapeOf(), kept))
    return net


@pytest.mark.parametrize("share", SHARES)
def test_stages_follow_one_another(share) -> None:
    engine = build(chain_net().graph)
    assert len(engine.plan.stages.parts) == 3
    for seed in range(3):
        assert_like_reference(engine, chain_net().graph, data(60, share, seed))


def test_a_plan_file_holds_all_stages(tmp_path) -> None:
    built = build(chain_net().graph)
    built.save(tmp_path / "net.plan")
    loaded = planish.load(tmp_path / "net.plan")
    assert loaded.serialize() == built.serialize() == build(chain_net().graph).serialize()
    assert_like_reference(loaded, chain_net().graph, data(60))
    assert_like_reference(
        planish.load(build(rows_net(N).graph).serialize()), rows_net(N).graph, data(33)
    )


def test_several_threads() -> None:
    engine, failures = build(chain_net().graph), []
    graph = chain_net().graph

    def work(seed: int) -> None:
        try:
            for turn in range(8):
                assert_like_reference(engine, graph, data(60, turn / 7, seed * 10 + turn))
        except BaseException as error:
            failures.append(error)

    started = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not failures


def test_results_live_on_after_the_next_execution() -> None:
    engine = build(chain_net().graph)
    before = engine(data(60, seed=1))
    copies = {name: array.copy() for name, array in before.items()}
    engine(data(60, seed=2))
    for name, array in copies.items():
        np.testing.assert_array_equal(before[name], array)


def test_programs_for_few_sizes_serve_all_counts() -> None:
    engine = build(rows_net(1000, dense=1).graph)
    for count in range(0, 1000, 7):
        arrays = data(1000, 0.0)
        arrays["x"][:count] = 1
        assert len(engine(arrays)["out0"]) == count
    assert len(engine._bound) <= 24
    assert [rounded(n, 100) for n in (0, 1, 3, 5, 6, 7, 9, 13, 97, 100)] == [
        *(1, 1, 3, 6, 6, 8, 12, 16, 100, 100)
    ]
    assert rounded(0, 0) == 0


def test_results_are_copied_to_arrays_of_their_shape() -> None:
    engine, arrays = build(rows_net().graph), data(40)
    expected = engine(arrays)
    out = {name: np.empty_like(array) for name, array in expected.items()}
    assert engine(arrays, out=out)["out0"] is out["out0"]
    for name, array in expected.items():
        np.testing.assert_array_equal(out[name], array)
    out["out0"] = np.empty((1, 6), np.float32)
    with pytest.raises(InputError, match="of shape"):
        engine(arrays, out=out)


def test_profiling_tells_of_every_stage() -> None:
    engine = build(chain_net().graph)
    with engine.create_execution_context() as context:
        times = context.profile(data(60))
        seen: dict[str, float] = {}
        context.profiler = seen.__setitem__
        context.execute(data(60))
    assert (times[:, 1] >= times[:, 0]).all()
    assert seen.keys() == {step.task.name for step in engine.plan.steps}


def slice_net() -> Graph:
    graph = Graph("slice")
    x = graph.input("x", TensorType((10,), DType.FLOAT32))
    count = graph.input("count", TensorType((), DType.INT64))
    n = graph.measure(count, 10, "n")
    y = first(graph, x, n)
    graph.mark_output(graph.add(ReduceSum((0,), False), y), "y")
    return graph


def test_impossible_sizes_are_told() -> None:
    engine = build(slice_net())
    x = np.arange(10, dtype=np.float32)
    assert engine({"x": x, "count": np.array(4)}) == 6
    assert engine({"x": x, "count": np.array(0)}) == 0
    for wrong in (-1, 11):
        with pytest.raises(ShapeError, match=str(wrong)):
            engine({"x": x, "count": np.array(wrong)})


def test_products_of_few_rows_are_padded() -> None:
    net = rows_net(16, dense=1)
    settle_counts(net.graph, costly_rows=16)
    assert net.graph.counts["n"].padded
    assert not any(isinstance(n.op, Slice) for n in net.graph.nodes)
    assert any(isinstance(n.op, MatMul) for n in net.graph.nodes)


def test_what_is_told_of_stages() -> None:
    engine = build(chain_net().graph)
    assert {row["stage"] for row in engine.layers()} == {0, 1, 2}
    assert "3 stages: n, n_1 depend" in engine.summary()
    padded = build(rows_net().graph)
    assert "count n is %" in str(padded.plan.graph)
    assert "cut out0 to [n, 6]" in str(padded.plan.graph)
    assert "stage" not in padded.layers()[0]


FRESH = """
import sys
import numpy as np
import planish

engine = planish.load(sys.argv[1])
given = np.load(sys.argv[2])
for turn in range(int(given["turns"])):
    results = engine(x=given[f"x{turn}"], table=given[f"table{turn}"])
    for name, result in results.items():
        wanted = given[f"{name}_{turn}"]
        assert result.shape == wanted.shape, (result.shape, wanted.shape)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
"""


def test_a_fresh_process(tmp_path) -> None:
    graph, arrays = chain_net().graph, {}
    names = [name for name, _, _ in graph.results()]
    for turn, share in enumerate(SHARES):
        given = data(60, share, turn)
        results = dict(zip(names, interpret(graph, given), strict=True))
        for name, array in {**given, **{f"{n}_": a for n, a in results.items()}}.items():
            arrays[f"{name}{turn}"] = array
    build(chain_net().graph).save(tmp_path / "net.plan")
    np.savez(tmp_path / "data.npz", turns=len(SHARES), **arrays)
    command = [sys.executable, "-c", FRESH, str(tmp_path / "net.plan"), str(tmp_path / "data.npz")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
