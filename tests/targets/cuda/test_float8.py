"""Networks in FP8 on the CUDA target, interpreted: near the references, and near FP32."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

import planish
from helpers.interpreted_target import InterpretedTarget
from helpers.networks import Net
from planish.builder import build_graph
from planish.errors import CalibrationError
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import (
    EncodeFloat8,
    Gelu,
    LayerNorm,
    MatMul,
    MatMulFloat8,
    Reshape,
    Softmax,
    Transpose,
    ew,
)
from planish.passes import optimize
from planish.plan.file import deserialize, serialize
from planish.plan.load import restore
from planish.profile import settle_ranges
from planish.quantization import Ranges
from planish.quantization.calibration import calibrate
from planish.runtime.engine import Engine
from planish.targets.cpu.target import cpu

X = np.random.default_rng(5).standard_normal((3, 16, 32)).astype(np.float32)
HEADS, WIDTH = 2, 32
PRODUCTS = 4
"""By constant weights; those of a layer's input are merged."""


def encoder() -> Graph:
    """A layer of a text encoder: attention, norms, GELU, residuals; and a convolution."""
    n = Net("encoder", 7)
    x = n.input(*X.shape)

    def norm(value: Value) -> Value:
        scale = n.graph.constant(np.linspace(0.5, 1.5, WIDTH, dtype=np.float32))
        return n.graph.add(LayerNorm(2, 1e-5), value, scale, n.weights(WIDTH))

    def heads(value: Value) -> Value:
        apart = n.reshape(n.bias(n.dense(value, WIDTH)), 3, 16, HEADS, WIDTH // HEADS)
        return n.graph.add(Transpose((0, 2, 1, 3)), apart)

    first = norm(x)
    scores = n.graph.add(MatMul(False, True), heads(first), heads(first))
    scaled = n.graph.add(ew.Mul(), scores, n.graph.constant(np.float32(0.25)))
    mixed = n.graph.add(MatMul(), n.graph.add(Softmax(-1), scaled), heads(first))
    joined = n.graph.add(Reshape(X.shape), n.graph.add(Transpose((0, 2, 1, 3)), mixed))
    second = norm(n.add(n.bias(n.dense(joined, WIDTH)), first))
    wide = n.graph.add(Gelu(), n.bias(n.dense(second, 4 * WIDTH)))
    third = norm(n.add(n.bias(n.dense(wide, WIDTH)), second))
    image = n.graph.add(Reshape((3, 4, 4, WIDTH)), third)
    n.graph.mark_output(n.pooled(n.relu(n.conv(image, 16, 3))), "y")
    return n.graph


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    graph = encoder()
    settle_ranges(graph)
    optimize(graph)
    return calibrate(graph, X)


def built(target, ranges, *precisions: str, **options):
    precision = frozenset({"fp32", *precisions})
    options = {"calibration": ranges, "tuning_seconds": 0, **options}
    return build_graph(duplicate(encoder())[0], target, precision=precision, **options)


def exact() -> np.ndarray:
    (y,) = interpret(encoder(), {"x": X})
    return y


@pytest.mark.parametrize("others", [(), ("fp16",), ("int8", "fp16")])
def test_results_are_near_float32(others, ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "fp8", *others)
    assert len(engine.report.quantized) == PRODUCTS + ("int8" in others)
    assert not engine.host_steps()
    rows = [row for row in engine.layers() if row["precision"] == "fp8"]
    assert len(rows) == PRODUCTS and {row["tactic"].split("(")[0] for row in rows} == {"matrix"}
    y, want = np.asarray(engine(X)), exact()
    (reference,) = interpret(engine.plan.graph, {"x": X})
    np.testing.assert_allclose(y, reference, rtol=0, atol=0.02 * np.abs(want).max())
    error = np.square(y - want).sum() / np.square(want).sum()
    assert 0 < error < 0.01


def test_codes_lie_between_layers(ranges) -> None:
    """Nothing but codes, where products alone read a tensor or norms and residuals do, too."""
    engine = built(InterpretedTarget(), ranges, "fp8", "fp16")
    made = [n for n in engine.plan.graph.nodes if isinstance(n.op, EncodeFloat8)]
    assert len(made) == 4  # of attention, GELU, and two norms
    for node in engine.plan.graph.nodes:
        if isinstance(node.op, MatMulFloat8):
            assert node.inputs[1].dtype is DType.INT8
    outputs = [(row["op"], row["output"][:2]) for row in engine.layers()]
    assert [o for op, o in outputs if op == "attention"] == ["i8"]
    assert [o for op, o in outputs if op == "layer_norm"] == ["i8", "i8", "f1"]


def test_plans_keep_them(ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "fp8", "fp16")
    plan = restore(deserialize(serialize(engine.plan)), InterpretedTarget())
    again = Engine(plan, InterpretedTarget())
    assert again.precision == engine.precision == "fp16,fp8"
    np.testing.assert_array_equal(again(X), engine(X))


def test_a_cpu_runs_such_a_plan_by_references(ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "fp8")
    other = build_graph(duplicate(engine.plan.graph)[0], cpu(), tuning_seconds=0)
    assert len(other.host_steps()) == PRODUCTS
    np.testing.assert_allclose(other(X), engine(X), atol=0.02)


def test_a_cpu_has_no_fp8(tmp_path) -> None:
    with pytest.raises(planish.PrecisionError, match="not available on cpu"):
        planish.build(tmp_path / "any.onnx", precision={"fp8", "fp16"})


def test_ranges_are_needed() -> None:
    with pytest.raises(CalibrationError, match="Could not find scales"):
        built(InterpretedTarget(), None, "fp8")


def test_layers_choose(ranges) -> None:
    engine = built(InterpretedTarget(), ranges, "fp8", "int8")
    first, *rest = [n for n in engine.plan.graph.nodes if isinstance(n.op, MatMulFloat8)]
    wanted = {first.name: "int8", rest[0].name: "fp32"}
    engine = built(InterpretedTarget(), ranges, "fp8", "int8", layer_precision=wanted)
    by_name = {n.name: n.op.name for n in engine.plan.graph.nodes}
    assert by_name[first.name] == "mat_mul_integer" and by_name[rest[0].name] == "mat_mul"
    assert sum(isinstance(n.op, MatMulFloat8) for n in engine.plan.graph.nodes) == PRODUCTS - 2
