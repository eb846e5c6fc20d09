"""Bugs of the last ONNX Runtime for Python 3.10, which must not be taken for ours.

Its AveragePool divides by the wrong count at padded and rounded-up borders, its RNN ends the
process, its LayerNormalization refuses rows of one element, its reductions over no axes fail. Newer
ones agree with ONNX's reference.
"""

from __future__ import annotations

from typing import Any

import onnxruntime

FIRST_GOOD = (1, 24)
OPS = frozenset({"AveragePool", "LayerNormalization", "RNN"})
OUR_OPS = frozenset({"avg_pool", "layer_norm", "rnn"})


def is_old() -> bool:
    """Whether this ONNX Runtime has the bugs."""
    return tuple(map(int, onnxruntime.__version__.split(".")[:2])) < FIRST_GOOD


def known_bug(model: Any) -> str:
    """Why this ONNX Runtime cannot judge a model; empty if it can."""
    if not is_old():
        return ""
    for node in model.graph.node:
        idle = any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute)
        if node.op_type in OPS or idle:
            return f"ONNX Runtime {onnxruntime.__version__} computes {node.op_type} wrongly"
    return ""
