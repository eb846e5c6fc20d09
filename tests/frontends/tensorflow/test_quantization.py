import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def

raw = tf.raw_ops
RANGES = [(-6.0, 6.0), (0.0, 6.0), (-1.0, 0.3), (0.5, 2.0), (-3.0, -1.0)]


@pytest.mark.parametrize("limits", RANGES)
@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize("num_bits", [8, 4])
def test_fake_quant(check, rng, limits, narrow_range, num_bits):
    x = rng.normal(size=(5, 40)).astype("f") * 4
    low, high = limits
    flags = {"num_bits": num_bits, "narrow_range": narrow_range}
    check(lambda x: raw.FakeQuantWithMinMaxArgs(inputs=x, min=low, max=high, **flags), x)
    check(lambda x: raw.FakeQuantWithMinMaxVars(inputs=x, min=low, max=high, **flags), x)


def test_fake_quant_per_channel(check, rng):
    x = rng.normal(size=(2, 5, 3)).astype("f") * 4
    low, high = np.float32([-1, -6, 0]), np.float32([1, 5, 6])
    check(lambda x: raw.FakeQuantWithMinMaxVarsPerChannel(inputs=x, min=low, max=high), x)


def test_empty_range(check, rng):
    x = rng.normal(size=(3, 4)).astype("f")
    check(lambda x: raw.FakeQuantWithMinMaxVars(inputs=x, min=0.0, max=0.0), x)


@pytest.mark.parametrize("limits", [*RANGES[:3], (-2.0, 2.0)])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("round_mode", ["HALF_TO_EVEN", "HALF_UP"])
@pytest.mark.parametrize("narrow_range", [False, True])
def test_quantize_and_dequantize(check, rng, limits, signed, round_mode, narrow_range):
    x = rng.normal(size=(5, 40)).astype("f") * 4
    low, high = limits
    flags = {
        "signed_input": signed,
        "range_given": True,
        "round_mode": round_mode,
        "narrow_range": narrow_range,
    }
    check(lambda x: raw.QuantizeAndDequantizeV2(input=x, input_min=low, input_max=high, **flags), x)
    check(lambda x: raw.QuantizeAndDequantizeV4(input=x, input_min=low, input_max=high, **flags), x)


def test_quantize_version_3_and_channels(check, rng):
    x = rng.normal(size=(2, 3, 5)).astype("f") * 4
    check(
        lambda x: raw.QuantizeAndDequantizeV3(input=x, input_min=-3.0, input_max=2.0, num_bits=6), x
    )
    low, high = np.float32([-1, -6, -2]), np.float32([1, 5, 2])
    check(
        lambda x: raw.QuantizeAndDequantizeV3(
            input=x, input_min=low, input_max=high, num_bits=8, axis=1
        ),
        x,
    )


def test_range_of_the_data_is_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [3, 3], "x")
        raw.QuantizeAndDequantizeV2(input=x, input_min=0.0, input_max=1.0, name="y")
    with pytest.raises(UnsupportedOpError, match="range"):
        import_graph_def(graph.as_graph_def(), ["x"], ["y"])
