"""Graphs as ONNX models, for a runtime that shares no code with Planish: every op beside its own.

Every op is given what the references computed before it, and its result is an output of the model
and is compared: a difference names its op. (Were an op given results of both runtimes, which round
otherwise, it could find x less than a copy of x, which no computation finds.) Ops that ONNX, or
ONNX Runtime's CPU provider, does not have for a dtype are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from helpers.fuzz.onnx_ops import EXPORTS, Exporter
from helpers.fuzz.recipe import Recipe, Ref
from helpers.fuzz.rounding import Bounds
from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.normalization import InstanceNorm

DTYPES = (DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64, DType.BOOL)

SLACK = 4e-6
"""Share of the largest element that ONNX Runtime's approximations (erf, tanh, exp) may be off by.
"""

CLAMPED = {"sigmoid": 2e-7, "silu": 4e-6}
"""What ONNX Runtime's results may be off by besides: its sigmoid is 0 below -18, where 1.5e-8 is
right, and up to 1.8e-7 off above (at -15.9; against float64 at two million places).
x * sigmoid(x) is off by 18 times that.
"""


def onnx_difference(
    recipe: Recipe,
    values: Mapping[Ref, Value],
    known: Mapping[Value, np.ndarray],
    bounds: Mapping[Value, Bounds],
) -> tuple[str, int]:
    """What ONNX Runtime computes otherwise than the references, and how many ops it ran.

    `known` and `bounds` hold the references' results at the sizes to run at; dimensions are static.
    """
    onnx, runtime = _packages()
    if onnx is None:
        return "", 0
    nodes = list(dict.fromkeys(v.producer for v in values.values() if v.producer))
    from helpers.old_runtime import OUR_OPS, is_old

    left_out = {n.name for n in nodes if is_old() and n.op.name in OUR_OPS}
    for _ in range(len(nodes) + 1):
        exporter = _export(nodes, known, left_out)
        if not exporter.outputs:
            return "", 0
        try:
            session = runtime.InferenceSession(
                exporter.model().SerializeToString(), _options(runtime), ["CPUExecutionProvider"]
            )
            names = list(exporter.outputs.values())
            results = session.run(names, {v.name: known[v] for v in exporter.inputs})
            break
        except Exception as error:
            # the names of nodes start with that of the op they stand for
            found = re.search(r"(?:name|node)[ :]*'?(n\d+)(?:_|/|')", str(error))
            if "NOT_IMPLEMENTED" not in str(error) and "NotImplemented" not in repr(error):
                return f"{error}", 0
            if found is None or found[1] in left_out:
                return f"cannot tell which op is not implemented: {error}", 0
            left_out.add(found[1])
    else:
        return "", 0
    for value, result in zip(exporter.outputs, results, strict=True):
        result = np.asarray(result)
        assert value.producer is not None
        least = CLAMPED.get(value.producer.op.name, 0.0) + _cancelled(value.producer, known)
        if wrong := bounds[value].difference(result, SLACK, least):
            inputs = ", ".join(str(v.type) for v in value.producer.inputs)
            return f"{value.producer.op} of {inputs}: {wrong}", 0
    return "", exporter.count


def _cancelled(node: Node, known: Mapping[Value, np.ndarray]) -> float:
    """What ONNX Runtime loses where it computes ``x * k + (offset - mean * k)``, whose terms are
    large where a channel hardly varies; 0 of other ops.
    """
    if not isinstance(node.op, InstanceNorm):
        return 0.0
    x, scale, _ = (known[v].astype(np.float64) for v in node.inputs)
    spatial = tuple(range(1, x.ndim - 1))
    k = np.abs(scale) / np.sqrt(x.var(axis=spatial) + node.op.epsilon)
    terms = np.abs(x).max(axis=spatial) * k
    return 4 * float(np.finfo(known[node.inputs[0]].dtype).eps) * float(terms.max())


def _packages():
    try:
        import onnx
        import onnxruntime
    except ImportError:
        return None, None
    return onnx, onnxruntime


def _options(runtime):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _export(nodes: list[Node], known: Mapping[Value, np.ndarray], left_out: set[str]) -> Exporter:
    exporter = Exporter(known)
    for node in nodes:
        export = EXPORTS.get(node.op.name)
        dtypes = [v.dtype for v in (*node.inputs, *node.outputs)]
        empty = any(0 in known[v].shape for v in (*node.inputs, *node.outputs))
        if export is None or empty or node.name in left_out:
            continue
        if all(d in DTYPES for d in dtypes):
            exporter.add(node, export)
    return exporter
