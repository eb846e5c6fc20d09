"""What TF-TRT's interface promises, statement by statement, where no other test says it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from planish.runtime.engine import PROGRAMS  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402

IMAGE = tf.TensorSpec([None, 16, 16, 3], name="image")


@pytest.fixture
def folder(layers, save):
    """Three parts of different sizes, with strings between them."""

    def through_text(x):
        return tf.reshape(tf.strings.to_number(tf.strings.as_string(x)), tf.shape(x))

    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        x = through_text(tf.ensure_shape(x, [None, 16, 16, 8]))
        x = tf.ensure_shape(x, [None, 16, 16, 8])
        for _ in range(3):
            x = tf.nn.relu(layers.conv(x, 8))
        x = tf.ensure_shape(through_text(x), [None, 16, 16, 8])
        return {"y": tf.nn.relu(layers.conv(tf.nn.relu(layers.conv(x, 4)), 4))}

    return save(serve, IMAGE)[0]


def converted(folder, **arguments):
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder, **arguments)
    converter.convert()
    return converter


def sizes(converter):
    return sorted(e.segment.size for e in converter.converted.engines)


def test_constants_count_towards_the_minimum_segment_size(folder):
    """The first segment has four nodes (Conv2D, BiasAdd, Relu, EnsureShape) and two weights."""
    every = sizes(converted(folder, minimum_segment_size=1))
    assert len(every) == 3
    for least in (every[0], every[0] + 1, every[-1] + 1):
        assert sizes(converted(folder, minimum_segment_size=least)) == [
            s for s in every if s >= least
        ]
    (first, *_) = sorted(
        (e.segment for e in converted(folder).converted.engines), key=lambda s: s.size
    )
    assert first.size == len(first.nodes) + len(first.constants)
    assert first.constants


@pytest.mark.parametrize("size", [0, -2])
def test_a_minimum_segment_size_of_0_or_less_is_wrong(folder, size):
    with pytest.raises(ValueError, match="minimum_segment_size"):
        converted(folder, minimum_segment_size=size)


def test_so_many_engines_are_kept_the_largest(folder, monkeypatch):
    every = sizes(converted(folder))
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "2")
    assert sizes(converted(folder)) == every[1:]
    for without_limit in ("0", "-1"):
        monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", without_limit)
        assert sizes(converted(folder)) == every


def test_every_op_that_stays_has_a_reason(folder):
    converter = converted(folder)
    reasons = converter.converted.reasons
    ours = {"PlanishEngine", "PlanishReady"}
    structural = {"Placeholder", "Const", "NoOp", "Identity", *ours}
    stayed = [n for n in converter.converted.graph_def.node if n.op not in structural]
    assert {"AsString", "StringToNumber"} <= {n.op for n in stayed}
    known = {n.name for n in converter.converted.source.node}
    for node in stayed:
        if node.name in known:
            assert reasons[node.name]
    text = " ".join(reasons[n.name] for n in stayed if n.op == "AsString")
    assert "no conversion of the op AsString" in text


def test_the_denylist_names_itself_in_the_report(folder, monkeypatch, capsys):
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Relu")
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", "1")
    converted(folder)
    assert "the denylist names the op Relu" in capsys.readouterr().out


def test_arguments_of_the_workspace(folder):
    converted(folder, max_workspace_size_bytes=trt.DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES)
    converted(folder, max_workspace_size_bytes=sys.maxsize - 512)


def test_dynamic_shapes_and_their_strategies_are_accepted(folder):
    for strategy in ("Range", "Optimal", "Range+Optimal", "ImplicitBatchModeCompatible"):
        trt.TrtGraphConverterV2(
            folder, use_dynamic_shape=True, dynamic_shape_profile_strategy=strategy
        )


def test_the_cache_of_programs_is_bounded_and_the_eldest_goes(folder, rng):
    """One program a shape; what was dropped is made again, with equal results."""
    converter = converted(folder, maximum_cached_engines=2)
    function = converter._function
    images = rng.standard_normal((24, 16, 16, 3)).astype(np.float32)
    first = function(image=tf.constant(images[:1]))["y"].numpy()
    for count in range(2, 25):
        function(image=tf.constant(images[:count]))
    for engine in converter.converted.built.values():
        assert len(engine._bound) <= PROGRAMS < 24
    np.testing.assert_array_equal(function(image=tf.constant(images[:1]))["y"].numpy(), first)


def test_the_saved_model_has_the_one_signature(folder, layers, tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[IMAGE])
        def first(self, image):
            return {"y": tf.nn.relu(layers.conv(image, 8))}

        @tf.function(input_signature=[IMAGE])
        def second(self, image):
            return {"z": tf.nn.relu(layers.conv(image, 4))}

    module = Two()
    path = str(tmp_path / "two")
    tf.saved_model.save(module, path, {"first": module.first, "second": module.second})
    converter = trt.TrtGraphConverterV2(path, input_saved_model_signature_key="second")
    converter.convert()
    converter.save(str(tmp_path / "converted"))
    loaded = tf.saved_model.load(str(tmp_path / "converted"))
    assert list(loaded.signatures) == ["second"]
    assert list(loaded.signatures["second"].structured_outputs) == ["z"]


def test_weights_are_stored_once(save, rng, tmp_path):
    weight = rng.standard_normal((512, 1024)).astype(np.float32)
    folder, _ = save(
        lambda x: {"y": tf.nn.relu(tf.matmul(x, weight) + 1.0) * 2.0},
        tf.TensorSpec([None, 512], name="x"),
    )
    converted(folder).save(str(tmp_path / "converted"))
    total = sum(p.stat().st_size for p in (tmp_path / "converted").rglob("*") if p.is_file())
    assert total < 1.5 * weight.nbytes


def test_a_blank_line_of_the_summary_is_a_call_without_argument(folder):
    calls = []
    converted(folder).summary(print_fn=lambda *words: calls.append(words))
    assert () in calls
    assert all(len(words) <= 1 for words in calls)
