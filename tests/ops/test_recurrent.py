"""Shape rules of recurrent layers, and properties that their references must have.

That the equations are ONNX's is tested with the frontend, against ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import pytest

from helpers.one_op import check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.graph import DType, TensorType
from planish.ops import Gru, Lstm, Rnn
from planish.ops.recurrent import ACTIVATIONS, Activation, Recurrent

rng = np.random.default_rng(5)
SIGMOID: Activation = ("sigmoid", 0.0, 0.0)
TANH: Activation = ("tanh", 0.0, 0.0)
USUAL = {Rnn: (TANH,), Gru: (SIGMOID, TANH), Lstm: (SIGMOID, TANH, TANH)}


def make(kind: type[Recurrent], *reverse: bool, **attributes) -> Recurrent:
    return kind(reverse or (False,), USUAL[kind], **attributes)


def types_of(op: Recurrent, steps, batch, hidden: int, dtype: str = "f32") -> list[TensorType]:
    d, g = len(op.reverse), op.gates
    types = [tensor(dtype, steps, batch, d, g, hidden), tensor(dtype, d, hidden, g, hidden)]
    types += [tensor(dtype, d, batch, hidden)] * op.states
    types += [tensor(dtype, *shape) for shape in op.extras(d, hidden)]
    return types + [tensor("i32", batch)] * op.lengths


def arrays_of(op: Recurrent, steps: int, batch: int, hidden: int) -> list[np.ndarray]:
    types = types_of(op, steps, batch, hidden)
    arrays = [rng.standard_normal(t.shape).astype(np.float32) for t in types]
    if op.lengths:
        arrays[-1] = rng.integers(0, steps + 1, batch).astype(np.int32)
    return arrays


KINDS = [
    make(Rnn, False, True),
    make(Gru, True),
    make(Gru, reset_after=True, lengths=True),
    make(Lstm, False, True, lengths=True, clip=0.5),
    make(Lstm, peepholes=True, input_forget=True),
]


@pytest.mark.parametrize("op", KINDS, ids=str)
def test_symbolic_shapes(op):
    check_symbolic(op, types_of(op, "T", "N", 6), {"T": 3, "N": 2})


@pytest.mark.parametrize("op", KINDS, ids=str)
def test_a_sequence_does_not_depend_on_its_neighbours(op):
    arrays = arrays_of(op, 5, 4, 6)
    whole = run(op, *arrays)
    batched = [1, None, *[1] * op.states, *[None] * len(op.extras(1, 1)), *[0] * op.lengths]
    one = [
        a if axis is None else a.take([2], axis) for a, axis in zip(arrays, batched, strict=True)
    ]
    for result, alone in zip(whole, run(op, *one), strict=True):
        np.testing.assert_allclose(result.take([2], 1), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", USUAL)
def test_reverse_is_forward_over_reversed_steps(kind):
    forward, backward = make(kind), make(kind, True)
    x, *others = arrays_of(forward, 6, 3, 5)
    y, *last = run(forward, x, *others)
    z, *final = run(backward, x[::-1].copy(), *others)
    np.testing.assert_array_equal(y[::-1], z)
    for a, b in zip(last, final, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", USUAL)
@pytest.mark.parametrize("reverse", [False, True])
def test_steps_beyond_a_length_count_for_nothing(kind, reverse):
    op = make(kind, reverse, lengths=True)
    x, *others, _ = arrays_of(op, 6, 1, 5)
    y, *last = run(op, x, *others, np.array([4], np.int32))
    short, *final = run(make(kind, reverse), x[:4], *others)
    np.testing.assert_array_equal(y[:4], short)
    assert not y[4:].any()
    for a, b in zip(last, final, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_steps_keep_the_state():
    op = make(Lstm, lengths=True)
    x, weights, state, cell, _ = arrays_of(op, 3, 2, 4)
    y, last, end = run(op, x, weights, state, cell, np.zeros(2, np.int32))
    assert not y.any()
    np.testing.assert_array_equal(last, state)
    np.testing.assert_array_equal(end, cell)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name):
    op = Rnn((False,), ((name, 0.7, 0.2),))
    y, _ = run(op, *arrays_of(op, 2, 3, 4))
    assert np.isfinite(y).all()


def test_what_does_not_fit_is_refused():
    op = make(Gru, reset_after=True)
    types = types_of(op, 3, 2, 4)
    for number in range(1, len(types)):
        wrong = list(types)
        wrong[number] = TensorType((*types[number].shape[:-1], 5), DType.FLOAT32)
        with pytest.raises(ShapeError, match="gru"):
            infer(op, *wrong)
    with pytest.raises(ShapeError, match="gru"):
        infer(op, *types[:-1])
    with pytest.raises(ShapeError, match="float32 or float64"):
        infer(op, *types_of(op, 3, 2, 4, "f16"))
    with pytest.raises(ShapeError, match="activations"):
        infer(Rnn((False,), (("swish", 0.0, 0.0),)), *types_of(make(Rnn), 3, 2, 4))
    with pytest.raises(ShapeError, match="1 directions"):
        infer(make(Rnn), *types_of(make(Rnn, False, True), 3, 2, 4))
    x = tensor("f32", 3, 2, 1, 1, "H")
    with pytest.raises(ShapeError, match="known number"):
        infer(make(Rnn), x, *types_of(make(Rnn), 3, 2, 4)[1:])
