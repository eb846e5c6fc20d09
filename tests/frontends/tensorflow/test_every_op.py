"""Every op, with random attributes, dtypes, shapes and unknown dimensions, against TensorFlow.

Each case is an engine of kernels alone: a step on the host fails it. More cases of each op are run
by ``tests/campaigns/tensorflow_ops.py``.
"""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from helpers.engines import quick_engine  # noqa: E402
from helpers.tensorflow_ops.names import CORE, FURTHER, NEIGHBOURS  # noqa: E402
from helpers.tensorflow_ops.run import Refused, run_case  # noqa: E402
from helpers.tensorflow_ops.table import TABLE, VARIABLES, case_of  # noqa: E402
from planish.frontends.tensorflow.context import CONVERTERS  # noqa: E402

CASES = 2
"""Cases of each op here."""

MOST_REFUSED = 12
"""So many cases in a row TensorFlow may refuse, for lack of a kernel."""


def test_no_op_is_missing():
    assert (CORE | FURTHER) - TABLE.keys() - VARIABLES == set()
    assert TABLE.keys() - CORE - FURTHER - NEIGHBOURS == set()
    assert (CORE | FURTHER) - CONVERTERS.keys() == set()


@pytest.mark.parametrize("op", sorted(TABLE))
def test_as_tensorflow(op):
    done = refused = seed = 0
    while done < CASES:
        case = case_of(op, seed)
        seed += 1
        try:
            run_case(case)
        except Refused:
            refused += 1
            if refused > MOST_REFUSED:
                raise
            continue
        except Exception as error:
            error.add_note(f"seed {seed - 1}: {case}")
            raise
        done += 1


def test_cases_repeat():
    for op in ("StridedSlice", "Einsum", "Conv2D"):
        first, second = case_of(op, 7), case_of(op, 7)
        assert str(first) == str(second)
        for a, b in zip(first.operands, second.operands, strict=True):
            np.testing.assert_array_equal(a.array, b.array)


def test_variables_of_resources(tmp_path):
    """ReadVariableOp: the variables of a SavedModel become constants."""

    class Scaled(tf.Module):
        def __init__(self):
            super().__init__()
            self.weight = tf.Variable(np.arange(12, dtype="f").reshape(3, 4))

        @tf.function(input_signature=[tf.TensorSpec([None, 3], "float32", "x")])
        def serve(self, x):
            return {"y": tf.matmul(x, self.weight) + self.weight[0]}

    module = Scaled()
    tf.saved_model.save(module, str(tmp_path), signatures=module.serve)
    x = np.random.default_rng(1).normal(size=(5, 3)).astype("f")
    engine = quick_engine(tmp_path, allow_fallback=False)
    np.testing.assert_allclose(engine({"x": x}), module.serve(x)["y"], rtol=1e-5)


def test_variables_of_references(tmp_path):
    """VariableV2: as TensorFlow 1 wrote SavedModels."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder("float32", [None, 3], "x")
        weight = v1.get_variable("weight", initializer=np.eye(3, dtype="f") * 2, use_resource=False)
        assert weight.op.type == "VariableV2"
        y = tf.matmul(x, weight, name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y})
    array = np.random.default_rng(2).normal(size=(4, 3)).astype("f")
    engine = quick_engine(tmp_path / "model", allow_fallback=False)
    np.testing.assert_allclose(engine({"x": array}), array * 2, rtol=1e-6)
