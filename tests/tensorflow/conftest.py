"""Small SavedModels, and engines built without measuring."""

from __future__ import annotations

import os

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")


@pytest.fixture(autouse=True, scope="module")
def _connected():
    """The ops ask the real engines, whatever an earlier module had them ask."""
    from planish.tensorflow import engine_op
    from planish.tensorflow.engines import registry

    engine_op.connect(registry.resolve, registry.weight)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Engines are built by heuristics, and no variable of the user's shell steers them."""
    for name in list(os.environ):
        if name.startswith(("TF_TRT_", "PLANISH_")) and name != "PLANISH_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PLANISH_TUNING_SECONDS", "0")


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)


class Layers:
    """Layers with random weights, of plain TensorFlow ops; new ones at each call."""

    def __init__(self, rng):
        self.rng = rng

    def weight(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[:-1]))

    def conv(self, x, channels, size=3, stride=1):
        kernel = self.weight(size, size, x.shape[-1], channels)
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, stride, "SAME"), self.weight(channels))


@pytest.fixture
def layers(rng):
    return Layers(rng)


@pytest.fixture
def save(tmp_path):
    """``save(function, *specs)`` writes a SavedModel; its folder, and its function as loaded."""
    count = 0

    def write(function, *specs, resources=()):
        nonlocal count
        count += 1
        module = tf.Module()
        module.resources = list(resources)
        module.serve = tf.function(function, input_signature=list(specs))
        folder = str(tmp_path / f"model_{count}")
        tf.saved_model.save(module, folder, signatures=module.serve)
        return folder, tf.saved_model.load(folder).signatures["serving_default"]

    return write


def close(actual, expected, tolerance=2e-5):
    """Floats agree to a share of the largest, everything else exactly."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
    else:
        scale = max(1e-6, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(name="close")
def _close():
    return close
