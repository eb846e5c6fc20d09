"""The one way these tests compare the frontend with TensorFlow."""

from __future__ import annotations

import numpy as np
import pytest

from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret
from planish.graph.types import DType

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")


def build_graph(build, arrays, dynamic):
    """A TensorFlow graph of ``build(*placeholders)``: its GraphDef, ends and results."""
    graph = tf.Graph()
    with graph.as_default():
        names = [f"x{i}" for i in range(len(arrays))]
        placeholders = [
            tf.compat.v1.placeholder(a.dtype, dynamic(a.shape), name)
            for name, a in zip(names, arrays, strict=True)
        ]
        outputs = tf.nest.flatten(build(*placeholders))
        feeds = dict(zip(placeholders, arrays, strict=True))
        with tf.compat.v1.Session(graph=graph) as session:
            expected = session.run(outputs, feeds)
    return graph.as_graph_def(), names, [t.name for t in outputs], expected


def static(shape):
    return list(shape)


def batch(shape):
    return [None, *shape[1:]] if shape else []


def everything(shape):
    return [None] * len(shape)


@pytest.fixture
def check():
    """Compares the imported graph, run by the references, with TensorFlow.

    ``check(build, *arrays, shapes=(static, batch))`` where `build` makes ops of placeholders.
    Values must agree to `tolerance` of the largest (or exactly where they are not floats).
    """

    def compare(build, *arrays, shapes=("static", "batch"), tolerance=2e-6):
        kinds = {"static": static, "batch": batch, "everything": everything}
        imported = []
        for shape in shapes:
            graph_def, names, outputs, expected = build_graph(build, arrays, kinds[shape])
            graph = import_graph_def(graph_def, names, outputs)
            results = interpret(graph, dict(zip(names, arrays, strict=True)))
            for name, result, wanted in zip(outputs, results, expected, strict=True):
                assert result.dtype == wanted.dtype, name
                assert result.shape == wanted.shape, name
                if not DType.of(result.dtype).is_float:
                    np.testing.assert_array_equal(result, wanted, name)
                    continue
                a, b = result.astype(np.float64), wanted.astype(np.float64)
                scale = np.max(np.abs(b[np.isfinite(b)]), initial=1e-30)
                np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)
            imported.append(graph)
        return imported[-1]

    return compare


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)
