"""What a converter sees of the node it converts, and the registry of converters.

A converter is a small function ``(context, *inputs) -> Value | sequence of Value or None``; None
stands for an output that has no value (and must not be used). It is registered under the names of
TensorFlow's ops with `converter`. It either returns or raises, and leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from planish.errors import ModelError, UnsupportedOpError
from planish.frontends.tensorflow import graphdef
from planish.graph.dims import DimLike
from planish.graph.graph import CONTENT_LIMIT, Graph, Value
from planish.graph.types import DType
from planish.ops.base import Op
from planish.ops.elementwise import Cast
from planish.ops.quantization import FakeQuant, SnapToLevels
from planish.ops.shape import Reshape, Transpose

Converter: TypeAlias = "Callable[..., Value | Sequence[Value | None]]"

CONVERTERS: dict[str, Converter] = {}
"""The converter of each TensorFlow op."""


def converter(*op_types: str) -> Callable[[Converter], Converter]:
    """Registers the decorated function as the converter of TensorFlow ops."""

    def register(function: Converter) -> Converter:
        for op_type in op_types:
            if op_type in CONVERTERS:
                raise TypeError(f"two converters for {op_type}")
            CONVERTERS[op_type] = function
        return function

    return register


MOST_MADE = 1 << 25
"""Elements of a constant that is computed while a model is read, such as a range of numbers."""

MOST_NUMBERS = 1 << 16
"""Elements of axes, sizes and the like. A constant of one repeated element needs few bytes in a
file, however many elements a damaged one says it has."""


class Context:
    """One NodeDef being converted: its attributes, and building with name and origin filled in.

    Attributes
    ----------
    graph : Graph
        The graph that is being built.
    node : NodeDef
    name, origin : str
        The node's name; name and op type, for messages.
    """

    def __init__(self, graph: Graph, node: Any) -> None:
        self.graph = graph
        self.node = node
        self.name: str = node.name
        self.origin = graphdef.origin_of(node)

    # ---- attributes -----------------------------------------------------------------------

    def attr(self, name: str) -> Any:
        """An attribute, or the default that TensorFlow declares for it.

        Raises
        ------
        ModelError
            The node does not have it and there is no default.
        """
        if name in self.node.attr:
            return graphdef.attribute(self.node.attr[name])
        declared = _defaults(self.node.op).get(name)
        if declared is None:
            raise ModelError(
                f"The node has no attribute {name!r}",
                where=self.origin,
                why=f"every {self.node.op} must have one",
                cure="export the model again",
            )
        return graphdef.attribute(declared)

    def dtype(self, name: str = "T") -> DType:
        """An attribute that is an element type.

        Raises
        ------
        UnsupportedOpError
            It is a type that only TensorFlow has.
        """
        dtype = self.attr(name)
        if isinstance(dtype, DType):
            return dtype
        raise self.unsupported(
            f"its attribute {name} is {dtype}, and only real numbers and booleans can be converted"
        )

    # ---- building -------------------------------------------------------------------------

    def add(self, op: Op, *inputs: Value, part: str = "") -> Value:
        """Applies an op of one output. `part` tells the helpers of a node from its main op."""
        (value,) = self.add_node(op, *inputs, part=part)
        return value

    def add_node(self, op: Op, *inputs: Value, part: str = "") -> tuple[Value, ...]:
        """Applies an op; small results that depend on no input of the graph are computed now.

        Not those of windows, whose padding may be much larger than their results, nor levels of
        weights, which INT8 wants to know.
        """
        name = self._label(part)
        node = self.graph.add_node(op, inputs, name=name, origin=self.origin)
        outputs = node.outputs
        small = all(v.type.is_static and _size(v) <= CONTENT_LIMIT for v in outputs)
        if small and not hasattr(op, "dilations") and not isinstance(op, FakeQuant | SnapToLevels):
            arrays = [small_array(v) for v in inputs]
            known = [a for a in arrays if a is not None]
            if len(known) == len(arrays) and all(v.content is None for v in outputs):
                results = op.reference(*known)
                return tuple(self.graph.constant(r, name) for r in results)
        return outputs

    def constant(self, data: Any, dtype: DType | None = None, part: str = "constant") -> Value:
        """A constant from anything that NumPy makes an array of."""
        array = np.asarray(data, dtype.numpy if dtype else None)
        return self.graph.constant(array, self._label(part))

    def expect_room(self, count: int, what: str) -> None:
        """Refuses to compute more elements than a model can mean, before memory is taken.

        Raises
        ------
        UnsupportedOpError
            There are more than `MOST_MADE`.
        """
        if count > MOST_MADE:
            raise self.unsupported(f"its {what} would have {count} elements")

    def cast(self, x: Value, dtype: DType, part: str = "cast") -> Value:
        """`x` as another dtype; `x` itself if it has it."""
        return x if x.dtype is dtype else self.add(Cast(dtype), x, part=part)

    def reshape(self, x: Value, shape: Sequence[DimLike], part: str = "reshape") -> Value:
        """`x` in another shape, at once if it is a constant."""
        shape = tuple(shape)
        if x.shape == shape:
            return x
        if x.data is not None and all(isinstance(d, int) for d in shape):
            return self.graph.constant(x.data.reshape(shape), x.name)  # type: ignore[arg-type]
        return self.add(Reshape(shape), x, part=part)

    def transpose(self, x: Value, perm: Sequence[int], part: str = "transpose") -> Value:
        """`x` with its axes permuted, at once if it is a constant."""
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return x
        if x.data is not None:
            return self.graph.constant(np.ascontiguousarray(x.data.transpose(perm)), x.name)
        return self.add(Transpose(perm), x, part=part)

    # ---- reading inputs that must be known -------------------------------------------------

    def array(self, x: Value, what: str) -> np.ndarray:
        """The elements of an input that must not depend on the data.

        Raises
        ------
        UnsupportedOpError
            They do.
        """
        array = x.data if x.data is not None else small_array(x)
        if array is None:
            raise self.unsupported(
                f"its {what} ({x.name!r}) is computed while the model runs",
                f"make the {what} a constant",
            )
        return array

    def ints(self, x: Value, what: str) -> tuple[int, ...]:
        """The elements of a vector or scalar of integers that must not depend on the data."""
        array = self.array(x, what)
        if array.size > MOST_NUMBERS:
            raise self.unsupported(f"its {what} has {array.size} elements")
        return tuple(int(i) for i in array.reshape(-1))

    def integer(self, x: Value, what: str) -> int:
        """The only element of an integer tensor that must not depend on the data."""
        items = self.ints(x, what)
        if len(items) != 1:
            raise self.unsupported(f"its {what} has {len(items)} elements, not one")
        return items[0]

    def number(self, x: Value, what: str) -> float:
        """The only element of a tensor that must not depend on the data."""
        array = self.array(x, what)
        if array.size != 1:
            raise self.unsupported(f"its {what} has {array.size} elements, not one")
        return float(array.reshape(())[()])

    def dims(self, x: Value, what: str = "shape") -> tuple[DimLike, ...]:
        """The elements of an integer tensor as dimensions; they may depend on input shapes.

        Raises
        ------
        UnsupportedOpError
            They depend on the data.
        """
        if x.content is None:
            raise self.unsupported(
                f"its {what} ({x.name!r}) depends on the values of tensors, not only on shapes",
                f"compute the {what} from constants and from shapes of tensors",
            )
        return tuple(x.content.reshape(-1))

    # ---- errors ---------------------------------------------------------------------------

    def unsupported(self, why: str, cure: str = "") -> UnsupportedOpError:
        """The error that this node cannot be converted; to be raised."""
        return UnsupportedOpError(
            f"{self.node.op} cannot be converted here",
            where=self.origin,
            why=why,
            cure=cure or "let TensorFlow run this op",
        )

    def _label(self, part: str) -> str:
        return f"{self.name}/{part}" if part else self.name


def small_array(x: Value) -> np.ndarray | None:
    """The elements of a small value that depends on no graph input; else None."""
    if x.data is not None:
        return x.data if x.data.size <= CONTENT_LIMIT else None
    if x.content is not None and all(isinstance(d, int) for d in x.content.flat):
        return x.content.astype(x.dtype.numpy)
    return None


def _size(x: Value) -> int:
    return int(x.type.elements)  # type: ignore[arg-type]


def _defaults(op_type: str) -> dict[str, Any]:
    """Declared default values of the attributes of an op."""
    from tensorflow.python.framework import op_def_registry

    op_def = op_def_registry.get(op_type)
    if op_def is None:
        return {}
    return {a.name: a.default_value for a in op_def.attr if a.HasField("default_value")}
