"""Recurrent layers: RNN, GRU and LSTM.

The product of the inputs with their weights is one matrix product over the whole sequence, for all
gates and directions; the recurrence is an op of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from planish.errors import ModelError
from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import broadcast, reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.ops import Concat, Gru, Lstm, MatMul, Rnn, Slice, ew
from planish.ops.recurrent import Activation, Recurrent

# ONNX's name in lower case: ours, and the defaults of alpha and beta (None: there is none)
_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "relu": ("relu", None, None),
    "tanh": ("tanh", None, None),
    "sigmoid": ("sigmoid", None, None),
    "softsign": ("softsign", None, None),
    "softplus": ("softplus", None, None),
    "affine": ("affine", 1.0, 0.0),
    "leakyrelu": ("leaky_relu", 0.01, None),
    "thresholdedrelu": ("thresholded_relu", 1.0, None),
    "scaledtanh": ("scaled_tanh", 1.0, 1.0),
    "hardsigmoid": ("hard_sigmoid", 0.2, 0.5),
    "elu": ("elu", 1.0, None),
}
_REVERSE = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class _Layer:
    """A node's values in the shapes that our ops want, in float32 or float64.

    Attributes
    ----------
    projected : Value
        ``[T, N, D, G, H]``, biases included.
    weights : Value
        ``[D, H, G, H]``.
    states, extras : sequence of Value
        ``[D, N, H]`` each; ``[D, ..., H]`` each.
    lengths : Value or None
    activations : list of tuple of Activation
        For each direction.
    """

    projected: Value
    weights: Value
    states: Sequence[Value]
    extras: Sequence[Value]
    lengths: Value | None
    activations: list[tuple[Activation, ...]]


@converter("RNN")
def _rnn(c: Conversion) -> Sequence[Value]:
    sizes = _Sizes.of(c, Rnn)
    bias = _biases(c, sizes)
    total = None if bias is None else c.aux(ew.Add(), *bias)
    layer = _layer(c, sizes, total, [], ["Tanh"], states=1)
    return _outputs(c, sizes, layer, Rnn)


@converter("GRU")
def _gru(c: Conversion) -> Sequence[Value]:
    sizes = _Sizes.of(c, Gru)
    after = bool(c.attr("linear_before_reset", 0))
    bias = _biases(c, sizes)
    total, extras = None, []
    d, h = sizes.directions, sizes.hidden
    if bias is not None:
        of_inputs, of_states = bias
        if after:  # the reset gate comes between the states' bias of the last gate and the rest
            inner = _part(c, of_states, 1, 2, 1)
            zeros = broadcast(c, c.constant(0, inner.dtype), inner.shape)
            of_states = c.aux(Concat(1), _part(c, of_states, 1, 0, 2), zeros)
            extras = [reshaped(c, inner, (d, h))]
        total = c.aux(ew.Add(), of_inputs, of_states)
    elif after:
        extras = [broadcast(c, c.constant(0, sizes.dtype), (d, h))]
    layer = _layer(c, sizes, total, extras, ["Sigmoid", "Tanh"], states=1)
    return _outputs(c, sizes, layer, partial(Gru, reset_after=after))


@converter("LSTM")
def _lstm(c: Conversion) -> Sequence[Value]:
    sizes = _Sizes.of(c, Lstm)
    bias = _biases(c, sizes)
    total = None if bias is None else c.aux(ew.Add(), *bias)
    extras = []
    if (holes := c.optional(7)) is not None:
        extras = [reshaped(c, sizes.wide(c, holes), (sizes.directions, 3, sizes.hidden))]
    forget = bool(c.attr("input_forget", 0))
    layer = _layer(c, sizes, total, extras, ["Sigmoid", "Tanh", "Tanh"], states=2)
    return _outputs(c, sizes, layer, partial(Lstm, input_forget=forget, peepholes=bool(extras)))


# ---- inputs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """What a node's attributes and the shape of its weights say."""

    op: type[Recurrent]
    directions: int
    hidden: int
    dtype: DType
    batch_first: bool

    @staticmethod
    def of(c: Conversion, op: type[Recurrent]) -> _Sizes:
        """Reads and checks them.

        Raises
        ------
        ShapeError
            The weights do not fit the attributes.
        """
        direction = c.attr("direction", "forward")
        if direction not in _REVERSE:
            raise ModelError(f"{c.node.op_type} cannot have the direction {direction!r}")
        directions, x, w, r = len(_REVERSE[direction]), c.input(0), c.input(1), c.input(2)
        units = r.shape[-1] if r.type.rank == 3 else None
        hidden = c.attr("hidden_size", units)
        wanted = (directions, op.gates * hidden) if isinstance(hidden, int) else None
        fits = x.type.rank == w.type.rank == r.type.rank == 3 and units == hidden
        if not fits or w.shape[:2] != wanted or r.shape[:2] != wanted or w.shape[2] != x.shape[2]:
            raise c.shape_error(
                f"{c.node.op_type} of {x.type} has weights {w.type} and {r.type}",
                f"its direction is {direction} and its hidden_size {hidden}",
            )
        dtype = x.dtype if x.dtype is DType.FLOAT64 else DType.FLOAT32
        return _Sizes(op, directions, int(hidden), dtype, bool(c.attr("layout", 0)))

    def wide(self, c: Conversion, value: Value) -> Value:
        """The value in the dtype of the computation."""
        return c.cast(value, self.dtype)


def _biases(c: Conversion, sizes: _Sizes) -> tuple[Value, Value] | None:
    """The inputs' and the states' bias, ``[D, G, H]`` each."""
    given = c.optional(3)
    if given is None:
        return None
    shape = (sizes.directions, 2 * sizes.op.gates, sizes.hidden)
    both = reshaped(c, sizes.wide(c, given), shape)
    gates = sizes.op.gates
    return _part(c, both, 1, 0, gates), _part(c, both, 1, gates, gates)


def _layer(
    c: Conversion,
    sizes: _Sizes,
    bias: Value | None,
    extras: Sequence[Value],
    defaults: Sequence[str],
    states: int,
) -> _Layer:
    d, g, h = sizes.directions, sizes.op.gates, sizes.hidden
    x, w, r = (sizes.wide(c, c.input(i)) for i in range(3))
    if sizes.batch_first:
        x = transposed(c, x, (1, 0, 2))
    steps, batch, features = x.shape
    product = c.aux(MatMul(False, True), x, reshaped(c, w, (d * g * h, features)))
    if bias is not None:
        product = c.aux(ew.Add(), product, reshaped(c, bias, (d * g * h,)))
    first = []
    for index in range(states):
        state = c.optional(5 + index)
        if state is None:
            first.append(broadcast(c, c.constant(0, sizes.dtype), (d, batch, h)))
        else:
            state = sizes.wide(c, state)
            first.append(transposed(c, state, (1, 0, 2)) if sizes.batch_first else state)
    return _Layer(
        reshaped(c, product, (steps, batch, d, g, h)),
        transposed(c, reshaped(c, r, (d, g, h, h)), (0, 3, 1, 2)),
        first,
        extras,
        c.optional(4),
        _activations(c, d, defaults),
    )


def _activations(
    c: Conversion, directions: int, defaults: Sequence[str]
) -> list[tuple[Activation, ...]]:
    """The activations of each direction; alphas and betas go to those that have any, in order."""
    names = c.attr("activations", ()) or tuple(defaults) * directions
    if len(names) != len(defaults) * directions:
        raise c.shape_error(f"{c.node.op_type} has the activations {', '.join(names)}")
    alphas, betas = (list(c.attr(f"activation_{n}", ())) for n in ("alpha", "beta"))
    found: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise c.unsupported(f"it has the activation {name!r}")
        ours, alpha, beta = _ACTIVATIONS[name.lower()]
        if alpha is not None and alphas:
            alpha = float(alphas.pop(0))
        if beta is not None and betas:
            beta = float(betas.pop(0))
        found.append((ours, alpha or 0.0, beta or 0.0))
    count = len(defaults)
    return [tuple(found[i * count : (i + 1) * count]) for i in range(directions)]


# ---- outputs -----------------------------------------------------------------------------------


def _outputs(
    c: Conversion, sizes: _Sizes, layer: _Layer, make: Callable[..., Recurrent]
) -> Sequence[Value]:
    """Adds the op, or one for each direction where their activations differ."""
    reverse = _REVERSE[c.attr("direction", "forward")]
    clip = float(c.attr("clip", 0.0)) or math.inf
    lengths = [] if layer.lengths is None else [layer.lengths]
    runs = [range(sizes.directions)]
    if len(set(layer.activations)) > 1:
        runs = [range(i, i + 1) for i in range(sizes.directions)]
    results = []
    for run in runs:
        one = len(runs) > 1

        def take(value: Value, axis: int = 0, run: range = run, one: bool = one) -> Value:
            return _part(c, value, axis, run[0], 1) if one else value

        op = make(tuple(reverse[i] for i in run), layer.activations[run[0]], clip, bool(lengths))
        values = (take(v) for v in (layer.weights, *layer.states, *layer.extras))
        results.append(c.add_node(op, take(layer.projected, 2), *values, *lengths).outputs)
    if len(results) == 1:
        y, *last = results[0]
    else:
        y, *last = (
            c.aux(Concat(0 if i else 2), *parts)
            for i, parts in enumerate(zip(*results, strict=True))
        )
    dtype = c.input(0).dtype
    steps, batch, d, h = y.shape
    if sizes.batch_first:
        y, last = transposed(c, y, (1, 0, 2, 3)), [transposed(c, v, (1, 0, 2)) for v in last]
    elif d == 1:
        y = reshaped(c, y, (steps, d, batch, h))
    else:
        y = transposed(c, y, (0, 2, 1, 3))
    return [c.cast(v, dtype) for v in (y, *last)]


def _part(c: Conversion, x: Value, axis: int, begin: int, size: int) -> Value:
    """Some consecutive elements along an axis."""
    starts = tuple(begin if a == axis else 0 for a in range(x.type.rank))
    shape = tuple(size if a == axis else n for a, n in enumerate(x.shape))
    return c.aux(Slice(starts, shape, (1,) * x.type.rank), x)
