"""How each op is said in ONNX; see `onnx_model.py`. Exports give None where it cannot be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.base import normalize_axis

OPSET, IR = 20, 9


class Exporter:
    """A model under construction.

    Attributes
    ----------
    inputs : list of Value
        What its ops are given.
    outputs : dict of Value to str
        Every result it has, and what it is called there.
    count : int
        How many ops of the graph it holds.
    """

    def __init__(self, known: Mapping[Value, np.ndarray]) -> None:
        self.known = known
        self.inputs: list[Value] = []
        self.outputs: dict[Value, str] = {}
        self.count = 0
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._prefix = ""

    def add(self, node: Node, export: Export) -> None:
        """Adds an op, unless it cannot be said."""
        self._prefix = node.name
        before = len(self._nodes), len(self._constants)
        results = export(self, node)
        if results is None:
            del self._nodes[before[0] :], self._constants[before[1] :]
            return
        self.inputs += [v for v in dict.fromkeys(node.inputs) if v not in self.inputs]
        self.outputs.update(zip(node.outputs, results, strict=True))
        self.count += 1

    def do(self, kind: str, *inputs: str, results: int = 1, **attributes: Any) -> Any:
        """Adds a node of ONNX; the name of its result, or of several."""
        from onnx import helper

        stem = f"{self._prefix}_{len(self._nodes)}"
        names = [f"{stem}_{i}" for i in range(results)]
        self._nodes.append(helper.make_node(kind, inputs, names, stem, **attributes))
        return names[0] if results == 1 else names

    def constant(self, data: Any, dtype: Any = np.int64) -> str:
        """A constant; its name."""
        from onnx import numpy_helper

        name = f"{self._prefix}_c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(data, dtype), name))
        return name

    def first(self, x: str, rank: int) -> str:
        """Channels-last activations with the channels moved to axis 1."""
        return self.do("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])

    def last(self, x: str, rank: int) -> str:
        """The way back."""
        return self.do("Transpose", x, perm=[0, *range(2, rank), 1])

    def model(self) -> Any:
        """The model."""
        from onnx import helper

        def described(value: Value, name: str) -> Any:
            array = self.known[value]
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            return helper.make_tensor_value_info(name, kind, array.shape)

        graph = helper.make_graph(
            self._nodes,
            "fuzz",
            [described(v, v.name) for v in self.inputs],
            [described(v, name) for v, name in self.outputs.items()],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR)


Export = Callable[[Exporter, Node], "list[str] | None"]

EXPORTS: dict[str, Export] = {}
"""Exports by the op's name."""


def export(*names: str) -> Callable[[Export], Export]:
    def register(function: Export) -> Export:
        EXPORTS.update(dict.fromkeys(names, function))
        return function

    return register


def _names(node: Node) -> list[str]:
    return [v.name for v in node.inputs]


def _kind(node: Node) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(node.output.dtype.numpy)


# ---- elementwise ---------------------------------------------------------------------------

_SAME = {
    **dict(neg="Neg", abs="Abs", sign="Sign", reciprocal="Reciprocal", sqrt="Sqrt", exp="Exp"),
    **dict(log="Log", sin="Sin", cos="Cos", tan="Tan", asin="Asin", acos="Acos", atan="Atan"),
    **dict(sinh="Sinh", cosh="Cosh", tanh="Tanh", asinh="Asinh", acosh="Acosh", atanh="Atanh"),
    **dict(erf="Erf", relu="Relu", sigmoid="Sigmoid", softplus="Softplus", softsign="Softsign"),
    **dict(floor="Floor", ceil="Ceil", round="Round", is_nan="IsNaN", is_inf="IsInf"),
    **dict(logical_not="Not", bitwise_not="BitwiseNot", mish="Mish", hard_swish="HardSwish"),
    **dict(selu="Selu", add="Add", sub="Sub", mul="Mul", maximum="Max", minimum="Min"),
    **dict(prelu="PRelu", equal="Equal", less="Less", less_equal="LessOrEqual"),
    **dict(greater="Greater", greater_equal="GreaterOrEqual", logical_and="And"),
    **dict(logical_or="Or", logical_xor="Xor", bitwise_and="BitwiseAnd", bitwise_or="BitwiseOr"),
    **dict(bitwise_xor="BitwiseXor", select="Where", identity="Identity"),
}


def _same(kind: str) -> Export:
    def function(e: Exporter, node: Node) -> list[str] | None:
        if kind in ("HardSwish", "Mish") and node.output.dtype is not DType.FLOAT32:
            return None  # made of ops that are not implemented, whose nodes have no name
        if kind == "PRelu" and node.inputs[1].type.rank > node.inputs[0].type.rank:
            return None
        if kind == "PRelu" and node.output.shape != node.inputs[0].shape:
            return None
        return [e.do(kind, *_names(node))]

    return function


EXPORTS.update({ours: _same(theirs) for ours, theirs in _SAME.items()})


@export("div", "pow")
def _of_floats(e: Exporter, node: Node) -> list[str] | None:
    """Of integers, division by zero and negative powers differ."""
    if not node.output.dtype.is_float:
        return None
    return [e.do({"div": "Div", "pow": "Pow"}[node.op.name], *_names(node))]


@export("trunc_mod")
def _fmod(e: Exporter, node: Node) -> list[str] | None:
    return [e.do("Mod", *_names(node), fmod=1)] if node.output.dtype.is_float else None


@export("not_equal")
def _not_equal(e: Exporter, node: Node) -> list[str]:
    return [e.do("Not", e.do("Equal", *_names(node)))]


@export("square", "squared_difference")
def _square(e: Exporter, node: Node) -> list[str]:
    x = _names(node)[0] if len(node.inputs) == 1 else e.do("Sub", *_names(node))
    return [e.do("Mul", x, x)]


@export("rsqrt")
def _rsqrt(e: Exporter, node: Node) -> list[str]:
    return [e.do("Reciprocal", e.do("Sqrt", *_names(node)))]


@export("silu")
def _silu(e: Exporter, node: Node) -> list[str]:
    (x,) = _names(node)
    return [e.do("Mul", x, e.do("Sigmoid", x))]


@export("leaky_relu", "elu", "hard_sigmoid")
def _attributes(e: Exporter, node: Node) -> list[str]:
    kind = {"leaky_relu": "LeakyRelu", "elu": "Elu", "hard_sigmoid": "HardSigmoid"}[node.op.name]
    return [e.do(kind, *_names(node), **node.op.attributes())]


@export("gelu")
def _gelu(e: Exporter, node: Node) -> list[str] | None:
    if node.output.dtype is not DType.FLOAT32:
        return None
    kind = "tanh" if node.op.approximate else "none"  # type: ignore[attr-defined]
    return [e.do("Gelu", *_names(node), approximate=kind)]


@export("clip")
def _clip(e: Exporter, node: Node) -> list[str]:
    op, dtype = node.op, node.output.dtype
    limits = (op.low, op.high)  # type: ignore[attr-defined]
    given = (e.constant(n, dtype.numpy) if np.isfinite(n) else "" for n in limits)
    return [e.do("Clip", *_names(node), *given)]


@export("cast")
def _cast(e: Exporter, node: Node) -> list[str]:
    return [e.do("Cast", *_names(node), to=_kind(node))]


# ---- products and windows ------------------------------------------------------------------


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    return [p[0] for p in padding] + [p[1] for p in padding]


@export("mat_mul")
def _mat_mul(e: Exporter, node: Node) -> list[str]:
    names = _names(node)
    for i, turned in enumerate((node.op.transpose_a, node.op.transpose_b)):  # type: ignore[attr-defined]
        rank = node.inputs[i].type.rank
        if turned:
            names[i] = e.do("Transpose", names[i], perm=[*range(rank - 2), rank - 1, rank - 2])
    return [e.do("MatMul", *names)]


@export("conv", "conv_transpose")
def _conv(e: Exporter, node: Node) -> list[str] | None:
    op: Any = node.op
    x, w = _names(node)
    if not node.output.dtype.is_float:
        return None
    rank = node.inputs[0].type.rank
    shape = [int(n) for n in node.inputs[1].shape]  # type: ignore[arg-type]
    window = shape[:-2]
    common = dict(strides=op.strides, dilations=op.dilations, group=op.groups, kernel_shape=window)
    spatial = list(range(rank - 2))
    if op.name == "conv":
        if any(p < 0 for pair in op.padding for p in pair):
            return None
        filters = e.do("Transpose", w, perm=[rank - 1, rank - 2, *spatial])
        y = e.do("Conv", e.first(x, rank), filters, pads=_pads(op.padding), **common)
        return [e.last(y, rank)]
    extents = node.inputs[0].shape[1:-1]
    padding = []
    for n, k, s, d, b, size in zip(
        extents, window, op.strides, op.dilations, op.before, op.size, strict=True
    ):
        padding.append((b, (n - 1) * s + (k - 1) * d + 1 - b - size))  # type: ignore[operator]
    if any(p < 0 for pair in padding for p in pair):
        return None
    # ours [*window, C / groups, K], theirs [C, K / groups, *window]
    parts = e.do("Split", w, results=op.groups, axis=rank - 1, num_outputs=op.groups)
    parts = [parts] if op.groups == 1 else parts
    filters = e.do("Concat", *parts, axis=rank - 2)
    filters = e.do("Transpose", filters, perm=[rank - 2, rank - 1, *spatial])
    y = e.do("ConvTranspose", e.first(x, rank), filters, pads=_pads(padding), **common)
    return [e.last(y, rank)]


@export("max_pool", "avg_pool")
def _pool(e: Exporter, node: Node) -> list[str] | None:
    op: Any = node.op
    rank = node.inputs[0].type.rank
    if not node.output.dtype.is_float or any(
        p >= w for pair, w in zip(op.padding, op.window, strict=True) for p in pair
    ):
        return None
    common: dict[str, Any] = dict(kernel_shape=op.window, strides=op.strides)
    if op.name == "max_pool":
        kind, common["dilations"] = "MaxPool", op.dilations
    else:
        kind, common["count_include_pad"] = "AveragePool", int(op.count_include_pad)
    (x,) = _names(node)
    return [e.last(e.do(kind, e.first(x, rank), pads=_pads(op.padding), **common), rank)]


@export("resize")
def _resize(e: Exporter, node: Node) -> list[str] | None:
    op: Any = node.op
    rank = node.inputs[0].type.rank
    if rank != 4 or node.output.dtype is not DType.FLOAT32 or op.scales is not None:
        return None
    shape = node.inputs[0].shape
    sizes = e.constant([shape[0], shape[-1], *op.size])
    y = e.do(
        "Resize",
        e.first(_names(node)[0], rank),
        "",
        "",
        sizes,
        mode=op.mode,
        coordinate_transformation_mode=op.coordinates,
        nearest_mode=op.rounding,
        cubic_coeff_a=op.cubic_coeff,
        exclude_outside=int(op.exclude_outside),
        antialias=int(op.antialias),
    )
    return [e.last(y, rank)]


# ---- normalizations ------------------------------------------------------------------------


@export("batch_norm", "instance_norm")
def _by_channel(e: Exporter, node: Node) -> list[str] | None:
    x, *parameters = _names(node)
    rank = node.inputs[0].type.rank
    if rank < 3 or any(v.dtype is not node.output.dtype for v in node.inputs):
        return None
    kind = "BatchNormalization" if node.op.name == "batch_norm" else "InstanceNormalization"
    epsilon = node.op.epsilon  # type: ignore[attr-defined]
    return [e.last(e.do(kind, e.first(x, rank), *parameters, epsilon=epsilon), rank)]


@export("layer_norm")
def _layer_norm(e: Exporter, node: Node) -> list[str] | None:
    if any(v.dtype is not node.output.dtype for v in node.inputs):
        return None
    axis = normalize_axis(node.op.axis, node.output.type.rank)  # type: ignore[attr-defined]
    if any(v.shape != node.output.shape[axis:] for v in node.inputs[1:]):
        return None
    epsilon = node.op.epsilon  # type: ignore[attr-defined]
    return [e.do("LayerNormalization", *_names(node), axis=axis, epsilon=epsilon)]


@export("softmax", "log_softmax")
def _softmax(e: Exporter, node: Node) -> list[str]:
    kind = "Softmax" if node.op.name == "softmax" else "LogSoftmax"
    return [e.do(kind, *_names(node), axis=node.op.axis)]  # type: ignore[attr-defined]


@export("lrn")
def _lrn(e: Exporter, node: Node) -> list[str] | None:
    """ONNX Runtime keeps a running sum: squares that left the window leave their rounding there."""
    op: Any = node.op
    largest = float(np.abs(e.known[node.inputs[0]]).max())
    if node.output.type.rank != 4 or op.alpha * largest**2 > 16 * op.bias:
        return None
    size = 2 * op.radius + 1
    x = e.first(_names(node)[0], 4)
    y = e.do("LRN", x, size=size, alpha=op.alpha * size, beta=op.beta, bias=op.bias)
    return [e.last(y, 4)]


# ---- along axes ----------------------------------------------------------------------------

_REDUCTIONS = {
    "reduce_sum": "ReduceSum",
    "reduce_mean": "ReduceMean",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_prod": "ReduceProd",
}


@export(*_REDUCTIONS)
def _reduce(e: Exporter, node: Node) -> list[str] | None:
    """Of integers, ONNX Runtime adds in float64, and stops at the ends of the dtype."""
    op: Any = node.op
    if op.name in ("reduce_mean", "reduce_prod") and not node.output.dtype.is_float:
        return None
    if op.name == "reduce_sum" and not node.output.dtype.is_float:
        x = e.known[node.inputs[0]]
        if np.abs(x.astype(np.float64)).sum() > min(np.iinfo(x.dtype).max, 2**53):
            return None
    axes = e.constant(list(op.axes))
    return [e.do(_REDUCTIONS[op.name], *_names(node), axes, keepdims=int(op.keepdims))]


@export("arg_max", "arg_min")
def _arg(e: Exporter, node: Node) -> list[str]:
    op: Any = node.op
    kind = "ArgMax" if op.name == "arg_max" else "ArgMin"
    last = int(op.select_last)
    index = e.do(
        kind, *_names(node), axis=op.axis, keepdims=int(op.keepdims), select_last_index=last
    )
    return [e.do("Cast", index, to=_kind(node))]


@export("cum_sum")
def _cum_sum(e: Exporter, node: Node) -> list[str]:
    op: Any = node.op
    flags = dict(exclusive=int(op.exclusive), reverse=int(op.reverse))
    return [e.do("CumSum", *_names(node), e.constant(op.axis), **flags)]


@export("top_k")
def _top_k(e: Exporter, node: Node) -> list[str]:
    from onnx import helper

    op: Any = node.op
    flags = dict(axis=op.axis, largest=int(op.largest), sorted=1)
    values, indices = e.do("TopK", *_names(node), e.constant([op.k]), results=2, **flags)
    kind = helper.np_dtype_to_tensor_dtype(op.index_dtype.numpy)
    return [values, e.do("Cast", indices, to=kind)]


# ---- movement ------------------------------------------------------------------------------


@export("reshape")
def _reshape(e: Exporter, node: Node) -> list[str]:
    return [e.do("Reshape", *_names(node), e.constant(list(node.op.shape)), allowzero=1)]  # type: ignore[attr-defined]


@export("transpose")
def _transpose(e: Exporter, node: Node) -> list[str]:
    return [e.do("Transpose", *_names(node), perm=list(node.op.perm))]  # type: ignore[attr-defined]


@export("broadcast_to")
def _broadcast_to(e: Exporter, node: Node) -> list[str]:
    return [e.do("Expand", *_names(node), e.constant(list(node.op.shape)))]  # type: ignore[attr-defined]


@export("slice")
def _slice(e: Exporter, node: Node) -> list[str]:
    op: Any = node.op
    ends = []
    for begin, size, stride in zip(op.begin, op.size, op.strides, strict=True):
        end = begin + size * stride
        ends.append(end if end >= 0 else -(2**40))
    bounds = [e.constant(list(n)) for n in (op.begin, ends, range(len(ends)), op.strides)]
    return [e.do("Slice", *_names(node), *bounds)]


@export("pad")
def _pad(e: Exporter, node: Node) -> list[str] | None:
    op: Any = node.op
    if op.mode == "symmetric":
        return None
    more = [e.constant(op.value, node.output.dtype.numpy)] if op.mode == "constant" else []
    return [e.do("Pad", *_names(node), e.constant(_pads(op.padding)), *more, mode=op.mode)]


@export("concat")
def _concat(e: Exporter, node: Node) -> list[str]:
    return [e.do("Concat", *_names(node), axis=node.op.axis)]  # type: ignore[attr-defined]


@export("tile")
def _tile(e: Exporter, node: Node) -> list[str]:
    return [e.do("Tile", *_names(node), e.constant(list(node.op.repeats)))]  # type: ignore[attr-defined]


@export("shape_of")
def _shape_of(e: Exporter, node: Node) -> list[str]:
    return [e.do("Cast", e.do("Shape", *_names(node)), to=_kind(node))]


# ---- indices -------------------------------------------------------------------------------


@export("gather")
def _gather(e: Exporter, node: Node) -> list[str] | None:
    op: Any = node.op
    return None if op.batch_dims else [e.do("Gather", *_names(node), axis=op.axis)]


@export("gather_nd")
def _gather_nd(e: Exporter, node: Node) -> list[str]:
    data, indices = _names(node)
    from onnx import TensorProto

    wide = e.do("Cast", indices, to=TensorProto.INT64)
    return [e.do("GatherND", data, wide, batch_dims=node.op.batch_dims)]  # type: ignore[attr-defined]


@export("scatter_nd")
def _scatter_nd(e: Exporter, node: Node) -> list[str] | None:
    from onnx import TensorProto

    data, indices, updates = _names(node)
    places = e.known[node.inputs[1]]
    rows = {tuple(int(i) for i in row) for row in places.reshape(-1, places.shape[-1])}
    op: Any = node.op
    if op.reduction == "none" and len(rows) < places.size // places.shape[-1]:
        return None  # which of several updates of an element wins is not defined there
    wide = e.do("Cast", indices, to=TensorProto.INT64)
    return [e.do("ScatterND", data, wide, updates, reduction=op.reduction)]


@export("one_hot")
def _one_hot(e: Exporter, node: Node) -> list[str] | None:
    indices, on, off = _names(node)
    if node.inputs[0].type.rank == 0 or (e.known[node.inputs[0]] < 0).any():
        return None  # scalars are not allowed, and negative numbers count from the end
    op: Any = node.op
    one = e.constant([1])
    values = e.do("Concat", e.do("Reshape", off, one), e.do("Reshape", on, one), axis=0)
    return [e.do("OneHot", indices, e.constant(op.depth), values, axis=op.axis)]
