"""Build small ONNX models, and compare what the frontend makes of a model with ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from helpers.old_runtime import known_bug
from planish.frontends.onnx import import_model
from planish.graph import Graph
from planish.graph.interpret import interpret

Declared = Sequence["int | str | None"]


def node(op_type: str, inputs: str, outputs: str, name: str = "", **attributes: Any):
    """A node; inputs and outputs are names between spaces, "_" for one that is left out."""
    names = ["" if n == "_" else n for n in inputs.split()]
    results = ["" if n == "_" else n for n in outputs.split()]
    return helper.make_node(op_type, names, results, name=name or None, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[Any, Declared | None]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    opset: int = 18,
    **graph_fields: Any,
) -> onnx.ModelProto:
    """A model; inputs are ``{name: (NumPy dtype, shape)}``."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(d)), s)
            for n, (d, s) in inputs.items()
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
        **graph_fields,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def runtime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs by ONNX Runtime, on one thread and without its graph optimizations."""
    if reason := known_bug(proto):
        pytest.skip(reason)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))


def compare(
    proto: onnx.ModelProto,
    feeds: Mapping[str, np.ndarray],
    *,
    expected: Sequence[np.ndarray] | None = None,
    tolerance: float = 1e-5,
    allow_fallback: bool = False,
    **arguments: Any,
) -> Graph:
    """Imports a model, runs it by the references, and compares with ONNX Runtime.

    Shapes and dtypes must be equal, floats within `tolerance` of the output's scale.
    """
    graph = import_model(proto, allow_fallback=allow_fallback, **arguments)
    wanted = runtime(proto, feeds) if expected is None else expected
    results = interpret(graph, {v.name: feeds[v.name] for v in graph.inputs})
    assert len(results) == len(wanted)
    for name, result, other in zip(graph.output_names, results, wanted, strict=True):
        assert_close(result, np.asarray(other), tolerance, name)
    return graph


def assert_close(result: np.ndarray, other: np.ndarray, tolerance: float, name: str = "") -> None:
    """Equal shape, dtype and non-finite elements; the rest within `tolerance` of the scale."""
    assert result.shape == other.shape, f"{name}: {result.shape}, not {other.shape}"
    assert result.dtype == other.dtype, f"{name}: {result.dtype}, not {other.dtype}"
    if other.dtype.kind in "biu":
        np.testing.assert_array_equal(result, other, err_msg=name)
        return
    result, other = result.astype(np.float64), other.astype(np.float64)
    finite = other[np.isfinite(other)]
    scale = float(np.abs(finite).max(initial=0.0)) or 1.0
    np.testing.assert_allclose(result, other, rtol=0, atol=tolerance * scale, err_msg=name)


def compare_op(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    *,
    constant: Sequence[int] = (),
    outputs: int = 1,
    opset: int = 18,
    symbolic: bool = True,
    expected: Sequence[np.ndarray] | None = None,
    tolerance: float = 1e-5,
    **attributes: Any,
) -> Graph:
    """`compare` for one operator.

    `constant` inputs are initializers; None stands for an input that is left out. Unless
    `symbolic` is false, the first dimension is called N in the inputs of the highest rank.
    """
    names = [f"x{i}" if a is not None else "_" for i, a in enumerate(inputs)]
    arrays = {n: np.asarray(a) for n, a in zip(names, inputs, strict=True) if a is not None}
    fixed = {f"x{i}": arrays[f"x{i}"] for i in constant if f"x{i}" in arrays}
    feeds = {n: a for n, a in arrays.items() if n not in fixed}
    rank = max((a.ndim for a in feeds.values()), default=0)
    batch = next((a.shape[0] for a in feeds.values() if a.ndim == rank and rank), 1)
    declared = {
        n: (a.dtype, ["N", *a.shape[1:]] if symbolic and _leads(a, rank, batch) else a.shape)
        for n, a in feeds.items()
    }
    results = [f"y{i}" for i in range(outputs)]
    one = node(op_type, " ".join(names), " ".join(results), **attributes)
    proto = model([one], declared, results, fixed, opset)
    return compare(proto, feeds, expected=expected, tolerance=tolerance)


def _leads(array: np.ndarray, rank: int, batch: int) -> bool:
    return array.ndim == rank and rank > 0 and array.shape[0] == batch > 1
