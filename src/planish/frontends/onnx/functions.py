"""Function bodies: operators defined by other operators, in the model or by ONNX itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from planish.graph import Value
from planish.graph.types import DType

Attributes = Mapping[str, onnx.AttributeProto]


def schema_function(
    node: onnx.NodeProto, domain: str, opset: int, inputs: Sequence[Value | None]
) -> onnx.FunctionProto | None:
    """The body that ONNX's specification gives an operator, for inputs of these types, or None."""
    try:
        # Any: the type stubs of onnx lack what the class has
        schema: Any = onnx.defs.get_schema(node.op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None
    if schema.has_function:
        version = _newest(schema.function_opset_versions, opset)
        return onnx.FunctionProto.FromString(schema.get_function_with_opset_version(version))
    if not schema.has_context_dependent_function:
        return None
    version = _newest(schema.context_dependent_function_opset_versions, opset)
    types = [b"" if v is None else _type_proto(v).SerializeToString() for v in inputs]
    try:
        body = schema.get_context_dependent_function_with_opset_version(
            version, node.SerializeToString(), types
        )
    except RuntimeError:  # the builder of the body wants something that this node does not say
        return None
    function = onnx.FunctionProto.FromString(body) if body else None
    return function if function and function.node else None


def bound_nodes(function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes of a function with references to its attributes replaced by the call's."""
    attributes = {a.name: a for a in function.attribute_proto}
    attributes |= {a.name: a for a in call.attribute}
    attributes |= {
        name: a for name, a in _schema_defaults(function).items() if name not in attributes
    }
    return [_bound(node, attributes) for node in function.node]


def _bound(node: onnx.NodeProto, attributes: Attributes) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            if attribute.ref_attr_name not in attributes:
                continue  # an optional attribute that the call leaves out
            copy = result.attribute.add()
            copy.CopyFrom(attributes[attribute.ref_attr_name])
            copy.name = attribute.name
            continue
        copy = result.attribute.add()
        copy.CopyFrom(attribute)
        for graph in (*([copy.g] if copy.HasField("g") else []), *copy.graphs):
            inner = [_bound(n, attributes) for n in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
    return result


def _schema_defaults(function: onnx.FunctionProto) -> dict[str, onnx.AttributeProto]:
    """Default attributes of an operator of ONNX's own whose body refers to them."""
    opsets = {o.domain: o.version for o in function.opset_import}
    try:
        schema = onnx.defs.get_schema(
            function.name, opsets.get(function.domain, opsets.get("", 1)), function.domain
        )
    except onnx.defs.SchemaError:
        return {}
    return {
        name: attribute.default_value
        for name, attribute in schema.attributes.items()
        if attribute.default_value.name
    }


def _newest(versions: Sequence[int], opset: int) -> int:
    return max((v for v in versions if v <= opset), default=min(versions))


def _type_proto(value: Value) -> onnx.TypeProto:
    dtype: DType = value.dtype
    return onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy),
        [d if isinstance(d, int) else str(d) for d in value.shape],
    )
