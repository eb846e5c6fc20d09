"""The network as a graph in SSA form: nodes that apply ops to values.

A `Value` is written once: by a graph input, a constant, or the one `Node` that produces it. Passes
change a graph in place through `Graph.add`, `Graph.replace` and `Graph.tidy`.

Small integer tensors that carry shapes have a `Value.content`: their elements as dimensions, known
while the graph is built. It is how shape arithmetic (Shape → Slice → Concat → Reshape) disappears
before any kernel is chosen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from planish.errors import PlanishError, ShapeError
from planish.graph.dims import Dim, DimLike, symbol, symbols
from planish.graph.types import DType, TensorType

if TYPE_CHECKING:
    from planish.ops.base import Op

CONTENT_LIMIT = 1024
"""Integer tensors of at most this many elements carry their content."""

COMPUTED = (DType.INT32, DType.INT64, DType.BOOL)
"""Dtypes of computed contents: in others, dimensions would wrap around."""

LARGEST = 2**47
"""Bytes that a process can address: no tensor is larger, and offsets always fit 64 bits."""


@dataclass(eq=False)
class Value:
    """A tensor in the graph: an input, a constant (`data` is set), or an output of a node."""

    name: str
    type: TensorType
    producer: Node | None = None
    data: np.ndarray | None = None
    content: np.ndarray | None = None
    """Elements as dimensions (object array of the value's shape), if known and integer."""
    users: dict[Node, None] = field(default_factory=dict, repr=False)

    @property
    def is_constant(self) -> bool:
        return self.data is not None

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def op(self) -> Op | None:
        """The op that produces this value; None for inputs and constants."""
        return self.producer.op if self.producer else None


@dataclass(eq=False)
class Node:
    """One application of an op. `origin` names the user's own op(s), for messages and profiles."""

    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    name: str
    origin: str = ""

    @property
    def output(self) -> Value:
        """The only output.

        Raises
        ------
        ValueError
            The node has several.
        """
        (value,) = self.outputs
        return value


@dataclass(frozen=True)
class DimRange:
    """What an optimization profile says of one symbolic dimension: least, usual, greatest."""

    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Count:
    """A dimension that is not known before some value has been computed.

    Attributes
    ----------
    output : str
        The output of the graph that holds it, an integer tensor of one element. Users do not see
        this output.
    limit : int or Dim
        The greatest size it may have.
    padded : bool
        Whether tensors have `limit` elements there, of which those past the count mean nothing;
        then the symbol occurs in `Graph.trims` alone.
    """

    output: str
    limit: DimLike
    padded: bool = False


class Graph:
    """A network: inputs, nodes in topological order, outputs, and ranges of its dimensions.

    Attributes
    ----------
    counts : dict of str to Count
        The dimensions that depend on the data, by symbol; see `measure`.
    trims : dict of str to tuple
        By output name the shape that is given to the user, where the output itself is padded.
    scales : dict of str to tuple of float
        What bytes stand for, by the name of the value: scale and zero point, and then, if channels
        have scales of their own, by what the scale is multiplied for each. For those alone from
        whose `Quantize` both went into other factors; nothing computes with this.
    """

    def __init__(self, name: str = "graph") -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.outputs: list[Value] = []
        self.output_names: list[str] = []
        self.nodes: list[Node] = []
        self.ranges: dict[str, DimRange] = {}
        self.counts: dict[str, Count] = {}
        self.trims: dict[str, tuple[DimLike, ...]] = {}
        self.scales: dict[str, tuple[float, ...]] = {}
        self._names: dict[str, int] = {}

    # ---- building -------------------------------------------------------------------------

    def input(self, name: str, type: TensorType) -> Value:
        """Adds a graph input. Its name is the user's and must be unique."""
        _check_size(type, f"input {name!r}")
        value = Value(self._unique(name), type)
        self.inputs.append(value)
        return value

    def constant(self, data: np.ndarray, name: str = "c") -> Value:
        """Adds a constant. The array is shared, not copied, and must not change any more."""
        data = np.asarray(data)
        value = Value(self._unique(name), TensorType(data.shape, DType.of(data.dtype)), data=data)
        if value.dtype.is_integer and data.size <= CONTENT_LIMIT:
            value.content = data.astype(object)
        return value

    def add(self, op: Op, *inputs: Value, name: str = "", origin: str = "") -> Value:
        """Applies an op of one output and returns that output; see `add_node`."""
        return self.add_node(op, inputs, name=name, origin=origin).output

    def add_node(
        self, op: Op, inputs: Iterable[Value], *, name: str = "", origin: str = ""
    ) -> Node:
        """Applies an op to values, infers the types of its outputs, appends the node.

        Raises
        ------
        ShapeError
            The op does not accept inputs of these types; names the node and its origin.
        """
        inputs = tuple(inputs)
        label = name or op.name
        try:
            types = op.infer(*inputs)
            contents = op.contents(*inputs, types=types)
        except PlanishError as error:
            if error.where:
                raise
            raise type(error)(
                error.what, where=origin or label, why=error.why, cure=error.cure
            ) from error
        for inferred in types:
            _check_size(inferred, origin or label)
        node = Node(op, inputs, (), self._unique(label), origin)
        suffixes = [""] if len(types) == 1 else [f"_{i}" for i in range(len(types))]
        node.outputs = tuple(
            Value(
                self._unique(node.name + suffix) if suffix else node.name,
                inferred,
                node,
                content=content if inferred.dtype in COMPUTED else None,
            )
            for suffix, inferred, content in zip(suffixes, types, contents, strict=True)
        )
        self.nodes.append(node)
        for value in inputs:
            value.users[node] = None
        return node

    def mark_output(self, value: Value, name: str) -> None:
        """Makes a value an output of the graph under the user's name for it."""
        self.outputs.append(value)
        self.output_names.append(name)

    def measure(self, value: Value, limit: DimLike, name: str) -> DimLike:
        """The element of an integer tensor as a dimension, whose size is known once it is computed.

        Parameters
        ----------
        value : Value
            An integer tensor of one element; never negative.
        limit : int or Dim
            The greatest value it can have.
        name : str
            What the symbol is called after.
        """
        if value.content is not None:
            return value.content.reshape(-1)[0]
        if value.type.elements != 1 or not value.dtype.is_integer:
            raise ShapeError(f"A tensor of type {value.type} is no size", where=name)
        label = re.sub(r"\W", "_", name).lstrip("_0123456789") or "count"
        taken, number = self.symbols() | self.counts.keys(), 0
        unique = label
        while unique in taken:
            number += 1
            unique = f"{label}_{number}"
        output = f"count of {unique}"
        self.counts[unique] = Count(output, limit)
        self.mark_output(value, output)
        value.content = np.array([symbol(unique)], object).reshape(value.type.bind({}))
        return symbol(unique)

    # ---- changing -------------------------------------------------------------------------

    def replace(self, old: Value, new: Value) -> None:
        """Lets every user of `old`, and the graph's outputs, use `new` instead."""
        if old is new:
            return
        for node in list(old.users):
            if new.producer is not node:
                self.set_inputs(node, [new if v is old else v for v in node.inputs])
        self.outputs = [new if v is old else v for v in self.outputs]

    def set_inputs(self, node: Node, inputs: Iterable[Value]) -> None:
        """Gives a node other inputs of the same types."""
        for value in node.inputs:
            value.users.pop(node, None)
        node.inputs = tuple(inputs)
        for value in node.inputs:
            value.users[node] = None

    def tidy(self) -> None:
        """Drops nodes and counts that no output needs; restores topological order (stable).

        Raises
        ------
        ShapeError
            The graph has a cycle.
        """
        order: list[Node] = []
        state: dict[Node, int] = {}  # 1: being visited, 2: done
        position = {node: i for i, node in enumerate(self.nodes)}
        needed = self._needed()
        counted = {s: self.counted(s).producer for s in self.counts}
        for root in sorted(needed, key=position.__getitem__):
            stack = [root]
            while stack:
                node = stack[-1]
                if state.get(node) == 2:
                    stack.pop()
                    continue
                sources = [v.producer for v in node.inputs]
                if counted:
                    sources += [counted[s] for s in sorted(mentions(node)) if s in counted]
                pending = [p for p in sources if p is not None and state.get(p) != 2]
                if not pending:
                    state[node] = 2
                    order.append(node)
                    stack.pop()
                    continue
                if state.get(node) == 1:
                    raise ShapeError("The graph has a cycle", where=node.origin or node.name)
                state[node] = 1
                stack += reversed(pending)
        for node in self.nodes:
            if node not in needed:
                for value in node.inputs:
                    value.users.pop(node, None)
        self.nodes = order

    # ---- looking --------------------------------------------------------------------------

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, then constants and outputs of nodes in order of use."""
        seen: set[Value] = set()
        for value in self.inputs:
            seen.add(value)
            yield value
        for node in self.nodes:
            for value in (*node.inputs, *node.outputs):
                if value not in seen:
                    seen.add(value)
                    yield value
        for value in self.outputs:
            if value not in seen:
                seen.add(value)
                yield value

    def constants(self) -> Iterator[Value]:
        """Every constant that is used, once, in order of use."""
        return (v for v in self.values() if v.is_constant)

    def symbols(self) -> set[str]:
        """The names of all symbolic dimensions: those of the inputs, and those that are counted."""
        found = {s for v in self.inputs for d in v.shape for s in symbols(d)}
        return found | {s for s, count in self.counts.items() if not count.padded}

    def counted(self, name: str) -> Value:
        """The value that holds a dimension that depends on the data."""
        return self.outputs[self.output_names.index(self.counts[name].output)]

    def results(self) -> list[tuple[str, Value, tuple[DimLike, ...]]]:
        """The outputs that users see: name, value, and the shape they are given."""
        hidden = {count.output for count in self.counts.values()}
        return [
            (name, value, self.trims.get(name, value.shape))
            for name, value in zip(self.output_names, self.outputs, strict=True)
            if name not in hidden
        ]

    def bindings(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The values of all symbols for inputs of the given shapes (by input name).

        Raises
        ------
        ShapeError
            A shape does not fit its input, or two inputs disagree about a dimension.
        """
        bound: dict[str, int] = {}
        for value in self.inputs:
            shape = shapes[value.name]
            if len(shape) != len(value.shape):
                raise ShapeError(
                    f"Input {value.name!r} has {len(shape)} dimensions, not {len(value.shape)}",
                    where=f"input {value.name!r}",
                    why=f"it is declared as {value.type} and was given {tuple(shape)}",
                    cure="pass an array of that rank",
                )
            for axis, (dim, size) in enumerate(zip(value.shape, shape, strict=True)):
                _bind_dimension(bound, self.ranges, value, axis, dim, size)
        return bound

    def _needed(self) -> set[Node]:
        """The nodes that results need; forgets the counts that none of them mentions."""
        needed: set[Node] = set()
        results = self.results()
        stack = [v.producer for _, v, _ in results if v.producer]
        wanted = {s for _, v, shape in results for d in (*v.shape, *shape) for s in symbols(d)}
        counts: set[str] = set()
        while stack or wanted - counts:
            for name in sorted(wanted - counts):
                counts.add(name)
                if name in self.counts:
                    wanted |= symbols(self.counts[name].limit)
                    if (producer := self.counted(name).producer) is not None:
                        stack.append(producer)
            while stack:
                node = stack.pop()
                if node not in needed:
                    needed.add(node)
                    stack += [v.producer for v in node.inputs if v.producer]
                    if self.counts:
                        wanted |= mentions(node)
        for name in [s for s in self.counts if s not in counts]:
            place = self.output_names.index(self.counts.pop(name).output)
            del self.outputs[place], self.output_names[place]
            self.ranges.pop(name, None)
        return needed

    def _unique(self, name: str) -> str:
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        if not count:
            return name
        return self._unique(f"{name}_{count}")

    def __str__(self) -> str:
        from planish.graph.text import dump

        return dump(self)


def mentions(node: Node) -> set[str]:
    """The symbols in the attributes of a node and in the types of its outputs."""
    found = {s for v in node.outputs for d in v.shape for s in symbols(d)}
    stack = list(node.op.attributes().values())
    while stack:
        item = stack.pop()
        if isinstance(item, Dim):
            found |= symbols(item)
        elif isinstance(item, tuple):
            stack += item
    return found


def _check_size(type: TensorType, where: str) -> None:
    size = math.prod(d for d in type.shape if isinstance(d, int)) * type.dtype.size
    if size > LARGEST:
        raise ShapeError(
            f"A tensor of type {type} is larger than a machine can address",
            where=where,
            why=f"it has {size:,} bytes or more",
            cure="check the shapes of the model and in inputs=",
        )


def _bind_dimension(
    bound: dict[str, int],
    ranges: Mapping[str, DimRange],
    value: Value,
    axis: int,
    dim: DimLike,
    size: int,
) -> None:
    where = f"input {value.name!r}, dimension {axis}"
    if isinstance(dim, int):
        if dim != size:
            raise ShapeError(
                f"Dimension {axis} of input {value.name!r} is {size}, not {dim}",
                where=where,
                why=f"the model declares {value.type}",
                cure=f"pass an array whose dimension {axis} is {dim}",
            )
        return
    name = str(dim)
    if bound.setdefault(name, size) != size:
        raise ShapeError(
            f"Dimension {axis} of input {value.name!r} is {size}, but {name} is {bound[name]}",
            where=where,
            why=f"every dimension called {name} must have the same size",
            cure="pass arrays that agree",
        )
    limits = ranges.get(name)
    if limits and not limits.min <= size <= limits.max:
        raise ShapeError(
            f"Dimension {name} of input {value.name!r} is {size}, outside {limits.min} to "
            f"{limits.max}",
            where=where,
            why="the engine was built for that range",
            cure="pass a size inside the range, or build with a Profile that holds it",
        )
