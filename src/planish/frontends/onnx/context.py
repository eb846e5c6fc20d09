"""What a converter works with: one ONNX node, its inputs as values, and the graph being built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from planish.errors import ModelError, PlanishError, ShapeError, UnsupportedOpError
from planish.frontends.onnx.items import Item
from planish.frontends.onnx.limits import Limits
from planish.frontends.onnx.narrow import NarrowTypes
from planish.frontends.onnx.tensors import sparse_array, tensor_array
from planish.graph import Dim, DimLike, DType, Graph, Node, Value
from planish.ops.base import Op, normalize_axis
from planish.ops.elementwise import Cast


class NoFallbackError(UnsupportedOpError):
    """A node that must not run by ONNX's reference either."""


KNOWN_LIMIT = 1 << 16
"""Results of at most this many elements that depend on no input are computed on the way."""


class KnownValues:
    """The elements of small values that do not depend on the model's inputs.

    Exporters compute axes, sizes and bounds with chains of operators; this finds the numbers.
    """

    def __init__(self) -> None:
        self._arrays: dict[Value, np.ndarray] = {}

    def get(self, value: Value) -> np.ndarray | None:
        """The elements of a value, or None where they are not known before the model runs."""
        if value.data is not None:
            return value.data
        if (array := self._arrays.get(value)) is not None:
            return array
        if value.content is not None and all(isinstance(d, int) for d in value.content.flat):
            return value.content.astype(value.dtype.numpy)
        return None

    def learn(self, node: Node) -> None:
        """Computes the outputs of a node of small, known inputs.

        Not those of windows, whose padding may be much larger than their results.
        """
        if not node.inputs or not all(_is_small(v) for v in (*node.inputs, *node.outputs)):
            return
        if hasattr(node.op, "dilations") or _mentions_dim(tuple(node.op.attributes().values())):
            return
        arrays = [self.get(v) for v in node.inputs]
        known = [a for a in arrays if a is not None]
        if len(known) == len(arrays):
            self._arrays.update(zip(node.outputs, node.op.reference(*known), strict=True))


def _is_small(value: Value) -> bool:
    return isinstance(value.type.elements, int) and value.type.elements <= KNOWN_LIMIT


def _mentions_dim(attribute: Any) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_mentions_dim, attribute))
    return isinstance(attribute, Dim)


class Conversion:
    """One ONNX node on its way into the graph.

    Attributes
    ----------
    node : onnx.NodeProto
        The node; `inputs` are its inputs, None where an optional one is left out.
    opset : int
        The version of the node's operator set.
    name, origin : str
        The user's name of the node, and the same with its operator.
    inline : callable
        ``inline(subgraph, label, inputs)`` converts the subgraph of an attribute in place and
        returns its outputs.
    limits : Limits
        What the model demands of its symbolic dimensions.
    narrow : NarrowTypes
        The values that have a narrow type in the model.
    result_shapes : sequence of shapes
        The shapes of the outputs, where a converter knows them and leaves the node to the fallback.
    """

    def __init__(
        self,
        graph: Graph,
        node: onnx.NodeProto,
        inputs: Sequence[Item | None],
        *,
        opset: int,
        name: str,
        known: KnownValues,
        folder: Path | None,
        limits: Limits,
        narrow: NarrowTypes,
        inline: Callable[[onnx.GraphProto, str, Sequence[Item]], list[Item]],
    ) -> None:
        self.graph, self.node, self.inputs = graph, node, tuple(inputs)
        self.opset, self.name = opset, name
        self.inline, self.limits, self.narrow = inline, limits, narrow
        self.origin = f"{name} ({node.op_type})"
        self.result_shapes: Sequence[Sequence[DimLike]] = ()
        self._known, self._folder = known, folder
        self._attributes = {a.name: a for a in node.attribute}

    # ---- reading the node -----------------------------------------------------------------

    def input(self, index: int) -> Value:
        """A required input.

        Raises
        ------
        ModelError
            The node does not have it.
        """
        value = self.optional(index)
        if value is None:
            raise ModelError(
                f"{self.node.op_type} lacks its input {index}",
                where=self.origin,
                why=f"the node has {len(self.inputs)} input(s)",
                cure="check the model with onnx.checker.check_model",
            )
        return value

    def optional(self, index: int) -> Value | None:
        """An input, or None where it is left out.

        Raises
        ------
        UnsupportedOpError
            It is a sequence or an optional without an element.
        """
        item = self.inputs[index] if index < len(self.inputs) else None
        if item is None or isinstance(item, Value):
            return item
        raise self.unsupported(f"its input {index} is {item}, not a tensor")

    def present(self) -> list[Value]:
        """All inputs that are given, for operators of any number of inputs."""
        return [self.input(i) for i in range(len(self.inputs))]

    def wants(self, output: int) -> bool:
        """Whether the node names this output."""
        return output < len(self.node.output) and bool(self.node.output[output])

    def has(self, name: str) -> bool:
        """Whether an attribute is given."""
        return name in self._attributes

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute: int, float, str, array, subgraph, or a tuple of these."""
        attribute = self._attributes.get(name)
        if attribute is None:
            return default
        if attribute.type == onnx.AttributeProto.TENSOR:
            return tensor_array(attribute.t, self._folder)
        if attribute.type == onnx.AttributeProto.SPARSE_TENSOR:
            return sparse_array(attribute.sparse_tensor, self._folder)
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        if isinstance(value, list):
            return tuple(v.decode(errors="replace") if isinstance(v, bytes) else v for v in value)
        return value

    def subgraph(self, name: str) -> onnx.GraphProto:
        """A required attribute that is a graph.

        Raises
        ------
        ModelError
            The node does not have it.
        """
        graph = self.attr(name)
        if not isinstance(graph, onnx.GraphProto):
            raise ModelError(
                f"The node {self.name!r} is malformed",
                where=self.origin,
                why=f"it lacks the graph {name!r}",
                cure="export the model again, or check it with onnx.checker.check_model",
            )
        return graph

    def tensor_type(self, name: str) -> int:
        """The ``TensorProto.DataType`` of an attribute that is a tensor, else 0."""
        attribute = self._attributes.get(name)
        return attribute.t.data_type if attribute is not None and attribute.HasField("t") else 0

    def axis(self, rank: int, default: int | None = None, name: str = "axis") -> int:
        """An axis attribute, counted from the front.

        Raises
        ------
        ModelError
            It is required and missing.
        ShapeError
            There is no such axis.
        """
        axis = self.attr(name, default)
        if axis is None:
            raise ModelError(f"{self.node.op_type} lacks its attribute {name}", where=self.origin)
        return normalize_axis(axis, rank)

    # ---- knowing values ---------------------------------------------------------------------

    def known(self, value: Value) -> np.ndarray | None:
        """The elements of a value that does not depend on the model's inputs, or None."""
        return self._known.get(value)

    def constant_input(self, index: int, what: str) -> np.ndarray:
        """The elements of an input that must be known before the model runs.

        Raises
        ------
        UnsupportedOpError
            They depend on the model's inputs.
        """
        array = self.known(self.input(index))
        if array is None:
            raise self.unsupported(
                f"{what} depends on the data",
                cure="export the model with a constant there, or simplify it (onnxsim)",
            )
        return array

    def integers(self, index: int, what: str) -> tuple[int, ...]:
        """A known input as integers; errors as `constant_input`."""
        return tuple(int(n) for n in self.constant_input(index, what).reshape(-1))

    def dims(self, index: int, what: str) -> tuple[DimLike, ...]:
        """An input vector as dimensions, which may be symbolic; errors as `constant_input`."""
        content = self.input(index).content
        if content is None or not all(not isinstance(d, bool) for d in content.flat):
            return self.integers(index, what)
        return tuple(content.reshape(-1))

    def unsupported(self, why: str, *, cure: str = "") -> UnsupportedOpError:
        """The error that says that this node cannot be converted (or only by fallback)."""
        return UnsupportedOpError(
            f"{self.node.op_type} cannot be converted", where=self.origin, why=why, cure=cure
        )

    def shape_error(self, what: str, why: str = "") -> ShapeError:
        """The error that says that the node does not fit its inputs."""
        return ShapeError(what, where=self.origin, why=why)

    # ---- building ---------------------------------------------------------------------------

    def add(self, op: Op, *inputs: Value) -> Value:
        """Adds the op that stands for the node, under the node's own name."""
        return self.add_node(op, *inputs).output

    def add_node(self, op: Op, *inputs: Value) -> Node:
        """As `add`, for ops of several outputs."""
        return self._add(op, inputs, self.name)

    def aux(self, op: Op, *inputs: Value) -> Value:
        """Adds an op that helps: it is named ``<node>/<op>``."""
        return self._add(op, inputs, f"{self.name}/{op.name}").output

    def _add(self, op: Op, inputs: Sequence[Value], name: str) -> Node:
        node = self.graph.add_node(op, inputs, name=name, origin=self.origin)
        try:
            self._known.learn(node)
        except PlanishError as error:  # constants that the op does not take, as a wrong index
            raise ModelError(
                error.what, where=self.origin, why=error.why, cure=error.cure
            ) from error
        return node

    def constant(self, data: Any, dtype: DType | None = None) -> Value:
        """Adds a constant of this node."""
        array = np.asarray(data, dtype.numpy if dtype else None)
        return self.graph.constant(array, f"{self.name}/constant")

    def scalar_like(self, number: float, value: Value) -> Value:
        """A scalar constant of the dtype of a value."""
        return self.constant(number, value.dtype)

    def cast(self, value: Value, dtype: DType) -> Value:
        """The value in another dtype; itself if it has it already."""
        return value if value.dtype is dtype else self.aux(Cast(dtype), value)
