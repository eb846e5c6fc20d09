"""`planish.build` in INT8 of models that bring their own scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import planish
import tensorflow as tf
from helpers.engines import quick_engine
from helpers.onnx_graph import model, node, runtime
from helpers.qdq import residual_model
from planish.errors import PrecisionError
from planish.graph.interpret import interpret
from planish.graph.types import DType

X = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)


def steps(have: np.ndarray, want: np.ndarray, scale: float = 0.2) -> np.ndarray:
    """How many levels results differ by."""
    return np.rint(np.abs(have - want) / scale)


def test_no_calibration_is_needed_and_results_are_those_of_onnx_runtime() -> None:
    proto = residual_model()
    engine = quick_engine(proto, precision="int8", allow_fallback=False)
    names = ["classes", "conv1", "depthwise", "left", "pointwise", "right"]
    assert engine.report.quantized == names and not engine.report.not_quantized
    rows = engine.layers()
    assert [row["precision"] for row in rows].count("int8") == 6
    have = engine(X)
    np.testing.assert_array_equal(have, interpret(engine.plan.graph, {"x": X})[0])
    np.testing.assert_array_equal(have[2:3], engine(X[2:3]))
    # ONNX Runtime sums floats here, in some order: a sum may miss a level
    off = steps(have, runtime(proto, {"x": X})[0])
    assert off.max() <= 1 and off.mean() < 0.02


def test_only_bytes_lie_between_layers() -> None:
    engine = quick_engine(residual_model(), precision="int8")
    *inner, last = [step.task for step in engine.plan.steps]
    assert [v.dtype for task in inner for v in task.outputs] == [DType.UINT8] * 8
    assert last.kind == "mat_mul_integer" and last.output.dtype is DType.FLOAT32


def test_fp32_keeps_the_meaning_of_the_model() -> None:
    proto = residual_model()
    engine = quick_engine(proto)
    assert engine.precision == "fp32" and not engine.report.quantized
    off = steps(engine(X), runtime(proto, {"x": X})[0])
    assert off.max() <= 1 and off.mean() < 0.02


def test_layers_can_stay_in_fp32() -> None:
    proto = residual_model()
    engine = quick_engine(
        proto,
        precision="int8",
        layer_precision={"left": "fp32", "right": "int8"},
        strict_types=True,
    )
    assert "left" not in engine.report.quantized and "right" in engine.report.quantized
    assert engine.report.not_quantized == {"left": "layer_precision says so"}
    assert steps(engine(X), runtime(proto, {"x": X})[0]).max() <= 1
    with pytest.raises(PrecisionError, match="cannot compute in int8"):
        quick_engine(proto, precision="int8", layer_precision={"sum": "int8"}, strict_types=True)


def test_best_includes_scales_that_a_model_brings() -> None:
    assert quick_engine(residual_model(), precision="best").report.quantized


def test_calibration_has_no_effect() -> None:
    with pytest.raises(PrecisionError, match="brings its own scales"):
        quick_engine(residual_model(), precision="int8", calibration=X)


def test_a_budget_is_kept_against_the_floats_of_the_same_model() -> None:
    def metric(engine: planish.Engine) -> float:
        return 90.0 - 2.0 * ("conv_integer" in {n.op.name for n in engine.plan.graph.nodes})

    engine = quick_engine(residual_model(), precision="int8", evaluate=metric, accuracy_budget=0.5)
    assert engine.report.quantized == ["classes"]
    assert engine.report.accuracy == {"fp32": 90.0, "int8": 88.0, "chosen": 90.0}


# ---- integer operators -----------------------------------------------------------------------


def dynamic() -> onnx.ModelProto:
    """A dense layer as ONNX Runtime quantizes it dynamically."""
    rng = np.random.default_rng(2)
    constants = {
        "w": rng.integers(-63, 64, (30, 20)).astype(np.int8),
        "wz": np.int8(0),
        "ws": np.float32(0.01),
        "b": rng.standard_normal(20).astype(np.float32),
    }
    nodes = [
        node("DynamicQuantizeLinear", "x", "q s z"),
        node("MatMulInteger", "q w z wz", "sums", "dense"),
        node("Cast", "sums", "wide", to=onnx.TensorProto.FLOAT),
        node("Mul", "s ws", "scale"),
        node("Mul", "wide scale", "scaled"),
        node("Add", "scaled b", "y"),
    ]
    return model(nodes, {"x": (np.float32, ["N", 30])}, ["y"], constants)


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_integer_operators_are_integer_layers(precision: str) -> None:
    x = np.random.default_rng(0).standard_normal((6, 30)).astype(np.float32)
    engine = quick_engine(dynamic(), precision=precision, allow_fallback=False)
    assert engine.report.quantized == ["dense"]
    np.testing.assert_allclose(engine(x), runtime(dynamic(), {"x": x})[0], atol=1e-5)


# ---- TensorFlow --------------------------------------------------------------------------------


def trained() -> tuple[Any, list[str]]:
    """A GraphDef with simulated quantization around a convolution, a depthwise one and a matrix."""
    rng = np.random.default_rng(0)
    fake = tf.quantization.fake_quant_with_min_max_vars
    by_channel = tf.quantization.fake_quant_with_min_max_vars_per_channel

    def weights(*shape: int) -> Any:
        return tf.constant(rng.standard_normal(shape).astype(np.float32) / 3)

    with tf.Graph().as_default() as graph:
        x = fake(tf.compat.v1.placeholder(tf.float32, (None, 9, 9, 3), "x"), -3.0, 3.0)
        w = by_channel(weights(3, 3, 3, 16), -np.ones(16), np.ones(16), narrow_range=True)
        x = tf.nn.conv2d(x, w, (2, 2), "SAME", name="conv") + weights(16)
        x = fake(tf.nn.relu6(x), 0.0, 6.0)
        w = fake(weights(3, 3, 16, 1), -1.2, 1.1, narrow_range=True)
        x = tf.nn.depthwise_conv2d(x, w, (1, 1, 1, 1), "SAME", name="depthwise") + weights(16)
        x = fake(tf.nn.relu6(x), 0.0, 4.0)
        x = fake(tf.reduce_mean(x, (1, 2)), 0.0, 3.0)
        w = fake(weights(16, 10), -1.5, 1.5, narrow_range=True)
        tf.identity(fake(tf.matmul(x, w, name="dense"), -8.0, 8.0), name="y")
    return graph.as_graph_def(), ["conv", "dense", "depthwise"]


def test_graphs_trained_for_quantization() -> None:
    graph_def, names = trained()
    x = np.random.default_rng(1).standard_normal((20, 9, 9, 3)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        want = tf.compat.v1.Session(graph=graph).run("y:0", {"x:0": x})
    engine = quick_engine(graph_def, outputs=["y"], precision="int8", allow_fallback=False)
    assert sorted(engine.report.quantized) == names
    off = steps(engine(x), want, 16 / 255)
    assert off.max() <= 1 and off.mean() < 0.05
    exact = quick_engine(graph_def, outputs=["y"])
    assert exact.precision == "fp32" and not exact.report.quantized
    assert steps(exact(x), want, 16 / 255).mean() < 0.02


class Trained(tf.Module):
    """The same as a module with a signature."""

    @tf.function(input_signature=[tf.TensorSpec((None, 9, 9, 3), tf.float32, "x")])
    def __call__(self, x: Any) -> Any:
        (y,) = tf.graph_util.import_graph_def(
            trained()[0], input_map={"x:0": x}, return_elements=["y:0"], name=""
        )
        return {"y": y}


def test_tensorflows_converter_uses_the_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANISH_TUNING_SECONDS", "0")
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path / "cache"))  # no times of other builds
    from planish.tensorflow import trt_convert as trt

    module = Trained()
    tf.saved_model.save(module, str(tmp_path / "model"), signatures=module.__call__)
    converter = trt.TrtGraphConverterV2(
        str(tmp_path / "model"), precision_mode="INT8", use_calibration=False
    )
    function = converter.convert()
    x = np.random.default_rng(1).standard_normal((4, 9, 9, 3)).astype(np.float32)
    have = function(tf.constant(x))["y"]
    want = module(tf.constant(x))["y"]
    assert steps(np.asarray(have), want.numpy(), 16 / 255).max() <= 1
    (engine,) = converter._result.built.values()
    assert len(engine.report.quantized) == 3
