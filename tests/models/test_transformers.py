"""Transformer encoders with any batch and sequence length: equal to ONNX Runtime and TensorFlow."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import planish
from helpers.encoders import MINILM, EncoderSize, bert, keras_encoder, tokens
from helpers.engines import quick_engine
from helpers.frameworks import assert_agrees, keras_model, onnx_model, run_engine

SMALL = EncoderSize()
SHAPES = [(1, 1), (1, 7), (2, 16), (3, 33), (8, 64)]


def _bert_feeds(size: EncoderSize, batch: int, length: int) -> dict[str, np.ndarray]:
    ids, mask = tokens(size, batch, length)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}


@pytest.fixture(scope="module")
def small_bert():
    proto = bert(SMALL)
    return quick_engine(proto), onnx_model(proto)


@pytest.mark.parametrize(("batch", "length"), SHAPES)
def test_bert(batch: int, length: int, small_bert) -> None:
    engine, reference = small_bert
    assert_agrees(engine, reference, _bert_feeds(SMALL, batch, length))


def test_bert_is_native_and_fused(small_bert) -> None:
    engine, _ = small_bert
    assert engine.host_steps() == []
    # 13 a block: QKV, four transposes, two products, softmax, output, MLP, two norms
    assert len(engine.layers()) <= 7 + 13 * SMALL.depth


def test_bert_has_named_dimensions(small_bert) -> None:
    engine, _ = small_bert
    for info in engine.inputs:
        assert [str(d) for d in info.shape] == ["batch", "sequence"]
    hidden, pooled = engine.outputs
    assert [str(d) for d in hidden.shape] == ["batch", "sequence", "32"]
    assert [str(d) for d in pooled.shape] == ["batch", "32"]


def test_positions_bound_the_sequence(small_bert) -> None:
    engine, _ = small_bert
    with pytest.raises(planish.ShapeError, match="sequence"):
        engine(_bert_feeds(SMALL, 1, SMALL.longest + 1))


def test_a_padded_sequence_gives_what_the_short_one_gives(small_bert) -> None:
    engine, _ = small_bert
    feeds = _bert_feeds(SMALL, 1, 10)
    longer = {name: np.pad(array, ((0, 0), (0, 5))) for name, array in feeds.items()}
    short, padded = run_engine(engine, feeds), run_engine(engine, longer)
    np.testing.assert_allclose(padded["pooled"], short["pooled"], atol=1e-5)


def test_a_loaded_plan_gives_equal_results(small_bert) -> None:
    engine, _ = small_bert
    again = planish.load(engine.serialize())
    for batch, length in SHAPES[1:3]:
        feeds = _bert_feeds(SMALL, batch, length)
        results = run_engine(again, feeds)
        for name, expected in run_engine(engine, feeds).items():
            np.testing.assert_array_equal(results[name], expected, err_msg=name)


def test_inputs_that_keras_does_not_relate_have_one_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Keras does not say that ids and mask have one length, and they are added: they must have."""
    network = keras_encoder(SMALL)
    with caplog.at_level(logging.INFO, "planish"):
        engine = quick_engine(network)
    assert "equal" in caplog.text
    reference = keras_model(network)
    for batch, length in SHAPES:
        ids, mask = tokens(SMALL, batch, length)
        feeds = {"ids": ids.astype(np.int32), "mask": mask.astype(np.int32)}
        assert_agrees(engine, reference, feeds)
    ids, mask = np.zeros((2, 5), np.int32), np.ones((2, 6), np.int32)
    with pytest.raises(planish.ShapeError):
        engine({"ids": ids, "mask": mask})


def test_keras_attention() -> None:
    network = keras_encoder(SMALL)
    shape = (None, "sequence")
    engine = quick_engine(network, inputs={"ids": shape, "mask": shape})
    reference = keras_model(network)
    assert engine.host_steps() == []
    for batch, length in SHAPES:
        ids, mask = tokens(SMALL, batch, length)
        feeds = {"ids": ids.astype(np.int32), "mask": mask.astype(np.int32)}
        assert_agrees(engine, reference, feeds)


@pytest.mark.slow
def test_sizes_of_minilm() -> None:
    proto = bert(MINILM)
    engine, reference = quick_engine(proto), onnx_model(proto)
    assert engine.host_steps() == []
    for batch, length in [(1, 8), (1, 128), (4, 50), (2, 512)]:
        assert_agrees(engine, reference, _bert_feeds(MINILM, batch, length))
