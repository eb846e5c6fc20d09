"""Unrolled recurrent layers of Keras: each converts whole, and computes what Keras does."""

from __future__ import annotations

import numpy as np
import pytest

import tensorflow as tf
from helpers.engines import quick_engine

layers = tf.keras.layers
LAYERS = {
    "lstm": lambda: layers.LSTM(8, unroll=True),
    "gru": lambda: layers.GRU(8, unroll=True, return_sequences=True),
    "gru_reset_before": lambda: layers.GRU(8, unroll=True, reset_after=False, go_backwards=True),
    "bidirectional": lambda: layers.Bidirectional(layers.LSTM(6, unroll=True)),
    "simple_rnn": lambda: layers.SimpleRNN(6, unroll=True, return_sequences=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    rng = np.random.default_rng(1)
    model = tf.keras.Sequential([tf.keras.Input((2, 5)), LAYERS[name]()])
    engine = quick_engine(model, allow_fallback=False)
    for batch in (1, 3):
        x = rng.standard_normal((batch, 2, 5)).astype(np.float32)
        np.testing.assert_allclose(engine(x), model(x).numpy(), atol=1e-5)
