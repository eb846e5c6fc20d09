"""Each rule of canonicalization keeps the results and leaves the form it promises."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.passes.canonical import canonicalize, finish

N = symbol("N")

CASES = {
    "constant right": (lambda n, x: n.add(ew.Mul(), n.weights(4), x), ["mul"]),
    "subtract": (lambda n, x: n.add(ew.Sub(), x, n.weights(4)), ["add"]),
    "divide": (lambda n, x: n.add(ew.Div(), x, n.weights(4)), ["mul"]),
    "divide by zero": (lambda n, x: n.add(ew.Div(), x, n.constant([1e-42, 1, 2, 3])), ["div"]),
    "maximum": (lambda n, x: n.add(ew.Maximum(), n.constant(0.5), x), ["clip"]),
    "relu": (lambda n, x: n.add(ew.Maximum(), x, n.constant([0.0])), ["relu"]),
    "minimum": (lambda n, x: n.add(ew.Minimum(), x, n.constant(0.5)), ["clip"]),
    "maximum of channels": (lambda n, x: n.add(ew.Maximum(), x, n.weights(4)), ["maximum"]),
    "steep leaky relu": (
        lambda n, x: n.add(ew.Maximum(), x, n.add(ew.Mul(), x, n.constant(2.0))),
        ["mul", "maximum"],
    ),
    "square": (lambda n, x: n.add(ew.Pow(), x, n.constant(2.0)), ["square"]),
    "product": (lambda n, x: n.add(ew.Mul(), x, x), ["square"]),
    "prelu": (lambda n, x: n.add(ew.Prelu(), x, n.constant(0.25)), ["leaky_relu"]),
    "reciprocal": (lambda n, x: n.add(ew.Div(), n.constant(1.0), x), ["reciprocal"]),
    "add negative": (
        lambda n, x: n.add(ew.Add(), n.add(ew.Neg(), x), n.add(ew.Exp(), x)),
        ["exp", "sub"],
    ),
    "subtract negative": (
        lambda n, x: n.add(ew.Sub(), n.add(ew.Exp(), x), n.add(ew.Neg(), x)),
        ["exp", "add"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule(net, check, case):
    build, left = CASES[case]
    net.output(build(net, net.input(N, 4)))
    assert check(net, canonicalize) == left


def test_keras_prelu(net, check):
    x = net.input(N, 4)
    negative = net.add(ew.Mul(), net.weights(4), net.add(ew.Relu(), net.add(ew.Neg(), x)))
    net.output(net.add(ew.Add(), net.add(ew.Relu(), x), negative))
    assert check(net, canonicalize) == ["prelu"]


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5])
def test_powers(net, check, exponent):
    x = net.add(ew.Exp(), net.input(N, 4))
    net.output(net.add(ew.Pow(), x, net.constant(exponent)))
    assert check(net, canonicalize)[1] in {"reciprocal", "rsqrt", "sqrt"}


def test_roots_become_reciprocal_roots(net, check):
    root = net.add(ew.Sqrt(), net.add(ew.Exp(), net.input(N, 4)))
    net.output(net.add(ew.Div(), net.input(N, 4, name="y"), root))
    assert check(net, canonicalize) == ["exp", "rsqrt", "mul"]


@pytest.mark.parametrize("dtype", [DType.INT32, DType.UINT8])
def test_integers(net, check, dtype):
    x = net.input(N, 4, dtype=dtype)
    net.output(
        net.add(ew.Sub(), x, net.constant(3, dtype.numpy)),
        net.add(ew.Div(), x, net.constant(3, dtype.numpy)),
        net.add(ew.Maximum(), x, net.constant(3, dtype.numpy)),
    )
    names = check(net, canonicalize)
    assert "div" in names
    assert ("sub" in names) == (dtype is DType.UINT8)


def test_wide_integers_keep_their_bounds(net, check):
    x = net.input(N, 4, dtype=DType.INT64)
    net.output(net.add(ew.Maximum(), x, net.constant(2**53 + 1, np.int64)))
    assert check(net, canonicalize) == ["maximum"]


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.BFLOAT16])
def test_halves_are_divided_unless_the_inverse_is_exact(net, check, dtype):
    x = net.input(N, 4, dtype=dtype)
    net.output(
        net.add(ew.Div(), x, net.constant([3.0, 5.0, 2.0, 4.0], dtype.numpy)),
        net.add(ew.Div(), x, net.constant([1.0, 0.5, 2.0, 4.0], dtype.numpy)),
    )
    assert check(net, canonicalize, rtol=0, atol=0) == ["div", "mul"]


def test_last_rules(net, check):
    x = net.input(N, 4)
    y = net.add(ew.Mul(), net.add(ew.Pow(), x, net.constant(3.0)), net.constant(-1.0))
    net.output(net.add(ew.Add(), y, net.add(ew.Exp(), x)))
    assert sorted(check(net, finish, rtol=1e-4)) == ["exp", "mul", "square", "sub"]
