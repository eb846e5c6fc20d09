"""What segments are given while TensorFlow runs the native graph, and the ranges that follow."""

from __future__ import annotations

import gc

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from planish.errors import CalibrationError, InputError  # noqa: E402
from planish.frontends.tensorflow import graphdef  # noqa: E402
from planish.passes import optimize  # noqa: E402
from planish.profile import settle_ranges  # noqa: E402
from planish.quantization.calibration import DEFAULT  # noqa: E402
from planish.quantization.collect import collect_ranges  # noqa: E402
from planish.quantization.min_max import MinMaxCalibrator  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402
from planish.tensorflow.calibration import Calibration, find_calibration  # noqa: E402
from planish.tensorflow.conversion import name_segments  # noqa: E402
from planish.tensorflow.function import freeze_function  # noqa: E402
from planish.tensorflow.parameters import OrderError  # noqa: E402
from planish.tensorflow.segments import find_segments, import_segment  # noqa: E402
from planish.tensorflow.settings import Settings  # noqa: E402


@pytest.fixture
def network(layers):
    """Two convolutional parts, and between them an op that stays in TensorFlow."""
    first, second = layers.weight(3, 3, 3, 8), layers.weight(3, 3, 8, 4)

    def run(x):
        y = tf.nn.relu(tf.nn.conv2d(x, first, 1, "SAME"))
        y = tf.reshape(tf.strings.to_number(tf.strings.as_string(y)), tf.shape(y))
        return tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(y, second, 1, "SAME")), [1, 2])

    return run


@pytest.fixture
def images(rng):
    return [rng.standard_normal((n, s, s, 3)).astype(np.float32) for n, s in ((2, 16), (3, 12))]


@pytest.fixture
def frozen(network):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, None, None, 3], "x")
        tf.identity(network(x), "y")
    return graph.as_graph_def()


SETTINGS = Settings.from_environment(minimum_segment_size=2, tuning_seconds=0)


def segments_of(graph_def, outputs=("y",), weights=None):
    ends = [graphdef.tensor_name(t) for t in outputs]
    found = find_segments(graph_def, ends, SETTINGS, weights=weights or {})
    return name_segments(graph_def, found.segments)


def evaluate(graph_def, fetches, feeds):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return session.run(fetches, feeds)


def expected(graph_def, segments, images, calibrator):
    """Ranges by running the native graph for the inputs of each segment."""
    result = {}
    for name, segment in segments.items():
        fetches = [f"{n}:{i}" for n, i in segment.inputs]
        batches = [tuple(evaluate(graph_def, fetches, {"x:0": x})) for x in images]
        graph = import_segment(graph_def, segment, name)
        settle_ranges(graph)
        optimize(graph)
        result[name] = collect_ranges(graph, batches, calibrator)
    return result


def test_a_session(frozen, images):
    segments = segments_of(frozen)
    assert len(segments) == 2
    feeds = iter(images)
    with Calibration(frozen, segments, SETTINGS) as calibration:
        calibration.run_session(["y:0"], 2, feed_dict_fn=lambda: {"x:0": next(feeds)})
        found = calibration.ranges(MinMaxCalibrator())
    assert found == expected(frozen, segments, images, MinMaxCalibrator())
    assert {name: len(r.tensors) > 2 for name, r in found.items()} == dict.fromkeys(segments, True)


def test_inputs_that_are_mapped(frozen, images):
    segments = segments_of(frozen)

    def input_map():
        both = tf.compat.v1.data.Dataset.from_generator(
            lambda: iter(images), tf.float32, [None, None, None, 3]
        )
        return {"x:0": tf.compat.v1.data.make_one_shot_iterator(both).get_next()}

    with Calibration(frozen, segments, SETTINGS) as calibration:
        calibration.run_session(["y"], 2, input_map_fn=input_map)
        assert calibration.ranges(MinMaxCalibrator()) == expected(
            frozen, segments, images, MinMaxCalibrator()
        )


def test_the_users_own_session(frozen, images, close):
    """The calibration graph computes what the graph computes."""
    segments = segments_of(frozen)
    with Calibration(frozen, segments, SETTINGS) as calibration:
        gc.collect()
        for x in images:
            close(
                evaluate(calibration.graph_def, "y:0", {"x:0": x}),
                evaluate(frozen, "y:0", {"x:0": x}),
            )
        assert calibration.ranges(MinMaxCalibrator()) == expected(
            frozen, segments, images, MinMaxCalibrator()
        )


def test_a_function(network, save, images):
    folder, function = save(network, tf.TensorSpec([None, None, None, 3], tf.float32, "x"))
    frozen = freeze_function(tf.saved_model.load(folder), function)
    segments = segments_of(frozen.graph_def, frozen.outputs.values(), frozen.weights)
    with Calibration(frozen.graph_def, segments, SETTINGS, frozen.weights) as calibration:
        calibration.run_function(frozen, ({"x": tf.constant(x)} for x in images))
        found = calibration.ranges(MinMaxCalibrator())
    assert len(found) == 2
    first = found[next(iter(found))].tensors
    assert first["x"] == (min(x.min() for x in images), max(x.max() for x in images))


def test_without_data(frozen):
    with Calibration(frozen, segments_of(frozen), SETTINGS) as calibration:
        calibration.run_session(["y:0"], 0)
        with pytest.raises(CalibrationError, match="no calibration data"):
            calibration.ranges(MinMaxCalibrator())


def test_nan(frozen, images):
    with Calibration(frozen, segments_of(frozen), SETTINGS) as calibration:
        calibration.run_session(["y:0"], 1, lambda: {"x:0": images[0] * np.nan})
        with pytest.raises(CalibrationError, match="NaN or infinity") as caught:
            calibration.ranges(MinMaxCalibrator())
    assert caught.value.where == "input 'x'"


def test_errors_are_our_own(frozen, images, monkeypatch):
    with Calibration(frozen, segments_of(frozen), SETTINGS) as calibration:

        def fail(self, batch):
            raise CalibrationError("The sizes do not fit")

        monkeypatch.setattr("planish.quantization.collect.Collector.add", fail)
        with pytest.raises(CalibrationError, match="The sizes do not fit"):
            calibration.run_session(["y:0"], 1, lambda: {"x:0": images[0]})


def test_tensorflows_errors_stay(frozen):
    with (
        Calibration(frozen, segments_of(frozen), SETTINGS) as calibration,
        pytest.raises(tf.errors.InvalidArgumentError),
    ):
        calibration.run_session(["y:0"], 1)  # the placeholder is not fed


def test_graphs_of_no_calibration(frozen):
    assert find_calibration(frozen) is None
    with Calibration(frozen, segments_of(frozen), SETTINGS) as calibration:
        graph_def = calibration.graph_def
        assert find_calibration(graph_def) is calibration
    assert find_calibration(graph_def) is None


# ---- the converters --------------------------------------------------------------------------


@pytest.fixture
def int8(monkeypatch):
    """INT8 as far as calibration goes: engines are of FP32, and the ranges they get are kept."""
    import planish.builder
    from planish.tensorflow import converter, converter_v1

    given = {}
    build_graph = planish.builder.build_graph

    def build(graph, target, *, calibration=None, **options):
        if calibration is not None:
            given[graph.name] = calibration
        return build_graph(graph, target, **options)

    monkeypatch.setattr(planish.builder, "build_graph", build)
    for module in (converter, converter_v1):
        monkeypatch.setattr(module, "settle_precision", lambda *_: frozenset({"fp32"}))
    return given


def engines(graph_def):
    bodies = [graph_def.node, *(f.node_def for f in graph_def.library.function)]
    return {n.name for body in bodies for n in body if n.op == "PlanishEngine"}


def test_converter_of_tensorflow_2(network, save, images, int8, close):
    folder, function = save(network, tf.TensorSpec([None, None, None, 3], tf.float32, "x"))
    converter = trt.TrtGraphConverterV2(folder, precision_mode="INT8", minimum_segment_size=2)
    converted = converter.convert(calibration_input_fn=lambda: ([x] for x in images))
    assert int8 == converter.converted.ranges
    assert len(int8) == 2
    for x in images:
        (got,), (want,) = converted(tf.constant(x)).values(), function(tf.constant(x)).values()
        close(got, want)
    before = dict(int8)
    int8.clear()
    converter.build(lambda: [images[0]])
    assert int8 == before


def test_engines_in_int8(network, save, images, close, tmp_path):
    """From the user's data to a SavedModel whose engines compute in INT8."""
    folder, function = save(network, tf.TensorSpec([None, None, None, 3], tf.float32, "x"))
    converter = trt.TrtGraphConverterV2(folder, precision_mode="INT8", minimum_segment_size=2)
    converter.convert(calibration_input_fn=lambda: ([x] for x in images))
    built = converter.converted.built
    assert len(built) == 2
    assert {engine.precision for engine in built.values()} == {"int8"}
    converter.save(str(tmp_path / "int8"))
    loaded = tf.saved_model.load(str(tmp_path / "int8")).signatures["serving_default"]
    for x in images:
        (got,), (want,) = (f(tf.constant(x)).values() for f in (loaded, function))
        scale = np.abs(want.numpy()).max()
        assert 0 < np.abs(got.numpy() - want.numpy()).max() < 0.05 * scale


@pytest.mark.parametrize("batch", [np.zeros((0, 8, 8, 3), np.float32), None])
def test_converter_without_data(network, save, int8, batch):
    folder, _ = save(network, tf.TensorSpec([None, None, None, 3], tf.float32, "x"))
    converter = trt.TrtGraphConverterV2(folder, precision_mode="INT8", minimum_segment_size=2)
    with pytest.raises(CalibrationError, match="no calibration data"):
        converter.convert(lambda: [] if batch is None else [batch])


def test_converter_of_tensorflow_1(frozen, images, int8, close):
    converter = trt.TrtGraphConverter(
        input_graph_def=frozen, precision_mode="INT8", minimum_segment_size=2
    )
    with pytest.raises(OrderError, match=r"Need to call convert\(\) before calibrate"):
        converter.calibrate(["y:0"], 1, feed_dict_fn=dict)
    assert not engines(converter.convert())
    with pytest.raises(OrderError, match="called already"):
        converter.convert()
    feeds = iter(images)
    result = converter.calibrate(["y:0"], 2, feed_dict_fn=lambda: {"x:0": next(feeds)})
    assert int8 == converter.converted.ranges
    assert len(int8) == 2
    for x in images:
        close(evaluate(result, "y:0", {"x:0": x}), evaluate(frozen, "y:0", {"x:0": x}))
    with pytest.raises(OrderError, match=r"calibrate\(\) was called already"):
        converter.calibrate(["y:0"], 1, feed_dict_fn=dict)


def test_the_calibration_of_the_announcement(frozen, images, int8, close):
    """Calibrated in the user's own session, as TensorFlow 1.7 had it."""
    graph_def = trt.create_inference_graph(
        frozen, ["y"], precision_mode="INT8", minimum_segment_size=2
    )
    assert not engines(graph_def)
    for x in images:
        close(evaluate(graph_def, "y:0", {"x:0": x}), evaluate(frozen, "y:0", {"x:0": x}))
    result = trt.calib_graph_to_infer_graph(graph_def)
    assert len(int8) == 2
    assert int8 == expected(frozen, segments_of(frozen), images, DEFAULT())
    for x in images:
        close(evaluate(result, "y:0", {"x:0": x}), evaluate(frozen, "y:0", {"x:0": x}))
    with pytest.raises(InputError, match="no engines"):
        trt.calib_graph_to_infer_graph(graph_def)  # its calibration is over


def test_a_calibration_graph_that_was_not_run(frozen, int8):
    graph_def = trt.create_inference_graph(
        frozen, ["y"], precision_mode="INT8", minimum_segment_size=2
    )
    with pytest.raises(CalibrationError, match="no calibration data"):
        trt.calib_graph_to_infer_graph(graph_def)


def test_saving_before_calibration(network, save, int8, tmp_path):
    folder, _ = save(network, tf.TensorSpec([None, None, None, 3], tf.float32, "x"))
    converter = trt.TrtGraphConverter(folder, precision_mode="INT8", minimum_segment_size=2)
    converter.convert()
    with pytest.raises(OrderError, match=r"Need to call calibrate\(\) before save"):
        converter.save(tmp_path / "saved")
