"""Batch norm becomes a product and a sum; see test_scales.py for where they go."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.normalization import BatchNorm
from planish.passes.batch_norm import lower_batch_norm

N = symbol("N")


def parameters(net):
    variance = net.constant(np.abs(net.random.standard_normal(3)) + 0.1)
    return net.weights(3), net.weights(3), net.weights(3), variance


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16])
def test_known_statistics(net, check, dtype):
    net.output(net.add(BatchNorm(1e-3), net.input(N, 4, 3, dtype=dtype), *parameters(net)))
    tolerance = 1e-5 if dtype is DType.FLOAT32 else 2e-2
    assert check(net, lower_batch_norm, tolerance, tolerance) == ["mul", "add"]


def test_computed_statistics_stay(net, check):
    scale, _, mean, variance = parameters(net)
    offset = net.input(3, name="offset")
    net.output(net.add(BatchNorm(1e-3), net.input(N, 3), scale, offset, mean, variance))
    assert check(net, lower_batch_norm) == ["batch_norm"]
