"""Simulated quantization, bit by bit as TensorFlow computes it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import tensorflow as tf
from helpers.engines import quick_engine
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret

raw = tf.raw_ops
RANGES = [(-6.0, 6.0), (0.0, 6.0), (-1.0, 0.3), (0.5, 2.0), (-3.0, -1.0), (0.0, 0.0)]
MODES = ["HALF_TO_EVEN", "HALF_UP"]


@pytest.fixture
def exact():
    """Compares bits with TensorFlow: the references, and on demand an engine."""

    def compare(build, *arrays, engine=False):
        with tf.Graph().as_default() as graph:
            names = [f"x{i}" for i in range(len(arrays))]
            ends = [
                tf.compat.v1.placeholder(a.dtype, a.shape, n)
                for n, a in zip(names, arrays, strict=True)
            ]
            output = build(*ends)
            with tf.compat.v1.Session(graph=graph) as session:
                expected = session.run(output, dict(zip(ends, arrays, strict=True)))
        feeds = dict(zip(names, arrays, strict=True))
        imported = import_graph_def(graph.as_graph_def(), names, [output.name])
        (result,) = interpret(imported, feeds)
        assert result.dtype == expected.dtype
        assert_array_equal(result, expected)
        if engine:
            built = quick_engine(graph.as_graph_def(), outputs=[output.name], allow_fallback=False)
            assert_array_equal(built(feeds), expected)

    return compare


def values(rng, *shape: int, dtype=np.float32) -> np.ndarray:
    """Random numbers, and many that lie halfway between the levels of a range of 12 or 6."""
    x = (rng.normal(size=shape) * 4).astype(dtype)
    levels = np.arange(x.size // 4) - x.size // 8
    x.reshape(-1)[: levels.size] = ((levels + 0.5) * 12 / 255).astype(dtype)
    return x


@pytest.mark.parametrize("limits", RANGES)
@pytest.mark.parametrize("narrow_range", [False, True])
@pytest.mark.parametrize("num_bits", [8, 4, 16])
def test_fake_quant(exact, rng, limits, narrow_range, num_bits):
    x = values(rng, 5, 400)
    low, high = limits
    flags = {"num_bits": num_bits, "narrow_range": narrow_range}
    if low <= 0 <= high and low < high:  # TensorFlow refuses other attributes
        exact(lambda x: raw.FakeQuantWithMinMaxArgs(inputs=x, min=low, max=high, **flags), x)
    exact(lambda x: raw.FakeQuantWithMinMaxVars(inputs=x, min=low, max=high, **flags), x)
    computed = np.float32(low), np.float32(high)
    exact(
        lambda x, a, b: raw.FakeQuantWithMinMaxVars(inputs=x, min=a, max=b, **flags), x, *computed
    )


@pytest.mark.parametrize("narrow_range", [False, True])
def test_fake_quant_per_channel(exact, rng, narrow_range):
    x = values(rng, 2, 50, 4)
    low, high = np.float32([-1, -6, 0, 0]), np.float32([1, 5, 6, 0])

    def build(x, low=low, high=high):
        return raw.FakeQuantWithMinMaxVarsPerChannel(
            inputs=x, min=low, max=high, narrow_range=narrow_range
        )

    exact(build, x)
    exact(build, x, low, high)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("round_mode", MODES)
@pytest.mark.parametrize("narrow_range", [False, True])
def test_quantize_and_dequantize(exact, rng, dtype, signed, round_mode, narrow_range):
    x = values(rng, 5, 400, dtype=dtype)
    flags = {"signed_input": signed, "round_mode": round_mode, "narrow_range": narrow_range}
    ops = (raw.QuantizeAndDequantizeV2, raw.QuantizeAndDequantizeV4)
    for low, high in [*RANGES[:3], (-2.0, 2.0)]:
        ends = np.asarray(low, dtype), np.asarray(high, dtype)
        for op in ops:
            options = {**flags, "range_given": True}
            exact(
                lambda x, o=op, f=options, e=ends: o(input=x, input_min=e[0], input_max=e[1], **f),
                x,
            )
            exact(
                lambda x, a, b, o=op, f=options: o(input=x, input_min=a, input_max=b, **f), x, *ends
            )
    for axis in (-1, 0, 1):
        end = np.zeros(() if axis < 0 else x.shape[axis], dtype)
        options = {**flags, "range_given": False, "axis": axis, "input_min": end, "input_max": end}
        exact(lambda x, f=options: ops[0](input=x, **f), x)
        exact(lambda x, f=options: ops[1](input=x, **f), abs(x))


@pytest.mark.parametrize("bits", [2, 6, 8, 12])
def test_version_3_takes_its_bits_as_an_input(exact, rng, bits):
    x = values(rng, 2, 3, 50)
    op = raw.QuantizeAndDequantizeV3
    exact(lambda x: op(input=x, input_min=-3.0, input_max=2.0, num_bits=bits), x)
    low, high = np.float32([-1, -6, -2]), np.float32([1, 5, 2])
    exact(lambda x: op(input=x, input_min=low, input_max=high, num_bits=bits, axis=1), x)
    exact(
        lambda x, a, b: op(input=x, input_min=a, input_max=b, num_bits=bits, axis=1), x, low, high
    )
    none = np.zeros(3, np.float32)
    exact(
        lambda x: op(
            input=x, input_min=none, input_max=none, num_bits=bits, axis=1, range_given=False
        ),
        x,
    )


def test_engines_round_as_tensorflow_does(exact, rng):
    x = values(rng, 4, 600)
    low, high = np.float32(-6), np.float32(6)
    limits = {"input_min": low, "input_max": high, "range_given": True}
    fake, snap = raw.FakeQuantWithMinMaxVars, raw.QuantizeAndDequantizeV2
    exact(lambda x: fake(inputs=x, min=low, max=high), x, engine=True)
    exact(lambda x, a, b: fake(inputs=x, min=a, max=b), x, low, np.float32(7.1), engine=True)
    for mode in MODES:
        exact(lambda x, m=mode: snap(input=x, round_mode=m, **limits), x, engine=True)
    ends = np.zeros(4, np.float32)
    none = {"input_min": ends, "input_max": ends, "range_given": False, "axis": 0}
    exact(lambda x: snap(input=x, **none), x, engine=True)


@pytest.mark.parametrize("bits", [0, -1, 2**31 - 1])
def test_impossible_numbers_of_bits_are_refused(bits):
    """The largest made 2 ** num_bits a number that fills the memory."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, 3], "x")
        raw.QuantizeAndDequantizeV2(input=x, input_min=-1.0, input_max=1.0, num_bits=8, name="y")
        raw.FakeQuantWithMinMaxVars(inputs=x, min=-1.0, max=1.0, num_bits=8, name="z")
    graph_def = graph.as_graph_def()
    for node in graph_def.node:
        if "num_bits" in node.attr:
            node.attr["num_bits"].i = bits
    for name in ("y", "z"):
        with pytest.raises(UnsupportedOpError, match=f"num_bits is {bits}, not between"):
            import_graph_def(graph_def, ["x"], [name])
