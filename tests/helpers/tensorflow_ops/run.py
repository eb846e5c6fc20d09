"""Runs a case by TensorFlow, untouched by its optimizers, and by Planish, and compares."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from helpers.engines import quick_engine
from helpers.tensorflow_ops.draw import Build, Case, Operand
from planish.graph.types import DType


class Refused(Exception):
    """TensorFlow itself has no kernel of a case, or does not take its attributes."""


HALVES = (DType.FLOAT16, DType.BFLOAT16)
_FLOAT_EPSILON = 2.0**-23


def run_case(case: Case) -> None:
    """Builds an engine of one case and compares its results with TensorFlow's.

    Raises
    ------
    AssertionError
        Results differ, a step runs on the host, or a dtype or shape is not TensorFlow's.
    PlanishError
        The case cannot be converted.
    """
    graph_def, outputs, expected = by_tensorflow(case)
    got = by_planish(case, graph_def, outputs)
    for name, result, wanted in zip(outputs, got, expected, strict=True):
        assert_equal(result, wanted, case, name)


def by_tensorflow(case: Case) -> tuple[Any, list[str], list[np.ndarray]]:
    """The case as a GraphDef, the names of its results, and the results.

    Raises
    ------
    Refused
        TensorFlow does not run it.
    """
    import tensorflow as tf

    try:
        return _expected(case)
    except (tf.errors.OpError, ValueError) as error:
        raise Refused(f"TensorFlow refuses {case}: {error}") from error


def _expected(case: Case) -> tuple[Any, list[str], list[np.ndarray]]:
    graph, tensors, feeds = _graph(case, case.build)
    names = [t.name for t in tensors]
    if case.reference is not None:
        expected = _session(*_graph(case, case.reference))
    else:
        expected = _session(graph, tensors, feeds)
    dtypes = [t.dtype.as_numpy_dtype for t in tensors]
    if case.tolerance.wide and any(DType.of(d) in HALVES for d in dtypes):
        found = _session(*_graph(case, case.reference or case.build, wide=True))
        with np.errstate(all="ignore"):
            expected = [w.astype(d) for w, d in zip(found, dtypes, strict=True)]
    graph_def = graph.as_graph_def()
    if case.edit is not None:
        case.edit(graph_def)
    return graph_def, names, expected


def graph_def_of(case: Case) -> Any:
    """The case as a GraphDef; TensorFlow does not run it."""
    return _graph(case, case.build)[0].as_graph_def()


def by_planish(case: Case, graph_def: Any, outputs: Sequence[str]) -> list[np.ndarray]:
    """The results of an engine without a host step."""
    engine = quick_engine(
        graph_def, inputs=_shapes(case), outputs=list(outputs), allow_fallback=False, threads=1
    )
    assert not engine.report.fallbacks
    feeds = {f"x{i}": o.array for i, o in enumerate(case.operands) if o.fed}
    needed = {i.name: feeds[i.name] for i in engine.inputs}  # others give only their shape
    results = engine(needed)
    named = results if isinstance(results, dict) else {outputs[0]: results}
    return [np.asarray(named[name]) for name in outputs]


def _graph(case: Case, build: Build, wide: bool = False) -> tuple[Any, list[Any], Any]:
    """The graph, its results and what to feed; `wide` makes float32 of the halves it is fed."""
    import tensorflow as tf

    graph = tf.Graph()
    feeds: dict[Any, np.ndarray] = {}
    with graph.as_default():
        arguments = []
        for i, operand in enumerate(case.operands):
            tensor = _tensor(operand, f"x{i}")
            if operand.fed:
                feeds[tensor] = operand.array
            half = DType.of(operand.array.dtype) in HALVES
            arguments.append(tf.cast(tensor, "float32") if wide and half else tensor)
        results = tf.nest.flatten(build(*arguments))
    return graph, results, feeds


def _tensor(operand: Operand, name: str) -> Any:
    import tensorflow as tf

    if not operand.fed:
        return tf.constant(operand.array)
    shape = [None if i in operand.unknown else d for i, d in enumerate(operand.array.shape)]
    return tf.compat.v1.placeholder(operand.array.dtype, shape, name)


def _session(graph: Any, tensors: Sequence[Any], feeds: Any) -> list[np.ndarray]:
    """The results by TensorFlow's kernels as they are: nothing is folded, fused or compiled."""
    from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2

    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1)
    config.graph_options.rewrite_options.CopyFrom(
        rewriter_config_pb2.RewriterConfig(disable_meta_optimizer=True)
    )
    options = config_pb2.OptimizerOptions
    config.graph_options.optimizer_options.opt_level = options.L0
    config.graph_options.optimizer_options.global_jit_level = options.OFF
    with tf.compat.v1.Session(graph=graph, config=config) as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [np.asarray(a) for a in session.run(list(tensors), feeds)]


def _shapes(case: Case) -> dict[str, Any] | None:
    """Shapes with a symbol for each unknown size; None where the model's own say the same."""
    fed = {f"x{i}": o for i, o in enumerate(case.operands) if o.fed}
    batches = {o.array.shape[0] for o in fed.values() if o.unknown == (0,)}
    if all(o.unknown in ((), (0,)) for o in fed.values()) and len(batches) <= 1:
        return None
    return {
        name: tuple(f"size_{d}" if i in o.unknown else d for i, d in enumerate(o.array.shape))
        for name, o in fed.items()
    }


def assert_equal(got: np.ndarray, expected: np.ndarray, case: Case, name: str) -> None:
    """Dtype and shape are TensorFlow's, elements are within the case's tolerance of its."""
    assert got.dtype == expected.dtype, f"{name} has dtype {got.dtype}, not {expected.dtype}"
    assert got.shape == expected.shape, f"{name} has shape {got.shape}, not {expected.shape}"
    dtype = DType.of(expected.dtype)
    if not dtype.is_float:
        np.testing.assert_array_equal(got, expected, name)
        return
    epsilon = float(_epsilon(dtype))
    wide_got, wide = got.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(wide_got[~finite], wide[~finite], f"{name}: not finite")
    if not finite.any():
        return
    a, b = wide_got[finite], wide[finite]
    scale = np.max(np.abs(b)) if case.tolerance.of_largest else np.abs(b)
    ulps = case.tolerance.ulps
    # below the least normal number TensorFlow flushes to zero
    allowed = ulps * epsilon * scale + (_least(dtype) if ulps else 0)
    if dtype in HALVES and ulps:  # computed in float32 and rounded once: a neighbour at most
        allowed = 1.01 * epsilon * np.abs(b) + ulps * _FLOAT_EPSILON * scale + _least(dtype)
    worst = float(np.max(np.abs(a - b) - allowed, initial=-np.inf))
    if not worst <= 0:
        place = int(np.argmax(np.abs(a - b) - allowed))
        share = np.abs(a - b) / np.maximum(np.broadcast_to(scale, b.shape) * epsilon, 1e-300)
        raise AssertionError(
            f"{name}: {a[place]!r}, and TensorFlow gives {b[place]!r}; "
            f"{np.sum(np.abs(a - b) > allowed)} of {b.size} elements differ, "
            f"by up to {np.max(share):.1f} ulps where {ulps:g} are allowed"
        )


def _epsilon(dtype: DType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy).eps)


def _least(dtype: DType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy).smallest_normal)
