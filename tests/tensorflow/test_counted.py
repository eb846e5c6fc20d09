"""Results whose sizes depend on the data, in models converted for TensorFlow."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from planish.tensorflow import report  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402


def engine_ops(function):
    """The ops outside of engines and of what runs in their place, and the engines."""
    graph_def = function.graph.as_graph_def()
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    return {n.op for n in graph_def.node}, [n.name for n in nodes if n.op == "PlanishEngine"]


@pytest.fixture(autouse=True)
def _never_too_small(monkeypatch):
    """These segments are small on purpose."""
    monkeypatch.setattr("planish.tensorflow.segments.gain", lambda *_: 1.0)


@pytest.fixture
def compare(save, close):
    """``compare(serve, specs, runs)``: converts, runs both; gives the ops left and the engines."""

    def run(serve, specs, runs, minimum=1):
        folder, original = save(serve, *specs)
        converter = trt.TrtGraphConverterV2(
            input_saved_model_dir=folder,
            conversion_params=trt.TrtConversionParams(minimum_segment_size=minimum),
        )
        function = converter.convert()
        names = [s.name for s in specs]
        for arrays in runs:
            feeds = {n: tf.constant(a) for n, a in zip(names, arrays, strict=True)}
            expected, got = original(**feeds), function(**feeds)
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                assert got[key].shape == value.shape
                assert got[key].dtype == value.dtype
                close(got[key], value)
        return (*engine_ops(function), converter, function)

    return run


def mask_runs(rng, shape=(9,), width=4):
    masks = [rng.random(shape) < 0.4, np.ones(shape, bool), np.zeros(shape, bool)]
    return [(rng.standard_normal((*shape, width)).astype(np.float32), m) for m in masks]


MASKED = [tf.TensorSpec([None, 4], name="x"), tf.TensorSpec([None], tf.bool, name="mask")]


def test_a_masked_tensor_is_one_engine(compare, rng):
    def serve(x, mask):
        rows = tf.boolean_mask(tf.nn.relu(x) * 2.0, mask)
        return {"rows": tf.exp(rows), "count": tf.shape(rows)[0]}

    runs = [*mask_runs(rng), *mask_runs(rng, (31,)), *mask_runs(rng, (0,))]
    ops, engines, *_ = compare(serve, MASKED, runs)
    assert "Where" not in ops
    assert len(engines) == 1


def test_places_as_results(compare, rng):
    def serve(x):
        return {"places": tf.where(tf.abs(x) > 0.5), "columns": tf.transpose(tf.where(x > 0))}

    x = rng.standard_normal((6, 7)).astype(np.float32)
    ops, engines, *_ = compare(
        serve, [tf.TensorSpec([6, None], name="x")], [(x,), (x * 0,), (x[:, :0],), (x + 9,)]
    )
    assert "Where" not in ops
    assert len(engines) == 1


def test_what_combines_rows_is_another_engine(compare, rng):
    def serve(x, mask):
        rows = tf.boolean_mask(tf.nn.relu(x) + 1.0, mask)
        return {"sum": tf.reduce_sum(rows, 0), "rows": rows}

    ops, engines, *_ = compare(serve, MASKED, mask_runs(rng))
    assert "Where" not in ops
    assert len(engines) == 2


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("value", [None, -3.0, "given"])
def test_rows_filled_up_to_a_fixed_number_are_one_engine(compare, rng, before, value):
    """As detectors do with their proposals."""

    def serve(x, mask, filler):
        rows = tf.boolean_mask(tf.nn.relu(x) + 1.0, mask)
        paddings = [[before, 12 - before - tf.shape(rows)[0]], [0, 1]]
        if value is None:
            rows = tf.pad(rows, paddings)
        else:
            rows = tf.pad(rows, paddings, constant_values=filler if value == "given" else value)
        return {"rows": rows, "sum": tf.reduce_sum(rows, 0)}

    specs = [
        tf.TensorSpec([9, 4], name="x"),
        tf.TensorSpec([9], tf.bool, name="mask"),
        tf.TensorSpec([], name="filler"),
    ]
    runs = [(x, m, np.float32(7.5)) for x, m in mask_runs(rng)]
    ops, engines, *_ = compare(serve, specs, runs)
    assert not {"Pad", "PadV2", "Where"} & ops
    assert len(engines) == 1


def test_a_padding_that_may_become_negative_is_another_engine(compare, rng):
    """More rows may be found than there is room for: TensorFlow says so then."""

    def serve(x, mask):
        rows = tf.boolean_mask(tf.nn.relu(x) + 1.0, mask)
        return {"rows": tf.pad(rows, [[0, 9 - tf.shape(rows)[0]], [0, 0]]) * 2.0}

    ops, *_, function = compare(serve, MASKED, mask_runs(rng))
    assert "Where" not in ops
    with pytest.raises(tf.errors.OpError):
        function(x=tf.zeros([10, 4]), mask=tf.ones([10], tf.bool))


def test_what_follows_rows_put_together_is_one_engine_more(compare, rng):
    """Crops of several levels in one list, in an order that is computed from all of them."""

    def serve(x, mask):
        parts = [tf.boolean_mask(tf.nn.relu(x) + 1.0, m) for m in (mask, tf.logical_not(mask))]
        rows = tf.concat(parts, 0)
        order = tf.math.top_k(-rows[:, 0], 5).indices
        return {"rows": tf.gather(rows, order) * 2.0}

    ops, _, converter, _ = compare(serve, MASKED, mask_runs(rng))
    assert not {"Where", "ConcatV2", "Neg", "TopKV2"} & ops
    assert len(converter.converted.engines) == 2
    told = report.text(converter.converted)
    assert "engines begin where a size is needed that the data decide: ConcatV2 (1x)" in told


def test_suppression_with_dense_layers(compare, layers, rng):
    weights = layers.weight(8, 5)

    def serve(boxes, scores, features):
        kept = tf.image.non_max_suppression(boxes, scores, 20, 0.5, 0.3)
        logits = tf.nn.relu(tf.gather(features, kept)) @ weights
        return {"logits": logits, "boxes": tf.gather(boxes, kept), "kept": kept}

    specs = [
        tf.TensorSpec([None, 4], name="boxes"),
        tf.TensorSpec([None], name="scores"),
        tf.TensorSpec([None, 8], name="features"),
    ]
    runs = []
    for count, scale in ((50, 1.0), (50, 0.2), (7, 1.0), (50, 1.5), (0, 1.0)):
        corners = rng.random((count, 2)).astype(np.float32)
        runs.append(
            (
                np.concatenate([corners, corners + 0.2], 1),
                (rng.random(count) * scale).astype(np.float32),
                rng.standard_normal((count, 8)).astype(np.float32),
            )
        )
    ops, engines, *_ = compare(serve, specs, runs)
    assert "NonMaxSuppressionV3" not in ops
    assert len(engines) == 1


def test_distinct_elements(compare, rng):
    def serve(x):
        y, places = tf.unique(tf.abs(x) * 3)
        return {"y": y + 1, "places": places}

    runs = [(rng.integers(-3, k, 30).astype(np.int32),) for k in (0, 4, 100)]
    ops, engines, *_ = compare(serve, [tf.TensorSpec([None], tf.int32, name="x")], runs)
    assert "Unique" not in ops
    assert len(engines) == 1


def test_several_threads_run_one_engine(compare, rng):
    def serve(x, mask):
        return {"rows": tf.exp(tf.boolean_mask(x, mask))}

    _, engines, _, function = compare(serve, MASKED, mask_runs(rng))
    assert len(engines) == 1
    failures = []

    def work(seed):
        own = np.random.default_rng(seed)
        for share in np.linspace(0, 1, 12):
            x = own.standard_normal((25, 4)).astype(np.float32)
            mask = own.random(25) < share
            rows = function(x=tf.constant(x), mask=tf.constant(mask))["rows"]
            if not np.allclose(rows, np.exp(x[mask]), rtol=1e-5):
                failures.append(share)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


FRESH = textwrap.dedent(
    """
    import sys
    import numpy as np, tensorflow as tf
    import planish.tensorflow

    infer = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    for mask in (np.arange(10) % 3 == 0, np.zeros(10, bool), np.ones(10, bool)):
        rows = infer(x=tf.constant(x), mask=tf.constant(mask))["rows"].numpy()
        assert rows.shape == (mask.sum(), 4), rows.shape
        np.testing.assert_array_equal(rows, x[mask] * 2)
    """
)


def test_a_fresh_process(compare, rng, tmp_path):
    def serve(x, mask):
        return {"rows": tf.boolean_mask(x, mask) * 2.0}

    _, engines, converter, _ = compare(serve, MASKED, mask_runs(rng))
    assert len(engines) == 1
    converter.save(str(tmp_path / "converted"))
    result = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "converted")], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
