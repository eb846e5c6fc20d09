"""An estimate of what a segment saves as an engine, from op types and sizes alone.

An engine saves TensorFlow's overhead for each op, the passes over memory that fusion avoids, and
part of the time of the heavy ops; it costs a call. The figures are rough on purpose: they only
have to tell a segment of a few scalars from one that computes something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor
from planish.graph.dims import evaluate, symbols
from planish.graph.graph import Value
from planish.profile import USUAL_SIZE

CALL = 6.0
"""Microseconds that calling an engine costs more than calling an op."""

TENSOR = 1.0
"""Microseconds for each input of an engine."""

OP = 1.5
"""Microseconds of TensorFlow's overhead for an op."""

BYTES_PER_MICROSECOND = 1e4
FLOPS_PER_MICROSECOND = 1e5

_FREE = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "Snapshot"}
_FILTERS = {"Conv2D", "Conv3D", "Conv1D", "Conv2DBackpropInput"}
_CONTRACTIONS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"}


def gain(nodes: Iterable[Any], tensors: Mapping[Tensor, Value], inputs: Iterable[Tensor]) -> float:
    """Estimated microseconds that an engine of these nodes saves an inference.

    The batch is taken as 1, other unknown dimensions as `USUAL_SIZE`.
    """
    saved = -CALL - TENSOR * len(list(inputs))
    for node in nodes:
        value = tensors.get((node.name, 0))
        if value is None or node.op in _FREE or value.content is not None:
            continue
        elements = _elements(value)
        saved += OP + elements * value.dtype.size / BYTES_PER_MICROSECOND
        saved += elements * _flops_an_element(node, tensors) / FLOPS_PER_MICROSECOND
    return saved


def _flops_an_element(node: Any, tensors: Mapping[Tensor, Value]) -> float:
    """Of a contraction; other ops count by their bytes."""
    sources = [tensors.get(t) for t in graphdef.data_inputs(node)]
    if node.op in _FILTERS and len(sources) > 1 and sources[1] is not None:
        return 2.0 * prod(_sizes(sources[1])[:-1])
    if node.op == "DepthwiseConv2dNative" and len(sources) > 1 and sources[1] is not None:
        return 2.0 * prod(_sizes(sources[1])[:2])
    if node.op in _CONTRACTIONS and sources and sources[0] is not None:
        return 2.0 * (_sizes(sources[0]) or [1])[-1]
    return 0.0


def _elements(value: Value) -> int:
    return prod(_sizes(value))


def _sizes(value: Value) -> list[int]:
    usual = {
        s: 1 if s == str(value.shape[0]) else USUAL_SIZE for d in value.shape for s in symbols(d)
    }
    return [max(int(evaluate(d, usual)), 0) for d in value.shape]
