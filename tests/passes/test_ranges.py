"""Lower bounds hold for what the ops compute."""

import math

import pytest

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.elementwise import Clip, HardSigmoid, ew
from planish.ops.normalization import Softmax
from planish.ops.shape import Concat, Pad
from planish.passes.ranges import least

N = symbol("N")


@pytest.mark.parametrize(
    ("op", "bound"),
    [
        (ew.Relu(), 0),
        (ew.Sigmoid(), 0),
        (ew.Exp(), 0),
        (ew.Square(), 0),
        (HardSigmoid(), 0),
        (Softmax(1), 0),
        (Clip(-2, 5), -2),
        (Clip(3, 1), 1),
        (ew.Tanh(), -math.inf),
        (ew.Neg(), -math.inf),
    ],
)
def test_one_op(net, op, bound):
    assert least(net.add(op, net.input(N, 3))) == bound


def test_bounds_pass_through(net):
    relu = net.add(ew.Relu(), net.input(N, 3))
    clip = net.add(Clip(-1, 1), relu)
    assert least(net.add(Concat(1), relu, clip)) == -1
    assert least(net.add(ew.Maximum(), relu, clip)) == 0
    assert least(net.add(ew.Add(), clip, clip)) == -2
    assert least(net.add(Pad(((0, 0), (1, 1)), value=-3.0), relu)) == -3
    assert least(net.add(ew.Add(), relu, net.constant([1, 2, 3]))) == 1


def test_integers(net):
    assert least(net.input(N, dtype=DType.UINT8)) == 0
    assert least(net.add(ew.Square(), net.input(N, dtype=DType.INT8, name="y"))) == -math.inf
