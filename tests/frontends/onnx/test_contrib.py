"""Operators of com.microsoft against ONNX Runtime, which defines them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.contrib import contrib_model
from helpers.onnx_graph import assert_close, runtime
from planish.errors import UnsupportedOpError
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret

RNG = np.random.default_rng(11)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(op_type: str, inputs: Sequence[np.ndarray | None], **options: Any) -> None:
    proto, feeds = contrib_model(op_type, inputs, **options)
    wanted = runtime(proto, feeds)
    results = interpret(import_model(proto, allow_fallback=False), feeds)
    for result, other in zip(results, wanted, strict=True):
        assert_close(result, other, 2e-5)


@pytest.mark.parametrize("op_type", ["Gelu", "FastGelu", "QuickGelu"])
def test_activations(op_type: str) -> None:
    check(op_type, [floats(3, 5)])


def test_activations_of_sums() -> None:
    check("BiasGelu", [floats(3, 5), floats(5)])
    check("FastGelu", [floats(3, 5), floats(5)])
    check("QuickGelu", [floats(3, 5)], alpha=0.7)


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(transposed: tuple[int, int]) -> None:
    a, b = transposed
    left = floats(2, 5, 3) if a else floats(2, 3, 5)
    right = floats(2, 4, 5) if b else floats(2, 5, 4)
    check("FusedMatMul", [left, right], transA=a, transB=b, alpha=0.5)


def test_fused_matmul_with_rows_before_the_batch() -> None:
    left, right = floats(3, 2, 5), floats(5, 2, 4)
    check("FusedMatMul", [left, right], transBatchA=1, transBatchB=1)


@pytest.mark.parametrize("activation", ["Relu", "LeakyRelu", "Tanh"])
def test_fused_gemm(activation: str) -> None:
    options = {"activation_alpha": 0.2} if activation == "LeakyRelu" else {}
    check("FusedGemm", [floats(3, 5), floats(4, 5), floats(4)], transB=1,
          activation=activation, **options)  # fmt: skip


def test_fused_conv() -> None:
    w, bias = floats(4, 3, 3, 3), floats(4)
    x, skipped = floats(1, 3, 6, 7), floats(1, 4, 4, 5)
    check("FusedConv", [x, w, bias], constant=[1, 2], activation="Relu")
    check("FusedConv", [x, w, bias, skipped], constant=[1, 2], activation="Relu")
    limits = [-0.5, 0.5]
    check("FusedConv", [x, w, bias], constant=[1, 2], activation="Clip", activation_params=limits)


def test_simplified_layer_normalization() -> None:
    check("SimplifiedLayerNormalization", [floats(2, 3, 8), floats(8)], domain="", axis=-1)


def test_skip_normalizations() -> None:
    x, skipped, scale, offset, bias = floats(2, 3, 8), floats(2, 3, 8), *(floats(8) for _ in "abc")
    check("SkipLayerNormalization", [x, skipped, scale, offset, bias])
    check("SkipLayerNormalization", [x, skipped, scale, offset], outputs="y _ _ total")
    check("SkipSimplifiedLayerNormalization", [x, skipped, scale, bias], outputs="y _ _ total")


def test_embed_layer_normalization() -> None:
    words = RNG.integers(0, 20, (2, 4)).astype(np.int32)
    segments = RNG.integers(0, 2, (2, 4)).astype(np.int32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32)
    tables = [floats(20, 8), floats(6, 8), floats(2, 8)]
    inputs = [words, segments, *tables, floats(8), floats(8), mask]
    check("EmbedLayerNormalization", inputs, outputs="y lengths", constant=[2, 3, 4, 5, 6])


MASKS = {
    "none": None,
    "keys": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "lengths": np.array([5, 2], np.int32),
    "full": (RNG.random((2, 5, 5)) < 0.7).astype(np.int32),
    "nothing": np.zeros((2, 5), np.int32),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str, causal: int) -> None:
    x, weights, bias = floats(2, 5, 8), floats(8, 24), floats(24)
    check(
        "Attention",
        [x, weights, bias, MASKS[mask]],
        constant=[1, 2],
        num_heads=2,
        unidirectional=causal,
    )


def test_multi_head_attention() -> None:
    q, k, v = floats(2, 3, 8), floats(2, 5, 8), floats(2, 5, 8)
    check("MultiHeadAttention", [q, k, v], num_heads=2)
    check("MultiHeadAttention", [q, k, v, floats(24)], num_heads=4, scale=0.3)
    bias = floats(1, 2, 3, 5)
    check("MultiHeadAttention", [q, k, v, None, None, bias], num_heads=2)
    check("MultiHeadAttention", [q, k, v, None, MASKS["keys"]], num_heads=2)


def test_what_runtimes_have_on_gpus_only() -> None:
    """Against NumPy."""
    x, skipped, bias = floats(2, 3, 8), floats(2, 3, 8), floats(8)
    proto, feeds = contrib_model("BiasAdd", [x, bias, skipped])
    (result,) = interpret(import_model(proto), feeds)
    assert_close(result, x + bias + skipped, 1e-6)
    x, scale, offset = floats(2, 3, 5, 8), floats(8), floats(8)
    for activation in (0, 1):
        proto, feeds = contrib_model(
            "GroupNorm", [x, scale, offset], groups=4, epsilon=1e-5, activation=activation
        )
        (result,) = interpret(import_model(proto), feeds)
        parts = x.reshape(2, 15, 4, 2)
        mean, variance = (f(parts, (1, 3), keepdims=True) for f in (np.mean, np.var))
        wanted = ((parts - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * scale + offset
        assert_close(result, wanted / (1 + np.exp(-wanted)) if activation else wanted, 1e-5)


def test_attention_with_a_cache_is_refused() -> None:
    past = floats(2, 2, 2, 4, 4)
    proto, _ = contrib_model(
        "Attention", [floats(2, 5, 8), floats(8, 24), floats(24), None, past], num_heads=2
    )
    with pytest.raises(UnsupportedOpError, match="past") as caught:
        import_model(proto)
    assert caught.value.cure


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    cosines, sines = floats(16, 4), floats(16, 4)
    places = np.array([[0, 1, 2], [5, 6, 7]], np.int64)
    for x in (floats(2, 3, 16), floats(2, 2, 3, 8)):
        inputs = [x, places, cosines, sines]
        check("RotaryEmbedding", inputs, interleaved=interleaved)
        check("RotaryEmbedding", [x, np.array([4]), cosines, sines], interleaved=interleaved)


def test_unknown_ones_are_refused_by_name() -> None:
    proto, _ = contrib_model("GroupQueryAttention", [floats(1, 2, 8)] * 3, num_heads=2)
    with pytest.raises(UnsupportedOpError, match="GroupQueryAttention") as caught:
        import_model(proto)
    assert caught.value.cure
