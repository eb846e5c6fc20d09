"""The frameworks themselves as references: each model as a function of arrays by input name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers.onnx_graph import assert_close

Feeds = Mapping[str, np.ndarray]
Reference = Callable[[Feeds], dict[str, np.ndarray]]
"""A model: from inputs by name to outputs by name."""

TOLERANCE = 1e-4
"""Largest difference from the framework, as a share of the output's largest magnitude."""


def frozen_graph(path: Path, outputs: Sequence[str]) -> Reference:
    """A TensorFlow GraphDef in a file; `outputs` are names of nodes or tensors."""
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)
    wanted = {name: name if ":" in name else f"{name}:0" for name in outputs}

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return session.run(wanted, {f"{name}:0": array for name, array in feeds.items()})

    return run


def onnx_model(model: Any) -> Reference:
    """An ONNX file or ModelProto by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source = str(model) if isinstance(model, str | Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return run


def keras_model(model: Any) -> Reference:
    """A Keras model, or a legacy file of one; outputs bear the names of the model's outputs."""
    import tensorflow as tf

    if isinstance(model, Path):
        model = load_legacy_keras(model)
    names = [name.partition(":")[0] for name in model.output_names]

    def run(feeds: Feeds) -> dict[str, np.ndarray]:
        arrays = [tf.constant(feeds[t.name.partition(":")[0]]) for t in model.inputs]
        results = tf.nest.flatten(model(arrays[0] if len(arrays) == 1 else arrays, training=False))
        return {name: r.numpy() for name, r in zip(names, results, strict=True)}

    return run


def load_legacy_keras(path: Path) -> Any:
    """A model that Keras 2 saved: its depthwise layers have a key that Keras 3 refuses."""
    import tensorflow as tf

    class DepthwiseConv2D(tf.keras.layers.DepthwiseConv2D):
        def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:
            super().__init__(*args, **options)

    return tf.keras.models.load_model(
        str(path), compile=False, custom_objects={"DepthwiseConv2D": DepthwiseConv2D}
    )


def run_engine(engine: Any, feeds: Feeds) -> dict[str, np.ndarray]:
    """An engine's outputs by name, also where there is only one."""
    results = engine(dict(feeds))
    return results if isinstance(results, dict) else {engine.outputs[0].name: results}


def assert_agrees(
    engine: Any,
    reference: Reference,
    feeds: Feeds,
    tolerance: float = TOLERANCE,
) -> None:
    """The engine and the framework give the same outputs within `tolerance` of their scale."""
    results, expected = run_engine(engine, feeds), reference(feeds)
    assert results.keys() <= expected.keys()
    for name, result in results.items():
        assert_close(result, np.asarray(expected[name]), tolerance, name)
