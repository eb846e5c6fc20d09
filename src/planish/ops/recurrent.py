"""Recurrent layers: LSTM, GRU and the simple RNN, over whole sequences.

The product of the inputs with their weights, biases included, is done before, for all steps at
once (an ordinary `MatMul`); an op here is what must be done step by step. Shapes are in

    T steps, N sequences, D directions (1 or 2), G gates, H hidden units

Equations and names are those of ONNX, which follow Hochreiter & Schmidhuber, "Long short-term
memory", Neural Computation 9 (1997), with Gers & Schmidhuber's peepholes, and Cho et al., "Learning
phrase representations using RNN encoder-decoder", arXiv:1406.1078.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require
from planish.ops.elementwise import Elementwise, Elu, HardSigmoid, LeakyRelu, Select, ew

Activation = tuple[str, float, float]
"""The name of a function, alpha and beta; functions that have none ignore them."""

T = TypeVar("T")
Apply = Callable[..., T]


def _affine(apply: Apply[T], x: T, alpha: T, beta: T) -> T:
    return apply(ew.Add(), apply(ew.Mul(), x, alpha), beta)


def _scaled_tanh(apply: Apply[T], x: T, alpha: T, beta: T) -> T:
    return apply(ew.Mul(), apply(ew.Tanh(), apply(ew.Mul(), x, beta)), alpha)


def _thresholded_relu(apply: Apply[T], x: T, alpha: T, beta: T) -> T:
    zero = apply(ew.Sub(), alpha, alpha)
    return apply(Select(), apply(ew.GreaterEqual(), x, alpha), x, zero)


_PLAIN: dict[str, Callable[[float, float], Elementwise]] = {
    "relu": lambda alpha, beta: ew.Relu(),
    "tanh": lambda alpha, beta: ew.Tanh(),
    "sigmoid": lambda alpha, beta: ew.Sigmoid(),
    "softsign": lambda alpha, beta: ew.Softsign(),
    "softplus": lambda alpha, beta: ew.Softplus(),
    "leaky_relu": lambda alpha, beta: LeakyRelu(alpha),
    "elu": lambda alpha, beta: Elu(alpha),
    "hard_sigmoid": HardSigmoid,
}
_COMPOSED: dict[str, Callable[..., object]] = {
    "affine": _affine,
    "scaled_tanh": _scaled_tanh,
    "thresholded_relu": _thresholded_relu,
}
ACTIVATIONS = (*_PLAIN, *_COMPOSED)
"""The names of all functions."""


def activate(activation: Activation, x: T, apply: Apply[T], constant: Callable[[float], T]) -> T:
    """An activation written in elementwise ops.

    Parameters
    ----------
    activation : Activation
    x
        Its argument: an array, or a register.
    apply : callable
        ``apply(op, *arguments)`` computes an elementwise op.
    constant : callable
        Makes an argument of a number.
    """
    name, alpha, beta = activation
    if name in _PLAIN:
        return apply(_PLAIN[name](alpha, beta), x)
    return _COMPOSED[name](apply, x, constant(alpha), constant(beta))  # type: ignore[return-value]


@dataclass(frozen=True)
class Recurrent(Op, abstract=True):
    """Base class.

    Inputs: projected inputs ``[T, N, D, G, H]``, recurrent weights ``[D, H, G, H]`` (from unit, by
    gate, to unit), the first state ``[D, N, H]`` (and for LSTM the first cell), then what a class
    adds, then with `lengths` the length of each sequence, ``[N]`` integers. Steps beyond a
    sequence's length leave the state as it is and give 0.

    Outputs: the states of all steps ``[T, N, D, H]``, the last state ``[D, N, H]`` (and cell).

    Attributes
    ----------
    reverse : tuple of bool
        For each direction whether it runs from a sequence's end to its beginning.
    activations : tuple of Activation
    clip : float
        Sums of gates are clipped to ``[-clip, clip]`` before their activation (a cell is not
        clipped, as in ONNX Runtime); infinite: not at all.
    lengths : bool
        Whether lengths are given.
    """

    reverse: tuple[bool, ...]
    activations: tuple[Activation, ...]
    clip: float = float("inf")
    lengths: bool = False
    gates: ClassVar[int]
    states: ClassVar[int] = 1
    functions: ClassVar[int]
    """How many activations there are."""

    def extras(self, directions: int, hidden: int) -> list[tuple[int, ...]]:
        """The shapes of a class's own inputs."""
        return []

    def infer(self, *inputs: Value) -> list[TensorType]:
        require(len(inputs) >= 2 + self.states, f"{self.name} lacks inputs")
        x = inputs[0]
        require(
            x.dtype in (DType.FLOAT32, DType.FLOAT64),
            f"{self.name} needs float32 or float64, not {x.dtype.value}",
            cure="cast the inputs to float32",
        )
        require(x.type.rank == 5, f"{self.name} needs inputs [T, N, D, G, H], not {x.type}")
        steps, batch, directions, gates, hidden = x.shape
        require(
            directions == len(self.reverse) and directions in (1, 2) and gates == self.gates,
            f"{self.name} of {len(self.reverse)} directions was given {x.type}",
        )
        require(isinstance(hidden, int), f"{self.name} needs a known number of hidden units")
        known = (int(directions), int(hidden))  # type: ignore[arg-type]
        state = (directions, batch, hidden)
        wanted = [
            (directions, hidden, gates, hidden),
            *(state for _ in range(self.states)),
            *self.extras(*known),
        ]
        given = inputs[1 : len(wanted) + 1]
        require(
            len(inputs) == len(wanted) + 1 + self.lengths
            and all(v.dtype is x.dtype for v in given)
            and [v.shape for v in given] == wanted,
            f"{self.name} of {x.type} was given {', '.join(str(v.type) for v in inputs[1:])}",
        )
        if self.lengths:
            lengths = inputs[-1]
            require(
                lengths.shape == (batch,) and lengths.dtype.is_integer,
                f"{self.name} of {batch} sequences has lengths {lengths.type}",
            )
        require(
            len(self.activations) == self.functions
            and all(name in ACTIVATIONS for name, _, _ in self.activations),
            f"{self.name} cannot have the activations {self.activations}",
        )
        last = TensorType(state, x.dtype)
        return [
            TensorType((steps, batch, directions, hidden), x.dtype),
            *(last for _ in range(self.states)),
        ]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        x = inputs[0]
        steps, batch, directions, _, hidden = x.shape
        counts = np.full(batch, steps)
        if self.lengths:
            counts = np.clip(inputs[-1].astype(np.int64), 0, steps)
        y = np.zeros((steps, batch, directions, hidden), x.dtype)
        last = [np.array(state) for state in inputs[2 : 2 + self.states]]
        rows = np.arange(batch)
        for d in range(directions):
            given = [v[d] for v in (inputs[1], *inputs[2 + self.states :])[: 1 + self._extra_count]]
            for step in range(steps):
                active = (step < counts)[:, None]
                place = np.where(active[:, 0], counts - 1 - step, step) if self.reverse[d] else step
                states = [state[d] for state in last]
                after = self.step(x[place, rows, d], states, *given)
                for state, new, old in zip(last, after, states, strict=True):
                    state[d] = np.where(active, new, old)
                y[place, rows, d] = np.where(active, after[0], 0)
        return [y, *last]

    @property
    def _extra_count(self) -> int:
        return len(self.extras(1, 1))

    def step(
        self, x: np.ndarray, states: Sequence[np.ndarray], weights: np.ndarray, *extras: np.ndarray
    ) -> list[np.ndarray]:
        """The states after a step of one direction: x ``[N, G, H]``, states ``[N, H]``."""
        raise NotImplementedError

    def gate(self, index: int, x: np.ndarray) -> np.ndarray:
        """One of the activations of a sum, which is clipped before."""
        return self.activation(index, np.clip(x, -self.clip, self.clip).astype(x.dtype))

    def activation(self, index: int, x: np.ndarray) -> np.ndarray:
        """One of the activations."""
        return activate(
            self.activations[index],
            x,
            lambda op, *arguments: op.reference(*arguments)[0],
            lambda number: np.asarray(number, x.dtype),
        )


@dataclass(frozen=True)
class Rnn(Recurrent):
    """``H' = f(x + H R)``."""

    gates: ClassVar[int] = 1
    functions: ClassVar[int] = 1

    def step(
        self, x: np.ndarray, states: Sequence[np.ndarray], weights: np.ndarray, *extras: np.ndarray
    ) -> list[np.ndarray]:
        return [self.gate(0, x[:, 0] + states[0] @ weights[:, 0])]


@dataclass(frozen=True)
class Gru(Recurrent):
    """Gated recurrent unit; gates are update z, reset r, hidden h; activations are f, g.

        z = f(xz + H Rz)    r = f(xr + H Rr)    h = g(xh + (r * H) Rh)    H' = (1 - z) h + z H

    With `reset_after` (ONNX: linear_before_reset) ``h = g(xh + r * (H Rh + bias))``, where the bias
    ``[D, H]`` is an input after the first state.
    """

    reset_after: bool = False
    gates: ClassVar[int] = 3
    functions: ClassVar[int] = 2

    def extras(self, directions: int, hidden: int) -> list[tuple[int, ...]]:
        return [(directions, hidden)] if self.reset_after else []

    def step(
        self, x: np.ndarray, states: Sequence[np.ndarray], weights: np.ndarray, *extras: np.ndarray
    ) -> list[np.ndarray]:
        (state,) = states
        update = self.gate(0, x[:, 0] + state @ weights[:, 0])
        reset = self.gate(0, x[:, 1] + state @ weights[:, 1])
        if self.reset_after:
            inner = reset * (state @ weights[:, 2] + extras[0])
        else:
            inner = (reset * state) @ weights[:, 2]
        hidden = self.gate(1, x[:, 2] + inner)
        return [(1 - update) * hidden + update * state]


@dataclass(frozen=True)
class Lstm(Recurrent):
    """Long short-term memory; gates are input i, output o, forget f, cell c; activations f, g, h.

        i = f(xi + H Ri + Pi * C)    f = f(xf + H Rf + Pf * C)    c = g(xc + H Rc)
        C' = f * C + i * c           o = f(xo + H Ro + Po * C')   H' = o * h(C')

    With `input_forget` ``f = 1 - i``. With `peepholes` Pi, Po, Pf ``[D, 3, H]`` are an input after
    the first cell; else they are 0.
    """

    input_forget: bool = False
    peepholes: bool = False
    gates: ClassVar[int] = 4
    states: ClassVar[int] = 2
    functions: ClassVar[int] = 3

    def extras(self, directions: int, hidden: int) -> list[tuple[int, ...]]:
        return [(directions, 3, hidden)] if self.peepholes else []

    def step(
        self, x: np.ndarray, states: Sequence[np.ndarray], weights: np.ndarray, *extras: np.ndarray
    ) -> list[np.ndarray]:
        state, cell = states
        sums = [x[:, g] + state @ weights[:, g] for g in range(4)]
        holes = extras[0] if self.peepholes else np.zeros((3, 1), x.dtype)
        entering = self.gate(0, sums[0] + holes[0] * cell)
        kept = 1 - entering
        if not self.input_forget:
            kept = self.gate(0, sums[2] + holes[2] * cell)
        cell = kept * cell + entering * self.gate(1, sums[3])
        leaving = self.gate(0, sums[1] + holes[1] * cell)
        return [leaving * self.activation(2, cell), cell]
