"""Activations in primitives, in several spellings, become one op."""

import math

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.elementwise import Clip, Select, ew
from planish.passes.activations import recognize_activations
from planish.passes.canonical import canonicalize

N = symbol("N")


class Spell:
    """Arithmetic on values as a model's author would write it."""

    def __init__(self, net, x=None):
        self.net, self.x = net, x if x is not None else net.input(N, 5)

    def c(self, number):
        return self.net.constant(number)

    def __getattr__(self, name):
        op = getattr(ew, name[0].upper() + name[1:])()

        def apply(*operands):
            values = [v if hasattr(v, "type") else self.c(v) for v in operands]
            return self.net.add(op, *values)

        return apply

    def clip(self, value, low, high):
        return self.net.add(Clip(low, high), value)


def gelu_a(s):
    return s.mul(s.mul(0.5, s.x), s.add(1.0, s.erf(s.div(s.x, math.sqrt(2)))))


def gelu_b(s):
    return s.mul(s.mul(s.x, s.add(s.erf(s.mul(s.x, math.sqrt(0.5))), 1.0)), 0.5)


def gelu_c(s):
    return s.mul(s.x, s.mul(0.5, s.add(s.erf(s.div(s.x, math.sqrt(2))), 1.0)))


def gelu_d(s):
    return s.mul(s.x, s.add(s.mul(s.erf(s.div(s.x, math.sqrt(2))), 0.5), 0.5))


def gelu_e(s):
    erfc = s.sub(1.0, s.erf(s.mul(s.neg(s.x), math.sqrt(0.5))))
    return s.mul(s.mul(0.5, s.x), erfc)


def tanh_gelu(cubic):
    def spell(s):
        inner = s.mul(math.sqrt(2 / math.pi), s.add(s.x, cubic(s)))
        return s.mul(s.mul(0.5, s.x), s.add(1.0, s.tanh(inner)))

    return spell


def tanh_gelu_factored(s):
    inner = s.mul(s.mul(s.x, math.sqrt(2 / math.pi)), s.add(s.mul(0.044715, s.square(s.x)), 1.0))
    return s.mul(s.x, s.mul(0.5, s.add(1.0, s.tanh(inner))))


def hard_swish_a(s):
    return s.mul(s.x, s.div(s.clip(s.add(s.x, 3.0), 0.0, 6.0), 6.0))


def hard_swish_b(s):
    return s.div(s.mul(s.x, s.clip(s.add(3.0, s.x), 0.0, 6.0)), 6.0)


def hard_swish_c(s):
    return s.mul(s.mul(s.x, 1 / 6), s.clip(s.add(s.x, 3.0), 0.0, 6.0))


SPELLINGS = {
    "silu": lambda s: s.mul(s.x, s.sigmoid(s.x)),
    "silu, swapped": lambda s: s.mul(s.sigmoid(s.x), s.x),
    "sigmoid": lambda s: s.div(1.0, s.add(1.0, s.exp(s.neg(s.x)))),
    "hard_sigmoid": lambda s: s.clip(s.add(s.mul(s.x, 0.2), 0.5), 0.0, 1.0),
    "hard_sigmoid, by 6": lambda s: s.div(s.clip(s.add(s.x, 3.0), 0.0, 6.0), 6.0),
    "hard_swish, a": hard_swish_a,
    "hard_swish, b": hard_swish_b,
    "hard_swish, c": hard_swish_c,
    "softplus": lambda s: s.log(s.add(1.0, s.exp(s.x))),
    "softplus, log1p": lambda s: s.log1p(s.exp(s.x)),
    "mish": lambda s: s.mul(s.x, s.tanh(s.log(s.add(s.exp(s.x), 1.0)))),
    "gelu, a": gelu_a,
    "gelu, b": gelu_b,
    "gelu, c": gelu_c,
    "gelu, d": gelu_d,
    "gelu, by erfc": gelu_e,
    "gelu, tanh, pow": tanh_gelu(lambda s: s.mul(0.044715, s.pow(s.x, 3.0))),
    "gelu, tanh, products": tanh_gelu(lambda s: s.mul(0.044715, s.mul(s.mul(s.x, s.x), s.x))),
    "gelu, tanh, left": tanh_gelu(lambda s: s.mul(s.mul(s.mul(0.044715, s.x), s.x), s.x)),
    "gelu, tanh, factored": tanh_gelu_factored,
    "leaky_relu": lambda s: s.maximum(s.x, s.mul(s.x, 0.1)),
    "elu": lambda s: s.net.add(Select(), s.greater(s.x, 0.0), s.x, s.sub(s.exp(s.x), 1.0)),
}


def recognize(graph):
    canonicalize(graph)
    recognize_activations(graph)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(net, check, spelling):
    net.output(SPELLINGS[spelling](Spell(net)))
    assert check(net, recognize, rtol=1e-3, atol=1e-4) == [spelling.split(",")[0]]


def test_other_constants_are_not_gelu(net, check):
    s = Spell(net)
    net.output(s.mul(s.mul(s.x, s.add(s.erf(s.mul(s.x, 0.8)), 1.0)), 0.5))
    assert "gelu" not in check(net, recognize)


def test_a_shared_sigmoid_stays(net, check):
    s = Spell(net)
    gate = s.sigmoid(s.x)
    net.output(s.mul(s.x, gate), gate)
    assert check(net, recognize) == ["sigmoid", "mul"]


def test_integers_between_bounds_are_no_hard_sigmoid(net, check):
    x = net.input(N, 5, dtype=DType.INT32)
    shifted = net.add(ew.Add(), x, net.constant(1, np.int32))
    net.output(net.add(Clip(0.0, 1.0), shifted))
    assert check(net, recognize) == ["add", "clip"]
