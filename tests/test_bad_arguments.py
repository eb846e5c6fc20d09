"""Wrong arguments, wrong arrays, NaN, empty tensors and full disks: refused, or right as in the
framework; never another exception than a `PlanishError`.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import planish
from helpers.engines import quick_engine
from helpers.onnx_graph import assert_close, model, node, runtime
from helpers.refusal import refused
from planish import DeviceError, InputError, PlanError, PrecisionError, Profile, ShapeError

FLOAT = np.float32
ONES = np.ones((2, 4), FLOAT)


def addition() -> onnx.ModelProto:
    """x + z, both [N, 4], to y."""
    inputs = {name: (FLOAT, ["N", 4]) for name in "xz"}
    return model([node("Add", "x z", "y")], inputs, ["y"])


def network(**changed: np.ndarray) -> onnx.ModelProto:
    """Convolution, activation and pooling of images [N, 3, 8, 8]; constants can be replaced."""
    rng = np.random.default_rng(0)
    weights = {
        "filters": rng.standard_normal((8, 3, 3, 3)).astype(FLOAT),
        "bias": np.zeros(8, FLOAT),
        "dense": rng.standard_normal((8, 5)).astype(FLOAT),
    }
    nodes = [
        node("Conv", "x filters bias", "a", "conv", pads=[1, 1, 1, 1]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "e"),
        node("MatMul", "e dense", "y"),
    ]
    return model(nodes, {"x": (FLOAT, ["N", 3, 8, 8])}, ["c", "y"], weights | changed)


def images(batch: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((batch, 3, 8, 8)).astype(FLOAT)


# ---- arguments of build ----------------------------------------------------------------------


@pytest.mark.parametrize("device", ["tpu", "cpu:7", None, 0])
def test_devices_that_do_not_exist(device: Any) -> None:
    with refused(DeviceError, "device", "cpu"):
        quick_engine(addition(), device=device)


@pytest.mark.parametrize("precision", ["fp12", "", None, 3, [], {"fp32", "fp12"}])
def test_unknown_precisions(precision: Any) -> None:
    with refused(PrecisionError, "recision"):
        quick_engine(addition(), precision=precision)


@pytest.mark.parametrize(
    "inputs",
    [
        {"w": (1, 4)},
        {"x": (1, 4, 1)},
        {"x": (1, -4)},
        {"x": (1, 2.5)},
        {"x": (1, float("nan"))},
        {"x": (2**70, 4)},
        {"x": "shape"},
        {"x": 5},
        {"x": object()},
        {"x": Profile((1, 4, 1), (1, 4, 1), (1, 4, 1))},
        {3: (1, 4)},
        [(1, 4)],
        "x",
        7,
    ],
)
@pytest.mark.parametrize("framework", ["onnx", "tensorflow"])
def test_wrong_inputs(inputs: Any, framework: str) -> None:
    proto = addition() if framework == "onnx" else _frozen_addition()
    with refused(InputError, "input"):
        quick_engine(proto, inputs=inputs)


def test_inputs_that_do_not_fit_the_model() -> None:
    with refused(ShapeError, "conv"):
        quick_engine(network(), inputs={"x": ("N", 5, 8, 8)})
    with refused(ShapeError, "broadcast"):
        quick_engine(addition(), inputs={"x": (3, 4), "z": (2, 4)})


@pytest.mark.parametrize("outputs", [["w"], ["y", "y"], [], "y", [3], [None], [""], 3])
@pytest.mark.parametrize("framework", ["onnx", "tensorflow"])
def test_wrong_outputs(outputs: Any, framework: str) -> None:
    proto = addition() if framework == "onnx" else _frozen_addition()
    with refused(InputError, "output"):
        quick_engine(proto, outputs=outputs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("threads", 1.5),
        ("threads", "all"),
        ("max_workspace_size", -1),
        ("max_workspace_size", "1 GB"),
        ("tuning_seconds", -1),
        ("tuning_seconds", float("nan")),
        ("tuning_seconds", "long"),
        ("timing_cache", 3),
        ("accuracy_budget", 0.1),
    ],
)
def test_wrong_limits(name: str, value: Any) -> None:
    arguments = {"tuning_seconds": 0, "progress": False, name: value}
    with refused(InputError, name):
        planish.build(addition(), **arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_precision", {"y": "fp16"}), ("strict_types", True), ("calibration", ONES)],
)
def test_arguments_without_effect(name: str, value: Any) -> None:
    with refused(PrecisionError, name):
        quick_engine(addition(), **{name: value})


@pytest.mark.parametrize(
    "shapes", [((2,), (1,), (3,)), ((1,), (1, 1), (1,)), ((-1,), (1,), (1,)), ("a", (1,), (1,))]
)
def test_profiles_out_of_order(shapes: Any) -> None:
    with refused(ShapeError, "rofile"):
        Profile(*shapes)


def _frozen_addition() -> Any:
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x, z = (tf.compat.v1.placeholder(tf.float32, [None, 4], name) for name in "xz")
        tf.add(x, z, name="y")
    return graph.as_graph_def()


# ---- arguments of an execution ---------------------------------------------------------------


@pytest.fixture(scope="module")
def engine():
    return quick_engine(addition())


WRONG_ARRAYS = {
    "rank": (ShapeError, (ONES[0], ONES[0]), "dimensions"),
    "size": (ShapeError, (ONES[:, :3], ONES[:, :3]), "is 3, not 4"),
    "sizes that disagree": (ShapeError, (ONES, ONES[:1]), "'z'"),
    "outside the profile": (ShapeError, (ONES[:0], ONES[:0]), "outside 1 to"),
    "float64": (InputError, (ONES.astype(np.float64), ONES), "float64"),
    "byte order": (InputError, (ONES.astype(">f4"), ONES), ">f4"),
    "objects": (InputError, (ONES.astype(object), ONES), "object"),
    "text": (InputError, (ONES.astype(str), ONES), "'x'"),
    "list": (InputError, (ONES.tolist(), ONES), "list"),
    "nothing": (InputError, (None, ONES), "NoneType"),
    "number": (InputError, (1.0, ONES), "float"),
    "too few": (InputError, (ONES,), "'z' is missing"),
    "none": (InputError, (), "'x' is missing"),
    "too many": (InputError, (ONES,) * 3, "was given 3"),
}


@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_wrong_arrays(name: str, engine) -> None:
    kind, arrays, word = WRONG_ARRAYS[name]
    with refused(kind, word):
        engine(*arrays)
    with engine.create_execution_context() as context, refused(kind, word):
        context.execute(list(arrays))


def test_wrong_names(engine) -> None:
    with refused(InputError, "'w'"):
        engine(x=ONES, w=ONES)
    with refused(InputError, "twice"):
        engine(ONES, x=ONES)
    with refused(InputError, "'z' is missing"):
        engine({"x": ONES})
    with engine.create_execution_context() as context, refused(InputError, "'z' is missing"):
        context.profile({"x": ONES})


@pytest.mark.parametrize(
    "out",
    [np.empty((3, 4), FLOAT), np.empty((2, 4)), [1], {"w": ONES}, np.empty((4, 2), FLOAT).T],
)
def test_wrong_places_for_outputs(out: Any, engine) -> None:
    with refused(InputError, "out"):
        engine(ONES, ONES, out=out)


def test_a_virtual_array_too_large_to_copy(engine) -> None:
    huge = np.broadcast_to(FLOAT(1), (2**31 - 1, 4))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        with refused(DeviceError, "memory"):
            engine(huge, huge)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": "all"}, {"stream": 1}])
def test_wrong_contexts(options: dict[str, Any], engine) -> None:
    with refused(InputError, *options):
        engine.create_execution_context(**options)


def test_use_after_closing() -> None:
    engine = quick_engine(addition())
    context = engine.create_execution_context()
    context.close()
    with refused(InputError, "context was closed"):
        context.execute([ONES, ONES])
    engine.close()
    with refused(InputError, "closed"):
        engine(ONES, ONES)


# ---- NaN -------------------------------------------------------------------------------------


def test_weights_that_are_nan_run_as_in_the_framework(caplog) -> None:
    """Where a channel's weights are NaN its results are; a warning of the build names them."""
    filters = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(FLOAT)
    filters[2] = np.nan
    proto, x = network(filters=filters), images(3)
    with caplog.at_level(logging.WARNING, "planish"):
        engine = quick_engine(proto)
    (warning,) = [r.getMessage() for r in caplog.records if "NaN" in r.getMessage()]
    assert "filters" in warning
    assert "bias" not in warning
    results = engine(x)
    for name, expected in zip("cy", runtime(proto, {"x": x}), strict=True):
        assert np.isnan(expected).any()
        assert_close(results[name], expected, 1e-4, name)


def test_nan_survives_tuning(tmp_path: Path) -> None:
    bias = np.zeros(8, FLOAT)
    bias[1] = np.nan
    proto, x = network(bias=bias), images(2)
    engine = planish.build(proto, tuning_seconds=1, progress=False, timing_cache=tmp_path / "t")
    assert engine.host_steps() == []
    for name, expected in zip("cy", runtime(proto, {"x": x}), strict=True):
        assert_close(engine(x)[name], expected, 1e-4, name)


def test_inputs_that_are_not_finite() -> None:
    proto, x = network(), images(2)
    x[0, 0, 0, 0], x[1, 2, 7, 7] = np.nan, np.inf
    results = quick_engine(proto)(x)
    for name, expected in zip("cy", runtime(proto, {"x": x}), strict=True):
        assert_close(results[name], expected, 1e-4, name)


# ---- tensors without elements ----------------------------------------------------------------


def test_an_empty_batch() -> None:
    least = (0, 3, 8, 8)
    profile = Profile(least, (2, 3, 8, 8), (4, 3, 8, 8))
    engine = quick_engine(network(), inputs={"x": profile})
    assert engine.host_steps() == []
    for batch in (0, 3, 0):
        x = images(batch)
        results = engine(x)
        for name, expected in zip("cy", runtime(network(), {"x": x}), strict=True):
            assert_close(results[name], expected, 1e-4, name)


EMPTY = {
    "product over nothing": (node("MatMul", "x w", "y"), (3, 0), {"w": np.ones((0, 5), FLOAT)}),
    "sum over nothing": (node("ReduceSum", "x", "y", keepdims=0), (0, 4), {}),
    "concatenation": (node("Concat", "x w", "y", axis=0), (0, 4), {"w": ONES}),
    "softmax": (node("Softmax", "x", "y", axis=-1), (0, 4), {}),
    "elementwise": (node("Exp", "x", "y"), (4, 0), {}),
    "transposition": (node("Transpose", "x", "y", perm=[1, 0]), (4, 0), {}),
    "gather": (node("Gather", "x w", "y"), (4, 2), {"w": np.zeros(0, np.int64)}),
    "padding": (node("Pad", "x w", "y"), (0, 2), {"w": np.array([1, 0, 1, 0])}),
}


@pytest.mark.parametrize("name", EMPTY)
def test_empty_tensors(name: str) -> None:
    one, shape, constants = EMPTY[name]
    proto = model([one], {"x": (FLOAT, list(shape))}, ["y"], constants)
    x = np.ones(shape, FLOAT)
    (expected,) = runtime(proto, {"x": x})
    np.testing.assert_array_equal(quick_engine(proto)(x), expected)


# ---- saving ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_plan(engine, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "model.plan"
    engine.save(path)
    old = path.read_bytes()

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with refused(PlanError, "model.plan", "No space left"):
            engine.save(path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["model.plan"]
    assert planish.load(path)(ONES, ONES).shape == (2, 4)


def test_a_plan_that_outgrows_the_limit_of_files(engine, tmp_path: Path) -> None:
    """The system itself refuses the write, halfway."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
    try:
        with refused(PlanError, "model.plan"):
            engine.save(tmp_path / "model.plan")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_does_not_exist(engine, tmp_path: Path) -> None:
    with refused(PlanError, "none", "No such file"):
        engine.save(tmp_path / "none" / "model.plan")
    with refused(PlanError, "none"):
        planish.load(tmp_path / "none")
