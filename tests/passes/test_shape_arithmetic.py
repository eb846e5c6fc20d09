"""Values of known content become constants or dimensions."""

import numpy as np

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.indexing import Gather
from planish.ops.shape import Concat, Reshape, ShapeOf
from planish.passes.shape_arithmetic import resolve_shape_arithmetic

N = symbol("N")


def index(net, *places):
    return net.graph.constant(np.array(places, np.int64))


def test_known_shapes_become_constants(net, check):
    x = net.input(N, 4, 6)
    sizes = net.add(Gather(0), net.add(ShapeOf(), x), index(net, 1, 2))
    net.output(net.add(Cast(DType.FLOAT32), sizes))
    assert check(net, resolve_shape_arithmetic) == ["cast"]


def test_symbolic_shapes_become_dimensions(net, check):
    x = net.input(N, 4)
    shape = net.add(ShapeOf(), x)
    doubled = net.add(ew.Mul(), shape, net.graph.constant(np.array([2, 3], np.int64)))
    net.output(net.add(Concat(0), doubled, shape))
    assert check(net, resolve_shape_arithmetic) == ["dims"]


def test_scalars_and_matrices(net, check):
    shape = net.add(ShapeOf(), net.input(N, 4))
    scalar = net.add(Reshape(()), net.add(Gather(0), shape, index(net, 0)))
    net.output(scalar, net.add(Reshape((2, 1)), shape))
    assert sorted(check(net, resolve_shape_arithmetic)) == ["dims", "dims", "reshape"]
    assert not resolve_shape_arithmetic(net.graph)


def test_data_stays_data(net, check):
    net.output(net.add(ew.Neg(), net.input(N, 2, dtype=DType.INT64)))
    assert check(net, resolve_shape_arithmetic) == ["neg"]
