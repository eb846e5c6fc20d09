"""ONNX's own node tests of the operators that have converters.

Each test model must give the expected outputs or be refused with a clear error; the ones that may
be refused are counted, so that a converter that stops working is noticed.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import assert_close
from planish.errors import UnsupportedOpError
from planish.frontends.onnx import import_model
from planish.frontends.onnx.registry import converted_ops
from planish.graph.interpret import interpret

REFUSED = {
    "Bernoulli": "random",
    "Dropout": "training mode is random",
    "If": "branches of sequences or optionals",
}
OTHER_DEFINITION = {
    # ONNX's snippet divides by the unrounded length; its text and the runtimes by the rounded one
    "test_resize_downsample_scales_linear_align_corners",
    "test_resize_downsample_scales_cubic_align_corners",
}


def _cases(op_type: str) -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(op_type)


def _is_tensor(value: Any) -> bool:
    if not isinstance(value, np.ndarray | np.generic):
        return False
    names = {"float16", "float32", "float64", "bfloat16", "bool"}
    return value.dtype.kind in "iu" or value.dtype.name in names


def _run(case: Any) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
    """Results, expected ones, and whether the fallback was used."""
    inputs, expected = ([np.asarray(a) for a in part] for part in case.data_sets[0])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    names = [info.name for info in model.graph.input]
    try:
        graph = import_model(model)
    except UnsupportedOpError:  # shapes, axes and the like come as inputs: make them constants
        for name, array in zip(names, inputs, strict=True):
            if array.ndim <= 1:
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        graph = import_model(model)
    feeds = dict(zip(names, inputs, strict=True))
    results = interpret(graph, {v.name: feeds[v.name] for v in graph.inputs})
    return results, expected, any(n.op.name == "onnx_fallback" for n in graph.nodes)


@pytest.mark.parametrize(
    "op_type", sorted({name for domain, name in converted_ops() if domain == ""})
)
def test_node(op_type: str) -> None:
    passed, converted, refused = 0, 0, []
    for case in _cases(op_type):
        tensors = [value for part in case.data_sets[0] for value in part]
        if case.name in OTHER_DEFINITION or not all(map(_is_tensor, tensors)):
            continue
        if {o.domain: o.version for o in case.model.opset_import}.get("", 99) < 7:
            continue
        try:
            results, expected, fell_back = _run(case)
        except UnsupportedOpError as error:
            refused.append((case.name, error.where, error.why))
            continue
        for result, other in zip(results, expected, strict=True):
            half = other.dtype.itemsize == 2 and other.dtype.kind not in "iu"
            assert_close(result, other, 1e-2 if half else 1e-4, case.name)
        passed += 1
        converted += not fell_back
    if refused:
        assert op_type in REFUSED, f"refused: {refused}"
        assert all(where and why for _, where, why in refused)
    if op_type not in REFUSED and passed:
        assert converted, f"{op_type} has a converter, and every test falls back"
