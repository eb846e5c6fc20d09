"""Attention of levels: which is quantized, what becomes of the graph, and how near results stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import planish
from helpers.attentions import attention_task
from helpers.networks import Net
from planish.builder import build_graph
from planish.fusion.attention import MIDDLE, attention_around
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph, Node
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import (
    MatMul,
    MatMulInteger,
    Quantize,
    QuantizedSoftmax,
    Reshape,
    Slice,
    Softmax,
    Transpose,
    ew,
)
from planish.passes import optimize
from planish.quantization.attention import (
    attentions,
    limits_of,
    quantizable_attentions,
    quantize_attentions,
)
from planish.quantization.ranges import Ranges
from planish.quantization.scheme import SYMMETRIC, UNSIGNED
from planish.quantization.settle import quantize_layers
from planish.targets.cpu.target import cpu

BATCH, LENGTH, HEADS, DEPTH = 2, 11, 3, 8
WIDTH = HEADS * DEPTH
X = np.random.default_rng(3).standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
LEVELLED = replace(UNSIGNED, attention=True)


def encoder(
    *, depth: int = DEPTH, scaled: str = "scores", shared: bool = False, factor: float = 1.0
) -> Graph:
    """Self-attention with its projections, queries times a factor; `shared`: something else reads
    these, too.
    """
    n = Net(seed=7)
    add, width = n.graph.add, HEADS * depth
    x = n.input(BATCH, LENGTH, WIDTH)
    plain = [n.bias(n.dense(x, width)) for _ in range(3)]
    plain[0] = add(ew.Mul(), plain[0], n.graph.constant(np.full(width, factor, np.float32)))
    if scaled == "q":
        plain[0] = add(ew.Mul(), plain[0], n.graph.constant(np.float32(depth**-0.5)))
    q, k, v = (
        add(Transpose((0, 2, 1, 3)), n.reshape(y, BATCH, LENGTH, HEADS, depth)) for y in plain
    )
    scores = add(MatMul(transpose_b=True), q, k)
    if scaled == "scores":
        scores = add(ew.Mul(), scores, n.graph.constant(np.float32(depth**-0.5)))
    mixed = add(MatMul(), add(Softmax(3), scores), v)
    y = add(Reshape((BATCH, LENGTH, width)), add(Transpose((0, 2, 1, 3)), mixed))
    outputs = [n.bias(n.dense(y, WIDTH))]
    if shared:
        outputs.append(add(ew.Tanh(), plain[0]))
    graph = n.output(*outputs)
    optimize(graph)
    return graph


def observed(graph: Graph) -> Ranges:
    """Extremes of all tensors on `X`."""
    tensors: dict[str, tuple[float, float]] = {"x": (float(X.min()), float(X.max()))}

    def note(node: Node, given: object, results: list[np.ndarray]) -> None:
        for value, array in zip(node.outputs, results, strict=True):
            tensors[value.name] = float(array.min()), float(array.max())

    interpret(graph, {"x": X}, note)
    return Ranges(tensors)


def quantized(graph: Graph) -> Graph:
    """All that can be quantized."""
    names = {node.name for node in graph.nodes}
    copy, _ = duplicate(graph)
    quantize_layers(copy, names, observed(graph), LEVELLED)
    return copy


def of_type(graph: Graph, kind: type) -> list[Node]:
    return [node for node in graph.nodes if isinstance(node.op, kind)]


def only(graph: Graph) -> Node:
    (softmax,) = of_type(graph, Softmax)
    return softmax


def sqnr(exact: np.ndarray, have: np.ndarray) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - have).sum()))


def results(graph: Graph) -> list[np.ndarray]:
    return [np.asarray(array) for array in interpret(graph, {"x": X})]


class TestRewrite:
    def test_everything_between_products_is_levels(self) -> None:
        graph = quantized(encoder())
        found = attention_around(only(graph), (), graph.outputs)
        assert found is not None
        assert isinstance(found.softmax.op, QuantizedSoftmax)
        assert found.after, "the result becomes levels inside"
        sources = [value.dtype for value in found.operands]
        assert sources == [DType.UINT8] * 3
        assert len(of_type(graph, MatMulInteger)) == 2

    def test_parts_of_one_product_become_levels_together(self) -> None:
        """By the product, each with the distance of its own."""
        graph = encoder()
        assert len(of_type(graph, Slice)) == 3
        ranges = observed(graph)
        limits = limits_of(attentions(graph)[only(graph)], ranges)
        assert limits is not None
        quantize_attentions(graph, attentions(graph).values(), ranges)
        (node,) = of_type(graph, Quantize)
        assert node.inputs[1].shape == (3 * WIDTH,)
        step = node.inputs[1].data
        assert step is not None
        parts = [n for n in of_type(graph, Slice) if n.inputs[0] is node.output]
        assert len(parts) == 3
        assert {float(s) for s in step} == {float(np.float32(limit / 127)) for limit in limits}

    def test_a_result_that_is_read_elsewhere_stays_float_too(self) -> None:
        graph = encoder(shared=True)
        exact = results(graph)
        for a, b in zip(exact, results(quantized(graph)), strict=True):
            assert sqnr(a, b) > 25

    @pytest.mark.parametrize("scaled", ["scores", "q", "none"])
    def test_results_stay_near(self, scaled: str) -> None:
        graph = encoder(scaled=scaled)
        (exact,), (have,) = results(graph), results(quantized(graph))
        assert 28 < sqnr(exact, have) < 60

    def test_attention_alone_is_nearer_than_everything(self) -> None:
        graph = encoder()
        alone, _ = duplicate(graph)
        quantize_layers(alone, {only(alone).name}, observed(graph), LEVELLED)
        assert not of_type(alone, MatMulInteger)
        (exact,), (have,), (whole,) = results(graph), results(alone), results(quantized(graph))
        assert sqnr(exact, have) > sqnr(exact, whole) > 28

    def test_distances_are_operands(self) -> None:
        """That of the result's levels is part of v's: so the tasks of all layers are alike."""
        tasks = []
        for factor in (1.0, 3.0):
            graph = encoder(factor=factor)
            tasks.append(attention_task(quantized(graph)))
        first, second = tasks
        assert first.key == second.key
        steps = [[float(t.inputs[i].data) for i in t.attention.steps] for t in tasks]  # type: ignore
        assert steps[0] != steps[1]

    def test_levels_are_known_by_name(self) -> None:
        graph = encoder()
        copy, _ = duplicate(graph)
        (softmax,) = attentions(copy)
        done = quantize_layers(copy, {softmax.name}, observed(graph), LEVELLED)
        assert done.layers == (softmax.name,)
        assert {levels.zero for levels in done.levels.values()} == {MIDDLE}
        assert len(done.levels) == 3


class TestWhich:
    def test_depths_that_are_no_groups(self) -> None:
        assert not attentions(encoder(depth=6))
        assert attentions(encoder(depth=4))

    def test_ranges_must_be_known(self) -> None:
        graph = encoder()
        ranges = observed(graph)
        assert quantizable_attentions(graph, ranges, LEVELLED)
        found = attentions(graph)[only(graph)]
        hidden = {found.operands[1].name, *(n.output.name for n in found.moves)}
        fewer = {name: r for name, r in ranges.tensors.items() if name not in hidden}
        assert not quantizable_attentions(graph, Ranges(fewer), LEVELLED)

    def test_a_range_of_what_is_transposed_will_do(self) -> None:
        graph = encoder()
        ranges = observed(graph)
        found = attentions(graph)[only(graph)]
        plain = {value.name for value in found.operands}
        fewer = {name: r for name, r in ranges.tensors.items() if name not in plain}
        assert limits_of(found, Ranges(fewer)) == limits_of(found, ranges)

    @pytest.mark.parametrize("scheme", [SYMMETRIC, UNSIGNED])
    def test_targets_without_kernels(self, scheme: object) -> None:
        graph = encoder()
        assert not quantizable_attentions(graph, observed(graph), scheme)  # type: ignore[arg-type]

    def test_what_is_quantized_already(self) -> None:
        graph = encoder()
        (node,) = attentions(graph)
        node.op = QuantizedSoftmax(3, 255)
        assert not attentions(graph)


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., planish.Engine]:
    given = {
        "precision": frozenset({"fp32", "int8"}),
        "calibration": X,
        "tuning_seconds": 0,
        "timing_cache": tmp_path / "timing.sqlite",
    }
    return lambda **options: build_graph(encoder(), cpu(), **{**given, **options})


needs_vnni = pytest.mark.skipif(
    not cpu().attends_to_levels, reason="this CPU does not multiply bytes four at a time"
)


@needs_vnni
class TestEngines:
    def test_one_kernel_reads_and_writes_levels(self, built) -> None:
        engine = built()
        (step,) = (s for s in engine.plan.steps if s.task.attention)
        assert step.choices[0].tactic.family == "attention_dots"
        assert step.task.precision == "int8"
        assert {v.dtype for v in step.task.outputs} == {DType.UINT8}
        assert len(engine.plan.steps) == 4
        (exact,) = results(encoder())
        assert sqnr(exact, np.asarray(engine(X))) > 28
        assert any("softmax" in name for name in engine.report.quantized)

    def test_layer_precision_keeps_it(self, built) -> None:
        engine = built(layer_precision={"softmax": "fp32"})
        assert not of_type(engine.plan.graph, QuantizedSoftmax)
        assert engine.report.not_quantized["softmax"] == "layer_precision says so"

    def test_beside_bfloat16(self, built) -> None:
        if "bf16" not in cpu().precisions:
            pytest.skip("this CPU has no products of bfloat16")
        engine = built(precision=frozenset({"fp32", "int8", "bf16"}))
        assert any(s.task.attention and s.task.precision == "int8" for s in engine.plan.steps)

    def test_plans_keep_it(self, built, tmp_path: Path) -> None:
        engine = built()
        engine.save(tmp_path / "levels.plan")
        again = planish.load(tmp_path / "levels.plan")
        np.testing.assert_array_equal(np.asarray(engine(X)), np.asarray(again(X)))
