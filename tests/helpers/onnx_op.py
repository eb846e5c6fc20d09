"""Run one ONNX operator by ONNX Runtime, as an independent implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from helpers.old_runtime import known_bug


def onnx_op(
    op_type: str,
    inputs: Sequence[np.ndarray | None],
    outputs: int = 1,
    opset: int = 18,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of one operator of the default domain; None stands for an absent input."""
    names = [f"x{i}" if a is not None else "" for i, a in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(op_type, names, results, **attributes)
    feeds = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
    graph = onnx.helper.make_graph(
        [node],
        "one_op",
        [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape
            )
            for n, a in feeds.items()
        ],
        [onnx.ValueInfoProto(name=r) for r in results],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
    )
    if reason := known_bug(model):
        pytest.skip(reason)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)
