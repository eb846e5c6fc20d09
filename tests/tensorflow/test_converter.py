"""The converter of TensorFlow 2, on SavedModels."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import planish  # noqa: E402
from planish.errors import CalibrationError, ModelError, PlanishError  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402

IMAGE = tf.TensorSpec([None, 32, 32, 3], name="image")


def engine_ops(function):
    graph_def = function.graph.as_graph_def()
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    return [n.name for n in nodes if n.op == "PlanishEngine"]


@pytest.fixture
def network(layers, save):
    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        x = tf.nn.relu(layers.conv(x, 8, stride=2) + layers.conv(x, 8, 1, 2))
        return {"logits": tf.reduce_mean(x, [1, 2]), "features": x}

    return save(serve, IMAGE)


def test_a_network_becomes_one_engine(network, rng, close):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    assert engine_ops(function) == ["PlanishEngine_000"]
    assert function(tf.zeros([0, 32, 32, 3]))["features"].shape == (0, 16, 16, 8)
    for batch in (1, 4, 3):
        images = rng.standard_normal((batch, 32, 32, 3)).astype(np.float32)
        expected = serve(image=tf.constant(images))
        for results in (function(tf.constant(images)), function(image=tf.constant(images))):
            assert results.keys() == expected.keys()
            for key, value in expected.items():
                close(results[key], value)


FRESH = textwrap.dedent(
    """
    import sys, threading
    import numpy as np, tensorflow as tf
    import planish.tensorflow

    data = dict(np.load(sys.argv[2]))  # read now: the file is not for several threads
    infer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    spec = infer.structured_input_signature[1]["image"]
    assert spec.shape.as_list() == [None, 32, 32, 3], spec
    results = {}

    def run(i):
        n = i % data["image"].shape[0] + 1
        results[i] = n, infer(image=tf.constant(data["image"][:n]))["logits"].numpy()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    for n, logits in results.values():
        np.testing.assert_allclose(logits, data["logits"][:n], atol=1e-4)
    print("good", len(results))
    """
)


def test_saved_moved_and_loaded_in_a_fresh_process(network, rng, tmp_path):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    converter.convert()
    converter.save(str(tmp_path / "converted"))
    del converter
    (tmp_path / "converted").rename(tmp_path / "moved")
    assets = [p.name for p in (tmp_path / "moved" / "assets").iterdir()]
    assert assets == ["planish-engine.PlanishEngine_000.plan"]
    images = rng.standard_normal((3, 32, 32, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images, logits=serve(image=tf.constant(images))["logits"])
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "moved"), str(tmp_path / "data.npz")],
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert "good 8" in done.stdout, done.stderr[-2000:]


def test_in_keras_and_in_a_function(network, rng, close, tmp_path):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    converter.save(str(tmp_path / "converted"))
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    expected = serve(image=tf.constant(images))["logits"]
    layer = tf.keras.layers.TFSMLayer(str(tmp_path / "converted"), call_endpoint="serving_default")
    inputs = tf.keras.Input((32, 32, 3))
    model = tf.keras.Model(inputs, layer(inputs)["logits"] * 2.0)
    close(model.predict(images, verbose=0), 2.0 * expected)
    outer = tf.function(lambda x: function(image=x * 1.0)["logits"] + 1.0)
    close(outer(tf.constant(images)), expected + 1.0)


def test_the_engine_runs_on_its_own(network, rng, tmp_path, close):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    converter.convert()
    converter.save(str(tmp_path / "converted"))
    (plan,) = (tmp_path / "converted" / "assets").iterdir()
    engine = planish.load(plan)
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    results = list(engine(images).values())
    expected = serve(image=tf.constant(images))
    close(results[0] if results[0].ndim == 2 else results[1], expected["logits"])


def test_build_tunes_for_the_shapes_given_and_may_be_repeated(network, rng, close):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder, use_dynamic_shape=True)
    converter.convert()
    images = rng.standard_normal((5, 32, 32, 3)).astype(np.float32)
    converter.build(lambda: iter([images, (images[:2],), [images[:3]], {"image": images[:4]}]))
    (engine,) = converter.converted.built.values()
    sizes = {dict(choice.at).get("N") for step in engine.plan.steps for choice in step.choices}
    assert {5, 2} <= sizes
    converter.build(lambda: [images[:1]])
    close(
        converter._function(tf.constant(images))["logits"],
        serve(image=tf.constant(images))["logits"],
    )


def test_many_threads(network, rng, close):
    folder, serve = network
    function = trt.TrtGraphConverterV2(input_saved_model_dir=folder).convert()
    images = rng.standard_normal((6, 32, 32, 3)).astype(np.float32)
    expected = serve(image=tf.constant(images))["logits"].numpy()
    wrong = []

    def run(i):
        for k in range(10):
            n = 1 + (i + k) % 6
            got = function(tf.constant(images[:n]))["logits"].numpy()
            if np.abs(got - expected[:n]).max() > 1e-4:
                wrong.append((i, n))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_op_in_the_middle_stays_in_tensorflow(layers, save, rng, close, capsys, monkeypatch):
    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        text = tf.strings.as_string(tf.round(x * 16.0))
        return {"y": layers.conv(tf.strings.to_number(text), 4)}

    folder, native = save(serve, IMAGE)
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", "1")
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    assert len(engine_ops(function)) == 2
    printed = capsys.readouterr().out
    assert "between engines stand: AsString (1x), StringToNumber (1x)" in printed
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    close(function(tf.constant(images))["y"], native(image=tf.constant(images))["y"], 0.1)


def test_control_flow_around_engines(layers, save, rng, close):
    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        x = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5), (0, x))[1]
        x = tf.nn.relu(layers.conv(x, 8))
        x = tf.cond(tf.reduce_sum(x) > 0.0, lambda: x + 1.0, lambda: x - 1.0)
        return {"y": layers.conv(x, 4)}

    folder, native = save(serve, IMAGE)
    function = trt.TrtGraphConverterV2(input_saved_model_dir=folder).convert()
    assert len(engine_ops(function)) == 3
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    close(function(tf.constant(images))["y"], native(image=tf.constant(images))["y"])


def test_tables_stay_beside_engines(layers, save, rng, close, tmp_path):
    keys = tf.constant(["a", "b"])
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, tf.constant([2.0, 3.0])), 0.0
    )

    def serve(image, name):
        x = tf.nn.relu(layers.conv(image, 8))
        return {"y": layers.conv(x, 4) * tf.reshape(table.lookup(name), [-1, 1, 1, 1])}

    folder, native = save(serve, IMAGE, tf.TensorSpec([None], tf.string, "name"), resources=[table])
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    converter.save(str(tmp_path / "converted"))
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    names = tf.constant(["b", "a"])
    expected = native(image=tf.constant(images), name=names)["y"]
    close(function(image=tf.constant(images), name=names)["y"], expected)
    again = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    close(again(image=tf.constant(images), name=names)["y"], expected)


@pytest.fixture
def two_batches(layers, save):
    """Two inputs whose batches need not be equal: the second may have one row for all."""
    weight = layers.weight(64, 96)

    def serve(a, b):
        a, b = tf.matmul(a, weight), tf.matmul(b, weight)
        return {"y": tf.nn.softmax(tf.nn.relu(a) + tf.nn.relu(b) * 2.0)}

    specs = [tf.TensorSpec([None, 64], name=n) for n in "ab"]
    return save(serve, *specs)


def test_shapes_an_engine_does_not_take_run_natively(two_batches, rng, close, tmp_path):
    folder, native = two_batches
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    (node,) = converter.converted.engines
    assert not node.segment.covered
    assert function(a=tf.zeros([3, 64]), b=tf.zeros([3, 64]))["y"].shape == (3, 96)
    converter.save(str(tmp_path / "converted"))
    again = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    for rows in (4, 1):
        a = tf.constant(rng.standard_normal((4, 64)), tf.float32)
        b = tf.constant(rng.standard_normal((rows, 64)), tf.float32)
        expected = native(a=a, b=b)["y"]
        close(function(a=a, b=b)["y"], expected)
        close(again(a=a, b=b)["y"], expected)
    weights = [
        n
        for f in function.graph.as_graph_def().library.function
        for n in f.node_def
        if n.op == "PlanishWeight"
    ]
    assert weights, "the native segment stores the weights again"
    plan = sum(p.stat().st_size for p in (tmp_path / "converted" / "assets").iterdir())
    graph = (tmp_path / "converted" / "saved_model.pb").stat().st_size
    assert plan > 64 * 96 * 4 > graph


def test_native_segments_can_be_forbidden(two_batches, monkeypatch):
    folder, _ = two_batches
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "False")
    function = trt.TrtGraphConverterV2(input_saved_model_dir=folder).convert()
    function(a=tf.zeros([4, 64]), b=tf.zeros([4, 64]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="N is 4"):
        function(a=tf.zeros([4, 64]), b=tf.zeros([1, 64]))


def test_nothing_is_converted_where_that_is_asked_for(network, rng, close):
    folder, serve = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder, minimum_segment_size=-1)
    function = converter.convert()
    assert not engine_ops(function)
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    close(function(tf.constant(images))["logits"], serve(image=tf.constant(images))["logits"])


def test_conversion_params_win_and_the_denylist_is_read(network, monkeypatch):
    folder, _ = network
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(minimum_segment_size=1000)
    converter = trt.TrtGraphConverterV2(
        input_saved_model_dir=folder, minimum_segment_size=1, conversion_params=params
    )
    assert not engine_ops(converter.convert())
    assert any("minimum_segment_size is 1000" in r for r in converter.converted.reasons.values())
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Relu, Mean")
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    ops = [n.op for n in converter.convert().graph.as_graph_def().node]
    assert ops.count("Relu") == 2
    assert "Mean" in ops
    assert "PlanishEngine" in ops


def test_a_trifle_is_not_worth_an_engine(save):
    folder, _ = save(lambda x: {"y": tf.nn.relu(x + 1.0) * 2.0}, tf.TensorSpec([4], name="x"))
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    assert not engine_ops(converter.convert())
    assert any("too little work" in r for r in converter.converted.reasons.values())


# ---- arguments and the order of calls --------------------------------------------------------


def test_the_order_of_calls(network):
    folder, _ = network
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    with pytest.raises(RuntimeError, match="before build"):
        converter.build(lambda: [])
    with pytest.raises(AssertionError, match="before save"):
        converter.save("anywhere")
    with pytest.raises(RuntimeError, match="before calling convert"):
        converter.summary()
    with pytest.raises(ValueError, match="not specify calibration_input_fn"):
        converter.convert(calibration_input_fn=lambda: [])
    converter.convert()
    with pytest.raises(AssertionError, match="called already"):
        converter.convert()
    with pytest.raises(RuntimeError, match="input_fn is None"):
        converter.build(None)
    with pytest.raises(PlanishError, match="yields 2 arrays"):
        converter.build(lambda: [(1, 2)])


def test_wrong_arguments(network, tmp_path):
    folder, _ = network
    with pytest.raises(ValueError, match="no model to convert"):
        trt.TrtGraphConverterV2()
    with pytest.raises(ValueError, match="precision mode"):
        trt.TrtGraphConverterV2(folder, precision_mode="FP12")
    with pytest.raises(ValueError, match="profile_strategy"):
        trt.TrtGraphConverterV2(
            folder, use_dynamic_shape=True, dynamic_shape_profile_strategy="Any"
        )
    with pytest.raises(ModelError, match="cannot be loaded"):
        trt.TrtGraphConverterV2(str(tmp_path / "absent")).convert()
    with pytest.raises(ModelError, match="has no signature 'predict'"):
        trt.TrtGraphConverterV2(folder, input_saved_model_signature_key="predict").convert()


def test_int8(network):
    folder, _ = network
    converter = trt.TrtGraphConverterV2(folder, precision_mode="INT8")
    with pytest.raises(ValueError, match="Should specify calibration_input_fn"):
        converter.convert()
    with pytest.raises(CalibrationError, match="no calibration data"):
        converter.convert(calibration_input_fn=lambda: [])


# ---- code as users have it -------------------------------------------------------------------

TUTORIAL = """
from planish.tensorflow import trt_convert as trt
conversion_params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(
    precision_mode=trt.TrtPrecisionMode.FP16, max_workspace_size_bytes=8000000000)
converter = trt.TrtGraphConverterV2(
    input_saved_model_dir='resnet50_saved_model', conversion_params=conversion_params)
converter.convert()
converter.save(output_saved_model_dir='resnet50_saved_model_TFTRT_FP32')
import tensorflow as tf
root = tf.saved_model.load('resnet50_saved_model_TFTRT_FP32')
infer = root.signatures['serving_default']
output = infer(input_tensor)
"""


def residual_network():
    """ResNet-50 with fewer channels and blocks: the same kinds of layers and connections."""
    keras = tf.keras
    inputs = keras.Input((32, 32, 3), name="input_1")
    x = keras.layers.ZeroPadding2D(3)(inputs)
    x = keras.layers.Conv2D(8, 7, 2)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.MaxPooling2D(3, 2)(keras.layers.ZeroPadding2D(1)(x))
    for width, stride in ((4, 1), (8, 2)):
        for block in range(2):
            y = x
            for filters, size, step in ((width, 1, 1 if block else stride), (width, 3, 1)):
                y = keras.layers.Conv2D(filters, size, step, "same")(y)
                y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
            y = keras.layers.BatchNormalization()(keras.layers.Conv2D(4 * width, 1)(y))
            if not block:
                x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4 * width, 1, stride)(x))
            x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax")(x))


def test_the_tutorial_of_tftrt(tmp_path, monkeypatch, rng, close):
    monkeypatch.chdir(tmp_path)
    model = residual_network()
    model.export("resnet50_saved_model", verbose=False)
    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    names: dict = {"input_tensor": tf.constant(images)}
    exec(TUTORIAL, names)
    (output,) = names["output"].values()
    close(output, model(images, training=False).numpy())
    graph = names["converter"]._function.graph.as_graph_def()
    assert [n.op for n in graph.node].count("PlanishEngine") == 1
    assert len(graph.node) <= 12
