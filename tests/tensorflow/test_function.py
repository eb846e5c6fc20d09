"""Functions made of converted graphs."""

from __future__ import annotations

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from planish.tensorflow import trt_convert as trt  # noqa: E402
from planish.tensorflow.function import rename_functions  # noqa: E402


def test_functions_get_names_of_their_own():
    @tf.function(input_signature=[tf.TensorSpec([], name="x")], autograph=False)
    def outer(x):
        def deeper(y):
            return tf.cond(y > 1.0, lambda: y * 2.0, lambda: y - 1.0)

        return tf.cond(x > 0.0, lambda: deeper(x), lambda: x)

    graph_def = outer.get_concrete_function().graph.as_graph_def()
    before = [f.signature.name for f in graph_def.library.function]
    assert len(before) == 4
    text = graph_def.SerializeToString()
    rename_functions(graph_def)
    names = [f.signature.name for f in graph_def.library.function]
    assert not set(names) & set(before)
    assert not any(name.encode() + b'"' in graph_def.SerializeToString() for name in before)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            output = [op for op in graph.get_operations() if op.type == "Identity"][-1].outputs[0]
            assert [session.run(output, {"x:0": v}) for v in (-3.0, 0.5, 3.0)] == [-3.0, -0.5, 6.0]
    rename_functions(graph_def)  # a name does not grow each time
    assert all(f.signature.name.count("_planish_") == 1 for f in graph_def.library.function)
    again = type(graph_def).FromString(text)
    rename_functions(again)
    assert [f.signature.name for f in again.library.function] == names


def test_converted_twice_and_saved_beside_its_source(save, rng, close, tmp_path):
    """A process may hold both models' functions at the same time."""
    weight = tf.Variable(rng.standard_normal((192, 192)).astype(np.float32) / 14)

    def serve(x):
        y = tf.tanh(tf.matmul(tf.nn.relu(tf.matmul(x, weight)), weight) + x)
        y = tf.cond(tf.reduce_sum(y) > 0, lambda: tf.matmul(y, weight), lambda: -y)
        return {"y": tf.tanh(tf.matmul(tf.nn.relu(tf.matmul(y, weight)), weight) + y)}

    folder, native = save(serve, tf.TensorSpec([None, 192], name="x"), resources=[weight])
    x = tf.constant(rng.standard_normal((2, 192)), tf.float32)
    for count in range(2):
        converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
        function = converter.convert()
        converter.save(str(tmp_path / f"converted_{count}"))
        again = tf.saved_model.load(str(tmp_path / f"converted_{count}"))
        for found in (function, again.signatures["serving_default"]):
            close(found(x=x)["y"], native(x=x)["y"])


def test_native_segments_are_given_weights_that_the_plan_lacks(layers, save, rng, close, tmp_path):
    """A convolution's filters are in the plan only after the batch norm was folded into them."""
    kernel = tf.Variable(layers.weight(3, 3, 16, 32).astype(np.float32))
    scale = tf.Variable(rng.uniform(0.5, 1.5, 300).astype(np.float32))

    def serve(a, b):
        def branch(x):
            y = tf.nn.conv2d(x, kernel, 1, "SAME")
            norm = {"offset": scale[32:64], "mean": scale[64:96], "variance": scale[96:128]}
            y, *_ = tf.raw_ops.FusedBatchNormV3(x=y, scale=scale[:32], **norm, is_training=False)
            return tf.nn.relu(y)

        return {"y": branch(a) + branch(b)}

    specs = [tf.TensorSpec([None, 8, 8, 16], name=n) for n in "ab"]
    folder, native = save(serve, *specs, resources=[kernel, scale])
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    (node,) = converter.converted.engines
    assert not node.segment.covered
    assert set(converter.converted.weights) & set(node.segment.constants) - set(node.weights)
    converter.save(str(tmp_path / "converted"))
    again = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    for rows in (2, 1):
        a = tf.constant(rng.standard_normal((2, 8, 8, 16)), tf.float32)
        b = tf.constant(rng.standard_normal((rows, 8, 8, 16)), tf.float32)
        for found in (function, again):
            close(found(a=a, b=b)["y"], native(a=a, b=b)["y"])
