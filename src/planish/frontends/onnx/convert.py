"""ONNX model → `Graph`: walks the nodes and hands each to its converter.

A node is converted, in this order of preference, by the body of a function of the model; by the
converter registered for its operator; by the body that ONNX's specification gives the operator; or
by `OnnxFallback`. Shape arithmetic disappears on the way, because values carry their contents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from planish.errors import (
    InputError,
    ModelError,
    PlanishError,
    ShapeError,
    UnsupportedOpError,
)
from planish.frontends.onnx import converters  # noqa: F401 (fills the registry)
from planish.frontends.onnx.context import Conversion, KnownValues, NoFallbackError
from planish.frontends.onnx.fallback import fallback_op, run_reference
from planish.frontends.onnx.functions import bound_nodes, schema_function
from planish.frontends.onnx.inputs import (
    InputShape,
    declare_inputs,
    tensor_type,
    unknown_name,
)
from planish.frontends.onnx.items import Absent, Item, TensorSequence
from planish.frontends.onnx.limits import Limits
from planish.frontends.onnx.load import (
    ModelSource,
    OpenModel,
    check_version,
    open_model,
    opset_versions,
)
from planish.frontends.onnx.narrow import MOVING, NarrowTypes
from planish.frontends.onnx.order import conversion_order, node_label, subgraph_names
from planish.frontends.onnx.registry import find_converter
from planish.frontends.onnx.tensors import sparse_array, tensor_array
from planish.graph import Graph, Value

DATA_DEPENDENT = {"Compress", "NonMaxSuppression", "NonZero", "Unique"}
"""Operators whose outputs' shapes depend on the data, and are no larger than the inputs; where the
data are known, they are computed while the model is imported."""

MAX_NESTING = 64
"""Functions and subgraphs within one another; more is taken for endless recursion."""


def import_model(
    source: ModelSource,
    *,
    inputs: Mapping[str, InputShape] | None = None,
    outputs: Sequence[str] | None = None,
    name: str | None = None,
    allow_fallback: bool = True,
) -> Graph:
    """Converts an ONNX model into a graph.

    Parameters
    ----------
    source : path, bytes or ModelProto
        The model. External data is read from beside the file, tensor by tensor, so a model may be
        larger than protobuf's 2 GB.
    inputs : mapping, optional
        By input name, the shape to use in place of the model's: a sequence of ints, names and None
        (unknown; keeps the model's name of that dimension), or an object whose `min`, `opt` and
        `max` are shapes.
    outputs : sequence of str, optional
        Names of the tensors to compute, also of middle ones; by default the model's outputs.
    name : str, optional
        The graph's name; by default the model's.
    allow_fallback : bool
        Whether operators without a converter run by ONNX's reference; False makes them an error.

    Returns
    -------
    Graph
        Inputs have the model's names, shapes and layouts. A dimension the model names keeps its
        name (as an identifier), an unnamed batch dimension is ``N``, any other unnamed one
        ``<input>_<axis>``; `Graph.ranges` has the range of each, narrowed where the model itself
        demands it (see `limits`). Inputs and outputs of element types of less than 8 bits are
        8-bit integers, those of 8-bit floats are float32 (see `narrow`). An output that is a
        sequence becomes an output for each of its tensors: ``<output>_0``, ``<output>_1``, ….

    Raises
    ------
    ModelError
        The model is damaged or invalid.
    UnsupportedOpError
        A node cannot be converted, and not fall back either.
    ShapeError
        The shapes of a node's inputs do not fit its operator.
    InputError
        `inputs` or `outputs` do not fit the model.
    """
    opened = open_model(source)
    label = name or opened.proto.graph.name or "model"
    importer = _Importer(opened, Graph(label), allow_fallback, assume_limits=False)
    try:
        return importer.run(inputs, outputs)
    except ShapeError:
        if not importer.limits.refused:
            raise
    again = _Importer(
        opened, Graph(label), allow_fallback, assume_limits=True, weights=importer.weights
    )
    return again.run(inputs, outputs)


class _Scope:
    """The tensors a list of nodes can see, by name; initializers become constants when used."""

    def __init__(
        self, importer: _Importer, graph: onnx.GraphProto | None, parent: _Scope | None = None
    ) -> None:
        self._importer, self._parent = importer, parent
        self.values: dict[str, Item] = {}
        self._dense = {t.name: t for t in graph.initializer} if graph else {}
        self._sparse = {s.values.name: s for s in graph.sparse_initializer} if graph else {}

    @property
    def stored(self) -> set[str]:
        return {*self._dense, *self._sparse}

    def has(self, name: str) -> bool:
        if name in self.values or name in self._dense or name in self._sparse:
            return True
        return self._parent is not None and self._parent.has(name)

    def find(self, name: str) -> Item:
        if name in self.values:
            return self.values[name]
        code = 0
        if name in self._dense:
            array = self._importer.weight(self._dense[name], shared=self._parent is None)
            code = self._dense[name].data_type
        elif name in self._sparse:
            array = sparse_array(self._sparse[name], self._importer.folder)
        elif self._parent is not None:
            return self._parent.find(name)
        else:
            raise ModelError(f"Nothing produces the tensor {name!r}", where=f"tensor {name!r}")
        value = self._importer.constant(array, name)
        self.values[name] = self._importer.narrow.mark(value, code)
        return value


class _Importer:
    def __init__(
        self,
        opened: OpenModel,
        graph: Graph,
        allow_fallback: bool,
        *,
        assume_limits: bool,
        weights: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.proto, self.graph, self.folder = opened.proto, graph, opened.folder
        self.opened, self.allow_fallback = opened, allow_fallback
        self.known, self.narrow = KnownValues(), NarrowTypes()
        self.limits = Limits(graph.ranges, assume_limits)
        self.functions = {
            (_domain(f.domain), f.name, f.overload): f for f in opened.proto.functions
        }
        self.depth = 0
        self.weights: dict[str, np.ndarray] = {} if weights is None else weights
        """The model's own initializers by name, so that a second import reads none again."""

    def weight(self, tensor: onnx.TensorProto, *, shared: bool) -> np.ndarray:
        """The elements of an initializer; `shared` if it is one of the model's own graph."""
        if shared and tensor.name in self.weights:
            return self.weights[tensor.name]
        array = tensor_array(tensor, self.folder)
        if shared:
            self.weights[tensor.name] = array
        return array

    def run(self, inputs: Mapping[str, InputShape] | None, outputs: Sequence[str] | None) -> Graph:
        main = self.proto.graph
        scope = _Scope(self, main)
        declared = [info for info in main.input if info.name not in scope.stored]
        scope.values |= declare_inputs(self.graph, declared, inputs)
        for info, value in zip(declared, self.graph.inputs, strict=True):
            self.narrow.mark(value, tensor_type(info).elem_type)
        wanted = self._wanted(outputs, scope)
        self.convert_nodes(list(main.node), wanted, scope, self.opened.opsets, "")
        for name, value in _named(wanted, scope):
            self.graph.mark_output(value, name)
        self.graph.tidy()
        return self.graph

    def constant(self, array: np.ndarray, name: str) -> Value:
        try:
            return self.graph.constant(array, name)
        except TypeError as error:
            raise UnsupportedOpError(
                f"The tensor {name!r} has an element type that is not supported",
                where=f"tensor {name!r}",
                why=str(error),
                cure="export the model with floats, integers or booleans",
            ) from error

    def _wanted(self, outputs: Sequence[str] | None, scope: _Scope) -> list[str]:
        main = self.proto.graph
        produced = [name for node in main.node for name in node.output if name]
        names = [o.name for o in main.output] if outputs is None else list(outputs)
        if isinstance(outputs, str):
            raise InputError("outputs must be a list of names", cure=f"pass [{outputs!r}]")
        if not names:
            raise ModelError("The model has no outputs", where=self.opened.label)
        known = set(produced)
        for name in names:
            if name in known or scope.has(name):
                continue
            if outputs is not None:
                raise unknown_name("output", name, [*(o.name for o in main.output), *produced])
            raise ModelError(
                f"Nothing produces the output {name!r}",
                where=self.opened.label,
                cure="export the model again, or check it with onnx.checker.check_model",
            )
        return names

    # ---- walking --------------------------------------------------------------------------

    def convert_nodes(
        self,
        nodes: list[onnx.NodeProto],
        outputs: Sequence[str],
        scope: _Scope,
        opsets: Mapping[str, int],
        prefix: str,
    ) -> None:
        """Converts the nodes that `outputs` need and leaves their values in the scope."""
        for node in conversion_order(nodes, outputs, scope.has):
            results = self._convert(node, scope, opsets, prefix)
            values = [self._settled(item, node, scope) for item in results]
            scope.values |= {name: v for name, v in zip(node.output, values, strict=False) if name}

    def _settled(self, item: Item, node: onnx.NodeProto, scope: _Scope) -> Item:
        """A result, with what is known of it taken note of."""
        if not isinstance(item, Value) or item.is_constant:
            return item
        source = scope.find(node.input[0]) if node.op_type in MOVING and node.input else None
        if isinstance(source, Value) and (code := self.narrow.of(source)):
            self.narrow.mark(item, code)
        return item

    def _convert(
        self, node: onnx.NodeProto, scope: _Scope, opsets: Mapping[str, int], prefix: str
    ) -> Sequence[Item]:
        domain = _domain(node.domain)
        inputs = [scope.find(name) if name else None for name in node.input]
        label = prefix + node_label(node)
        if function := self.functions.get((domain, node.op_type, node.overload)):
            return self._expand(function, node, inputs, label, {})
        if domain not in opsets:
            raise ModelError(
                f"The model does not import the operator set {domain or 'ai.onnx'!r}",
                where=f"{label} ({node.op_type})",
                cure="export the model again, or check it with onnx.checker.check_model",
            )
        if not domain:
            check_version(node, opsets[domain], f"{label} ({node.op_type})")
        conversion = Conversion(
            self.graph,
            node,
            inputs,
            opset=opsets[domain],
            name=label,
            known=self.known,
            folder=self.folder,
            limits=self.limits,
            narrow=self.narrow,
            inline=lambda graph, suffix, values: self._inline(
                graph, values, scope, opsets, f"{label}/{suffix}/"
            ),
        )
        reason: UnsupportedOpError | None = None
        if convert := find_converter(node.op_type, domain, conversion.opset):
            try:
                return _outputs(conversion, convert(conversion))
            except NoFallbackError:
                raise
            except UnsupportedOpError as error:
                if error.where != conversion.origin:
                    raise  # from inside a subgraph: that node has had its own fallback
                reason = error
            except PlanishError as error:
                if error.where:
                    raise
                raise type(error)(
                    error.what, where=conversion.origin, why=error.why, cure=error.cure
                ) from error
            except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
                # attributes of the wrong kind can fail anywhere inside a converter
                raise ModelError(
                    f"The node {label!r} is malformed",
                    where=conversion.origin,
                    why=str(error)[:500],
                    cure="export the model again, or check it with onnx.checker.check_model",
                ) from error
        elif function := _defined(node, domain, conversion.opset, inputs):
            return self._expand(function, node, inputs, label, opsets)
        captured = [scope.find(name) for name in subgraph_names(node)]
        return self._fall_back(conversion, domain, captured, reason)

    def _expand(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[Item | None],
        label: str,
        opsets: Mapping[str, int],
    ) -> Sequence[Item]:
        scope = _Scope(self, None)
        given = dict(zip(function.input, inputs, strict=False))
        scope.values |= {name: value for name, value in given.items() if value is not None}
        absent = {name for name in function.input if given.get(name) is None}
        nodes = bound_nodes(function, node)
        for inner in nodes:  # an optional input that the call leaves out is left out inside too
            inner.input[:] = ["" if name in absent else name for name in inner.input]
        if any(node.output[len(function.output) :]):
            raise ModelError(
                f"The node {label!r} is malformed",
                where=f"{label} ({node.op_type})",
                why=f"it names {len(node.output)} outputs and is defined with "
                f"{len(function.output)}",
                cure="export the model again, or check it with onnx.checker.check_model",
            )
        wanted = [
            inner for inner, outer in zip(function.output, node.output, strict=False) if outer
        ]
        versions = {**opsets, **opset_versions(function.opset_import)}
        with self._nested(f"{label} ({node.op_type})"):
            self.convert_nodes(nodes, wanted, scope, versions, f"{label}/")
        return _aligned(node, [scope.find(name) for name in wanted])

    def _inline(
        self,
        graph: onnx.GraphProto,
        inputs: Sequence[Item],
        outer: _Scope,
        opsets: Mapping[str, int],
        prefix: str,
    ) -> list[Item]:
        scope = _Scope(self, graph, outer)
        scope.values |= {info.name: v for info, v in zip(graph.input, inputs, strict=True)}
        outputs = [o.name for o in graph.output]
        with self._nested(prefix):
            self.convert_nodes(list(graph.node), outputs, scope, opsets, prefix)
        return [scope.find(name) for name in outputs]

    def _nested(self, where: str) -> _Nesting:
        return _Nesting(self, where)

    # ---- falling back -----------------------------------------------------------------------

    def _fall_back(
        self,
        conversion: Conversion,
        domain: str,
        captured: Sequence[Item],
        reason: UnsupportedOpError | None,
    ) -> Sequence[Item]:
        node, where = conversion.node, conversion.origin
        why = reason.why if reason else "no converter knows the operator"
        if not self.allow_fallback:
            raise UnsupportedOpError(
                f"{node.op_type} of domain {domain or 'ai.onnx'} cannot be converted",
                where=where,
                why=why,
                cure=(reason.cure if reason else "")
                or "allow_fallback=True runs it by ONNX's reference; or replace the operator",
            ) from reason
        try:
            given = [_tensor(v, "an input", where) for v in conversion.inputs if v is not None]
            given += [_tensor(v, "a tensor of its subgraph", where) for v in captured]
            if any(self.narrow.of(v) for v in given):
                raise UnsupportedOpError(
                    f"{node.op_type} cannot be converted",
                    why="an input has an element type of fewer bits than any that it is run with",
                    cure="cast the input to float or int8 before",
                )
            shapes = conversion.result_shapes
            op = fallback_op(node, domain, conversion.opset, conversion.inputs, shapes)
            arrays = [self.known.get(v) for v in given]
            known = [a for a in arrays if a is not None]
            if node.op_type in DATA_DEPENDENT and len(known) == len(given):
                results = [conversion.constant(r) for r in run_reference(op, known)]
                return _aligned(node, results)
            constants = [
                v if a is None or v.is_constant else conversion.constant(a)
                for v, a in zip(given, arrays, strict=True)
            ]
            return _aligned(node, conversion.add_node(op, *constants).outputs)
        except UnsupportedOpError as error:
            raise UnsupportedOpError(
                error.what,
                where=where,
                why="; ".join(part for part in (reason.why if reason else "", error.why) if part),
                cure=(reason.cure if reason else "") or error.cure,
            ) from error


class _Nesting:
    """Counts functions and subgraphs within one another."""

    def __init__(self, importer: _Importer, where: str) -> None:
        self._importer, self._where = importer, where

    def __enter__(self) -> None:
        self._importer.depth += 1
        if self._importer.depth > MAX_NESTING:
            raise ModelError(
                "Functions or subgraphs of the model call one another without end",
                where=self._where[:200],
                why=f"they are nested more than {MAX_NESTING} deep",
                cure="export the model again",
            )

    def __exit__(self, *_: object) -> None:
        self._importer.depth -= 1


def _named(outputs: Sequence[str], scope: _Scope) -> list[tuple[str, Value]]:
    """The graph's outputs by name; a sequence is one for each of its tensors."""
    found: dict[str, Value] = {}
    for name in outputs:
        item = scope.find(name)
        parts = {name: item}
        if isinstance(item, TensorSequence) and item.values:
            parts = {f"{name}_{i}": value for i, value in enumerate(item.values)}
            if taken := sorted(parts.keys() & {*outputs, *found}):
                raise UnsupportedOpError(
                    f"Output {name!r} is a sequence, whose tensors cannot be named",
                    where=f"output {name!r}",
                    why=f"they are called {name}_0 and so on, and {taken[0]!r} is an output, too",
                    cure="rename one of the outputs in the model",
                )
        found |= {part: _tensor(value, f"output {part!r}") for part, value in parts.items()}
    return list(found.items())


def _tensor(item: Item, what: str, where: str = "") -> Value:
    """The item itself, if it is a tensor."""
    if isinstance(item, Value):
        return item
    raise UnsupportedOpError(
        f"{what[0].upper()}{what[1:]} is not a tensor",
        where=where or what,
        why=f"it is {item}, and an engine computes with tensors",
        cure="cut the model with outputs= where it has tensors",
    )


def _defined(
    node: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Item | None]
) -> onnx.FunctionProto | None:
    """The body of the operator in ONNX's specification, if it has one for these inputs."""
    tensors = [v for v in inputs if v is None or isinstance(v, Value)]
    return schema_function(node, domain, opset, tensors) if len(tensors) == len(inputs) else None


def _outputs(conversion: Conversion, result: Item | Sequence[Item]) -> Sequence[Item]:
    values = (result,) if isinstance(result, Value | TensorSequence | Absent) else tuple(result)
    for index in range(len(values), len(conversion.node.output)):
        if conversion.wants(index):
            raise conversion.unsupported(
                f"its output {index} ({conversion.node.output[index]!r}) is used"
            )
    return values


def _aligned(node: onnx.NodeProto, values: Sequence[Item]) -> Sequence[Item]:
    """The values of the outputs that have names, each at the place of its name."""
    rest = iter(values)
    return [next(rest) if name else values[0] for name in node.output]


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
