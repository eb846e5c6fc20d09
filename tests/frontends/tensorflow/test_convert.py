from types import SimpleNamespace

import numpy as np
import pytest

import tensorflow as tf
from planish.errors import InputError, ModelError, ShapeError, UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def, import_model
from planish.graph.dims import symbol
from planish.graph.graph import DimRange
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv


@pytest.fixture(scope="module")
def graph_def():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, 4], "in/x")
        other = tf.compat.v1.placeholder("float32", [None, 4], "other")
        y = tf.nn.relu(x, name="relu")
        parts = tf.split(y, 2, 1, name="parts")
        tf.add(parts[0], 1.0, name="first")
        tf.multiply(y, other, name="second")
    return graph.as_graph_def()


def test_names_and_origins(graph_def):
    graph = import_model(graph_def, name="net")
    assert graph.name == "net"
    assert [v.name for v in graph.inputs] == ["in/x", "other"]
    assert graph.output_names == ["first", "second"]
    origins = {n.name: n.origin for n in graph.nodes}
    assert origins["relu"] == "relu (Relu)"
    assert origins["first"] == "first (AddV2)"
    assert origins["parts/0"] == "parts (Split)"


def test_batch_is_shared(graph_def):
    graph = import_model(graph_def)
    assert [v.shape for v in graph.inputs] == [(symbol("N"), 4)] * 2
    assert graph.ranges == {"N": DimRange(1, 1, 2**31 - 1)}


def test_middle_tensors(graph_def):
    graph = import_model(graph_def, outputs=["relu", "parts:1"])
    assert [v.name for v in graph.inputs] == ["in/x"]  # the other is not needed
    x = np.float32([[-1, 2, -3, 4]])
    relu, part = interpret(graph, {"in/x": x})
    np.testing.assert_array_equal(relu, [[0, 2, 0, 4]])
    np.testing.assert_array_equal(part, [[0, 4]])


def test_given_shapes_and_profiles(graph_def):
    graph = import_model(
        graph_def, inputs={"in/x": (8, 4), "other": ("rows", 4)}, outputs=["relu", "other"]
    )
    assert [v.shape for v in graph.inputs] == [(8, 4), (symbol("rows"), 4)]
    profile = SimpleNamespace(min=(1, 4), opt=(8, 4), max=(32, 4))
    graph = import_model(graph_def, inputs={"in/x": profile})
    assert graph.ranges["N"] == DimRange(1, 8, 32)
    assert graph.inputs[1].shape == (symbol("N"), 4)


def test_unknown_names(graph_def):
    with pytest.raises(InputError, match="no input 'nope'") as caught:
        import_model(graph_def, inputs={"nope": (1, 2)})
    assert "'in/x', 'other'" in caught.value.why
    with pytest.raises(InputError, match="'nowhere'"):
        import_model(graph_def, outputs=["nowhere"])


def test_segment_between_any_tensors(graph_def):
    kind = TensorType((symbol("N"), 4), DType.FLOAT32)
    graph = import_graph_def(
        graph_def, {"cut": "relu:0"}, {"out": "first:0"}, input_types={"cut": kind}
    )
    (result,) = interpret(graph, {"cut": np.ones((3, 4), "f")})
    np.testing.assert_array_equal(result, np.full((3, 2), 2.0))
    with pytest.raises(ModelError, match="has no type"):
        import_graph_def(graph_def, ["relu"], ["first"])


def test_output_that_is_an_input(graph_def):
    graph = import_graph_def(graph_def, ["in/x"], ["in/x"])
    assert graph.outputs == graph.inputs


def node(name, op, *inputs, **attributes):
    result = tf.compat.v1.NodeDef(name=name, op=op, input=list(inputs))
    for key, value in attributes.items():
        result.attr[key].CopyFrom(value)
    return result


FLOAT = tf.compat.v1.AttrValue(type=1)
INPUT = node(
    "x",
    "Placeholder",
    dtype=FLOAT,
    shape=tf.compat.v1.AttrValue(shape=tf.TensorShape([2]).as_proto()),
)


def broken(*nodes):
    return tf.compat.v1.GraphDef(node=[INPUT, *nodes])


def test_unknown_op():
    with pytest.raises(UnsupportedOpError, match="MyOp") as caught:
        import_model(broken(node("block/mine", "MyOp", "x")))
    error = caught.value
    assert error.where == "block/mine (MyOp)"
    assert error.why
    assert error.cure


def test_damaged_graphs():
    with pytest.raises(ModelError, match="no node 'gone'") as caught:
        import_model(broken(node("y", "Relu", "gone", T=FLOAT)))
    assert caught.value.where == "y (Relu)"
    with pytest.raises(ModelError, match="malformed"):
        import_model(broken(node("y", "Conv2D", "x", T=FLOAT)))
    with pytest.raises(ModelError, match="Two nodes"):
        import_model(broken(node("y", "Relu", "x"), node("y", "Relu", "x")))
    with pytest.raises(ModelError, match="no attribute 'DstT'"):
        import_model(broken(node("y", "Cast", "x")))
    with pytest.raises(UnsupportedOpError, match="loop"):
        import_model(broken(node("a", "Relu", "b"), node("b", "Relu", "a"), node("c", "Relu", "b")))
    with pytest.raises(UnsupportedOpError, match="Output 3 of a"):
        import_model(broken(node("a", "Relu", "x"), node("y", "Relu", "a:3")))


def test_shapes_that_do_not_fit():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, 3], "x")
        y = tf.compat.v1.placeholder("float32", None, "y")
        tf.matmul(x, y, name="product")
    with pytest.raises(ModelError, match="unknown number of dimensions") as caught:
        import_model(graph.as_graph_def())
    assert "inputs=" in caught.value.cure
    with pytest.raises(ShapeError) as caught:
        import_model(graph.as_graph_def(), inputs={"y": (4, 5)})
    assert caught.value.where.startswith("product (")


def test_convolutions_of_constants_wait(monkeypatch):
    """Their padding may be gigabytes: a dilation is any number that a file says."""
    monkeypatch.setattr(Conv, "reference", None)
    with tf.Graph().as_default() as graph:
        tf.nn.conv2d(tf.ones((1, 8, 8, 2)), tf.ones((3, 3, 2, 4)), 1, "SAME", name="y")
    graph_def = graph.as_graph_def()
    graph_def.node[-1].attr["dilations"].list.i[:] = [1, 2**28, 2**28, 1]
    (output,) = import_model(graph_def).outputs
    assert output.shape == (1, 8, 8, 4)


def test_numbers_that_would_fill_the_memory_are_refused():
    """A few bytes of a file say how long a range is, or how large an image is to be."""

    def refused(build):
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder("float32", [1, 2**20, 8, 1], "x")
            build(x)
        with pytest.raises(UnsupportedOpError, match="would have"):
            import_model(graph.as_graph_def())

    raw = tf.raw_ops
    refused(lambda x: raw.Range(start=tf.constant(0, "int64"), limit=2**40, delta=1))
    refused(lambda x: raw.Range(start=0.0, limit=-3e9, delta=-1.0))
    refused(lambda x: raw.LinSpace(start=0.0, stop=1.0, num=2**30))
    refused(lambda x: raw.ResizeArea(images=x, size=[2**16, 8]))
    ones = tf.ones(2)
    refused(
        lambda x: raw.ScaleAndTranslate(
            images=x, size=[2**16, 8], scale=ones.numpy(), translation=ones.numpy()
        )
    )


def test_the_band_of_a_large_matrix_takes_no_memory():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [255, 2**31 - 1], "x")
        tf.raw_ops.MatrixBandPart(input=x, num_lower=-1, num_upper=6, name="y")
    (output,) = import_model(graph.as_graph_def()).outputs
    assert output.shape == (255, 2**31 - 1)


def test_variables_and_control_flow_say_what_to_do():
    with tf.Graph().as_default() as graph:
        w = tf.compat.v1.get_variable("w", shape=[2], use_resource=True)
        tf.identity(w + 1.0, name="y")
    with pytest.raises(UnsupportedOpError, match="freeze"):
        import_model(graph.as_graph_def(), outputs=["y"])


def test_strings_are_refused():
    with tf.Graph().as_default() as graph:
        s = tf.compat.v1.placeholder("string", [], "s")
        tf.strings.length(s, name="n")
    with pytest.raises(ModelError, match="'s'"):
        import_model(graph.as_graph_def())


def test_keras_round_trip(rng, tmp_path):
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            layers.Input([16, 16, 3], name="image"),
            layers.Conv2D(8, 3, 2, "same", activation="relu"),
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.Conv2DTranspose(4, 3, 2, "same"),
            layers.UpSampling2D(2, interpolation="bilinear"),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling2D(),
            layers.LayerNormalization(),
            layers.Dense(5, activation="gelu"),
            layers.Softmax(),
        ]
    )
    x = rng.normal(size=(3, 16, 16, 3)).astype("f")
    expected = model(x, training=False)
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "saved", verbose=False)
    for source in (model, tmp_path / "m.keras", tmp_path / "saved"):
        graph = import_model(source)
        (value,) = graph.inputs
        assert value.shape == (symbol("N"), 16, 16, 3)
        (result,) = interpret(graph, {value.name: x})
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_calls_that_are_not_inlined_by_tensorflow(rng):
    @tf.function(jit_compile=True)
    def inner(x, y):
        return x * 2.0, tf.split(y, 2, 1)[1]

    @tf.function(input_signature=[tf.TensorSpec([None, 4], name="x")])
    def outer(x):
        a, b = inner(x, x + 1.0)
        c, _ = inner(b, a)
        return {"a": a, "c": c}

    x = rng.normal(size=(3, 4)).astype("f")
    graph = import_model(outer.get_concrete_function())
    expected = outer(x)
    for name, result in zip(graph.output_names, interpret(graph, {"x": x}), strict=True):
        np.testing.assert_allclose(result, expected[name], rtol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "shape"),
    [
        ("mobilenet_v2_1.0_224_frozen.pb", (2, 224, 224, 3)),
        ("resnet20_cifar10_frozen.pb", (3, 32, 32, 3)),
        ("ssd_mobilenet_v1_0.75_300_coco_frozen.pb", (1, 211, 333, 3)),
    ],
)
def test_real_graphs(data_dir, rng, file, shape):
    graph = import_model(data_dir / file)
    (value,) = graph.inputs
    if value.dtype is DType.UINT8:
        x = rng.integers(0, 255, shape).astype("uint8")
    else:
        x = rng.uniform(-1, 1, shape).astype("f")
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString((data_dir / file).read_bytes())
    with tf.Graph().as_default() as reference, tf.compat.v1.Session() as session:
        tf.import_graph_def(graph_def, name="")
        del reference
        expected = session.run([f"{n}:0" for n in graph.output_names], {f"{value.name}:0": x})
    for result, wanted in zip(interpret(graph, {value.name: x}), expected, strict=True):
        np.testing.assert_allclose(result, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.data
@pytest.mark.parametrize(
    ("file", "size"),
    [("mlperf_tiny_resnet8_cifar10.h5", 32), ("mlperf_tiny_vww_mobilenet_v1_0.25_96.h5", 96)],
)
def test_real_keras_files(data_dir, file, size):
    graph = import_model(data_dir / file)
    (result,) = interpret(graph, {graph.inputs[0].name: np.zeros((2, size, size, 3), "f")})
    np.testing.assert_allclose(result.sum(-1), 1, rtol=1e-5)


def test_transformer_of_unknown_length(rng):
    layers = tf.keras.layers
    tokens = layers.Input([None], dtype="int32", name="tokens")
    x = layers.Embedding(50, 16)(tokens)
    y = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    x = layers.LayerNormalization(epsilon=1e-5)(x + y)
    y = layers.Dense(16)(layers.Dense(32, activation="gelu")(x))
    x = layers.LayerNormalization()(x + y)
    model = tf.keras.Model(tokens, layers.Dense(3, activation="tanh")(x[:, 0]))
    graph = import_model(model)
    assert graph.inputs[0].shape == (symbol("N"), symbol("tokens_1"))
    ids = rng.integers(0, 50, (3, 7)).astype("int32")
    (result,) = interpret(graph, {"tokens": ids})
    np.testing.assert_allclose(result, model(ids), atol=1e-5)
