"""The converter of TensorFlow 1, on frozen GraphDefs and SavedModels."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from planish.errors import InputError, PrecisionError  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402
from planish.tensorflow.engines import registry  # noqa: E402


def run(graph_def, fetches, feeds):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return session.run(fetches, feeds)


@pytest.fixture
def frozen(layers):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 32, 32, 3], "x")
        y = tf.nn.relu(layers.conv(x, 8))
        logits = tf.identity(tf.reduce_mean(layers.conv(y, 5), [1, 2]) * 2.0, "logits")
        tf.nn.softmax(logits, name="probabilities")
        tf.nn.top_k(logits, 2, name="best")
    return graph.as_graph_def()


def engines(graph_def):
    return [n.name for n in graph_def.node if n.op == "PlanishEngine"]


def test_the_announcement_of_tftrt(frozen, rng, close):
    output_node_name, batch_size, workspace_size = ["probabilities", "best:1"], 4, 1 << 25
    trt_graph = trt.create_inference_graph(
        input_graph_def=frozen,
        outputs=output_node_name,
        max_batch_size=batch_size,
        max_workspace_size_bytes=workspace_size,
        precision_mode="FP32",
    )
    trt_graph = trt.calib_graph_to_infer_graph(trt_graph)
    assert len(engines(trt_graph)) == 1
    assert len(trt_graph.node) == 5  # input, engine, its plan, two outputs
    registry.release()  # as in a process that has not built the engine
    x = rng.standard_normal((9, 32, 32, 3)).astype(np.float32)
    fetches = ["probabilities:0", "best:0", "best:1"]
    for got, expected in zip(
        run(trt_graph, fetches, {"x:0": x}), run(frozen, fetches, {"x:0": x}), strict=True
    ):
        close(got, expected)


def test_denied_nodes_are_not_touched(frozen):
    converter = trt.TrtGraphConverter(
        input_graph_def=frozen, nodes_denylist=["logits", "probabilities:0"]
    )
    graph_def = converter.convert()
    kept = {n.name: n.op for n in graph_def.node}
    assert kept["probabilities"] == "Softmax"
    assert "best" not in kept
    assert len(engines(graph_def)) == 1
    old = trt.TrtGraphConverter(input_graph_def=frozen, nodes_blacklist=["probabilities"])
    assert {n.name: n.op for n in old.convert().node}["probabilities"] == "Softmax"


def test_without_outputs_the_loose_ends_are_kept(frozen, rng, close):
    graph_def = trt.TrtGraphConverter(input_graph_def=frozen).convert()
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    fetches = ["probabilities:0", "best:0", "best:1"]
    for got, expected in zip(
        run(graph_def, fetches, {"x:0": x}), run(frozen, fetches, {"x:0": x}), strict=True
    ):
        close(got, expected)


def test_loops_of_tensorflow_1(layers, rng, close):
    with tf.Graph().as_default() as graph:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = tf.compat.v1.placeholder(tf.float32, [None, 32, 32, 3], "x")
            y = tf.nn.relu(layers.conv(x, 8))
            y = tf.compat.v1.while_loop(lambda i, v: i < 3, lambda i, v: (i + 1, v / 2), (0, y))[1]
            y = tf.ensure_shape(y, [None, 32, 32, 8])
            tf.nn.relu(layers.conv(y, 8), name="y")
        finally:
            tf.compat.v1.enable_control_flow_v2()
    graph_def = trt.create_inference_graph(graph.as_graph_def(), ["y"])
    assert len(engines(graph_def)) == 2
    assert any(n.op == "NextIteration" for n in graph_def.node)
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    close(run(graph_def, "y:0", {"x:0": x}), run(graph.as_graph_def(), "y:0", {"x:0": x}))


def test_placeholders_with_defaults_can_still_be_fed(layers, rng, close):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 32, 32, 3], "x")
        scale = tf.compat.v1.placeholder_with_default(tf.constant(2.0), [], "scale")
        tf.nn.relu(layers.conv(x, 8) * scale, name="y")
    graph_def = trt.create_inference_graph(graph.as_graph_def(), ["y"])
    assert len(engines(graph_def)) == 1
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    for feeds in ({"x:0": x}, {"x:0": x, "scale:0": 5.0}):
        close(run(graph_def, "y:0", feeds), run(graph.as_graph_def(), "y:0", feeds))


def test_saved_models(frozen, rng, close, tmp_path):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(frozen, name="")
        tensors = [graph.get_tensor_by_name(n) for n in ("x:0", "probabilities:0")]
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "model"), {"image": tensors[0]}, {"p": tensors[1]}
        )
    graph_def = trt.create_inference_graph(
        None,
        None,
        input_saved_model_dir=str(tmp_path / "model"),
        output_saved_model_dir=str(tmp_path / "converted"),
    )
    assert len(engines(graph_def)) == 1
    infer = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    x = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    close(infer(image=tf.constant(x))["p"], run(frozen, "probabilities:0", {"x:0": x}))


def test_wrong_arguments_and_order(frozen, tmp_path):
    with pytest.raises(ValueError, match="Must specify one"):
        trt.TrtGraphConverter()
    with pytest.raises(ValueError, match="Can only specify one"):
        trt.TrtGraphConverter(input_saved_model_dir="m", input_graph_def=frozen)
    with pytest.raises(ValueError, match="max_batch_size should be an integer"):
        trt.TrtGraphConverter(input_graph_def=frozen, max_batch_size=None)
    with pytest.raises(InputError, match="no node 'absent'"):
        trt.create_inference_graph(frozen, ["absent"])
    with pytest.raises(PrecisionError):
        trt.create_inference_graph(frozen, ["logits"], precision_mode="FP8")
    with pytest.raises(InputError, match="no engines"):
        trt.calib_graph_to_infer_graph(frozen)
    converter = trt.TrtGraphConverter(input_graph_def=frozen)
    with pytest.raises(AssertionError, match="before save"):
        converter.save(str(tmp_path))
    with pytest.raises(AssertionError, match="before calibrate"):
        converter.calibrate(["logits"], 1, feed_dict_fn=dict)
    converter.convert()
    with pytest.raises(ValueError, match="Not able to save"):
        converter.save(str(tmp_path))
    with pytest.raises(ValueError, match="one and only one"):
        converter.calibrate(["logits"], 1)
    with pytest.raises(AssertionError, match="called already"):
        converter.convert()


# ---- real models -----------------------------------------------------------------------------


def read(path):
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    return graph_def


@pytest.mark.data
def test_mobilenet_v2(data_dir, rng, close):
    graph_def = read(data_dir / "mobilenet_v2_1.0_224_frozen.pb")
    output = "MobilenetV2/Predictions/Softmax"
    converted = trt.create_inference_graph(graph_def, [output])
    assert len(engines(converted)) == 1
    x = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    feeds = {"input:0": x}
    close(run(converted, f"{output}:0", feeds), run(graph_def, f"{output}:0", feeds), 1e-4)


@pytest.mark.data
def test_ssd_mobilenet_detects_what_tensorflow_does(data_dir):
    from PIL import Image

    names = ["detection_boxes", "detection_scores", "detection_classes", "num_detections"]
    graph_def = read(data_dir / "ssd_mobilenet_v1_0.75_300_coco_frozen.pb")
    converted = trt.create_inference_graph(graph_def, names)
    assert len(converted.node) <= 277
    assert len(engines(converted)) <= 4
    reference = json.loads((data_dir / "ssd_reference_detections.json").read_text())["detections"]
    photos = {}
    with tarfile.open(data_dir / "coco_photos_22.tar") as tar:
        for member in tar.getmembers():
            if member.isfile():
                content = tar.extractfile(member).read()
                name = member.name.rpartition("/")[2]
                photos[name] = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    assert photos.keys() == reference.keys()
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(converted, name="")
        for name, photo in photos.items():
            fetched = session.run([f"{n}:0" for n in names], {"image_tensor:0": photo[None]})
            boxes, scores, classes, count = (part[0] for part in fetched)
            expected = reference[name]
            count = int(count)
            assert count >= len(expected), name
            for i, found in enumerate(expected):
                assert classes[i] == found["class_id"], (name, i)
                assert scores[i] == pytest.approx(found["score"], abs=2e-4)
                assert boxes[i] == pytest.approx(found["box_ymin_xmin_ymax_xmax"], abs=1e-3)
