"""A node that nobody converts, as an op that ONNX's own reference evaluator runs.

It keeps a model whole where one operator is missing. It is slow, and the build report names it.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from planish.frontends.onnx.order import subgraph_names
from planish.graph import DimLike
from planish.ops.onnx_fallback import OnnxFallback, checked, run_reference

__all__ = ["OnnxFallback", "fallback_op", "run_reference"]


def fallback_op(
    node: onnx.NodeProto,
    domain: str,
    version: int,
    inputs: Sequence[object | None],
    shapes: Sequence[Sequence[DimLike]] = (),
) -> OnnxFallback:
    """The fallback for a node of the model; `shapes` are those of its outputs, where known.

    Raises
    ------
    UnsupportedOpError
        ONNX's reference does not implement the operator.
    """
    canonical = onnx.NodeProto()
    canonical.CopyFrom(node)
    canonical.name = canonical.doc_string = ""
    del canonical.metadata_props[:]
    positions = iter(range(len(inputs)))
    names = ["" if value is None else f"%{next(positions)}" for value in inputs]
    canonical.input[:] = names
    canonical.output[:] = [f"={i}" if name else "" for i, name in enumerate(node.output)]
    serialised = canonical.SerializeToString(deterministic=True)
    captured = tuple(subgraph_names(canonical))
    known = tuple(tuple(shape) for shape in shapes)
    return checked(OnnxFallback(node.op_type, domain, version, serialised, captured, known))
