"""Inner tensors of a network, against the references of its ops."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from helpers.networks import N, Net, feeds, residual_net
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.ops import ReduceSum, Resize, ew
from planish.passes import optimize
from planish.quantization import observe
from planish.quantization.observe import Observer, quantizable


def inner_values(graph: Graph, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every value by the references."""
    found = dict(given)

    def keep(node, inputs, results) -> None:
        found.update({v.name: a for v, a in zip(node.outputs, results, strict=True)})

    interpret(graph, given, keep)
    return found


def shown(graph: Graph, given: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Every quantizable value by the observer, put together, and the number of portions."""
    parts: dict[str, list[np.ndarray]] = {}
    portions = 0
    with Observer(graph, quantizable(graph), "cpu") as observer:
        for arrays in observer.run(given):
            portions += 1
            for name, array in arrays.items():
                parts.setdefault(name, []).append(array.copy())
    return {name: np.concatenate(a) for name, a in parts.items()}, portions


def check(graph: Graph, size: int = 4) -> int:
    given = feeds(graph, size)
    before = str(graph)
    found, portions = shown(graph, given)
    wanted = inner_values(graph, given)
    assert set(found) == {v.name for v in quantizable(graph)}
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-5)
    assert str(graph) == before
    return portions


def residual() -> Graph:
    graph = residual_net()
    optimize(graph)
    return graph


def test_every_value_is_shown() -> None:
    assert check(residual()) == 2  # the input, and the rest


def test_rows_are_run_in_portions_where_they_are_independent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observe, "MOST_BYTES", 12_000)
    assert check(residual(), 8) > 2


def test_resizing_is_independent_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "MOST_BYTES", 1000)
    net = Net()
    x = net.input(N, 4, 4, 3, name="x")
    larger = net.graph.add(Resize((8, 8), "linear", "half_pixel"), x)
    assert check(net.output(net.relu(larger))) > 2


def test_tensors_are_divided_where_rows_are_not_independent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    x = net.input(N, 6, name="x")
    total = net.graph.add(ReduceSum((0,), True), net.relu(x))
    graph = net.output(net.relu(net.add(net.dense(x, 5), net.dense(total, 5))))
    optimize(graph)
    assert check(graph) == 2
    monkeypatch.setattr(observe, "MOST_BYTES", 100)
    assert check(graph) > 2


def test_a_model_of_one_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "MOST_BYTES", 12_000)
    graph = residual_net(3)
    optimize(graph)
    assert check(graph) > 2


def test_values_of_one_part_at_a_time_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "MOST_BYTES", 12_000)
    graph = residual_net(3)
    optimize(graph)
    (x,) = graph.inputs
    batch = {x.name: np.ones(x.shape, np.float32)}
    with Observer(graph, quantizable(graph), "cpu") as observer:
        held: list[weakref.ref[np.ndarray]] = []
        for portion in observer.run(batch):
            assert not any(array() is not None for array in held)
            held += [weakref.ref(a) for n, a in portion.items() if n not in batch]
            del portion
    assert held


def test_integers_and_constants_are_not_quantizable() -> None:
    net = Net()
    x = net.input(N, 4)
    graph = net.output(net.graph.add(ew.Greater(), net.bias(x), x))
    names = [v.name for v in quantizable(graph)]
    assert names == ["x", "add"]
    assert not any(v.is_constant for v in quantizable(graph))
