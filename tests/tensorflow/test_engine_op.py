"""The TensorFlow ops: in a tf.function, from a SavedModel in a fresh process, and their errors."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from planish.graph.types import DType  # noqa: E402
from planish.runtime.native_engine import DTYPE_CODES  # noqa: E402
from planish.tensorflow import engine_op  # noqa: E402
from planish.tensorflow.engines import registry  # noqa: E402

# Adds the float in the plan to float32 of any shape. A fake of what a real plan's resolver does,
# shared with the fresh process.
RESOLVER = textwrap.dedent(
    """
    import ctypes
    import numpy as np
    from planish.errors import InputError
    from planish.native import FIRST_INPUT, HOST, HostKernel, Program, Step
    from planish.runtime.native_engine import Bound, NativeEngine

    engines, resolved, bound = {}, [], []

    def floats(pointer, count):
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (count,))

    def resolve(name, plan, settings):
        resolved.append((name, plan, settings))
        if name == "missing":
            raise InputError("There is no such engine.")
        text = plan if plan[:1].isdigit() else open(plan, "rb").read()
        amount = float(text)

        def bind(inputs):
            bound.append(inputs[0].shape)
            if inputs[0].shape[-1:] == (13,):
                raise InputError("13 is out of the profile.")
            count = int(inputs[0].elements)

            def add(pointers, params, begin, end):
                if count:
                    floats(pointers[1], count)[:] = floats(pointers[0], count) + amount

            kernel = HostKernel(add)
            step = Step(kernel.address, 1, 1, [(FIRST_INPUT, 0), (FIRST_INPUT + 1, 0)], (), HOST)
            return Bound(Program([step], input_count=1, output_count=1, keep=kernel), inputs)

        engine = NativeEngine(
            bind, can_bind=lambda inputs: inputs[0].shape[-1] < 10, capacity=settings.get("max", 4)
        )
        engines[name] = engine
        return engine

    def weight(name, plan, expected):
        if name == "missing":
            raise InputError("There is no such weight.")
        return np.arange(6, dtype=np.float32).reshape(2, 3)
    """
)


@pytest.fixture(scope="module")
def fake():
    namespace: dict = {}
    exec(RESOLVER, namespace)
    engine_op.connect(namespace["resolve"], namespace["weight"])
    yield namespace
    engine_op.connect(registry.resolve, registry.weight)


def add_op(x, plan="2.5", engine="e", **attributes):
    return engine_op.ops().planish_engine(
        plan=plan, inputs=[x], OutT=[tf.float32], engine=engine, **attributes
    )[0]


def test_in_a_function_with_changing_shapes(fake):
    fake["resolved"].clear()
    fake["bound"].clear()

    @tf.function(input_signature=[tf.TensorSpec([None, None])])
    def f(x):
        return add_op(x * 2.0, engine="key/α", settings='{"max": 2}')

    for shape in [(2, 3), (2, 4), (2, 3), (0, 5), (2, 3)]:
        x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        np.testing.assert_array_equal(f(x).numpy(), 2 * x + np.float32(2.5))
    assert fake["resolved"] == [("key/α", b"2.5", {"max": 2})]
    assert fake["bound"] == [(2, 3), (2, 4), (0, 5)]


def test_eager_and_many_threads(fake):
    wrong = []

    def caller(i):
        x = np.full((4, i + 1), i, np.float32)
        for _ in range(40):
            if not (add_op(x).numpy() == i + 2.5).all():
                wrong.append(i)

    threads = [threading.Thread(target=caller, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_ready_chooses_between_engine_and_native_segment(fake):
    @tf.function(input_signature=[tf.TensorSpec([None])])
    def f(x):
        ready = engine_op.ops().planish_ready(plan="1", inputs=[x], engine="r")
        assert ready.shape == ()
        return tf.cond(ready, lambda: add_op(x, "1", "r"), lambda: x - 1.0)

    np.testing.assert_array_equal(f(np.zeros(9, np.float32)).numpy(), np.ones(9))
    np.testing.assert_array_equal(f(np.zeros(10, np.float32)).numpy(), -np.ones(10))


def test_weight(fake):
    @tf.function
    def f(x):
        value = engine_op.ops().planish_weight(
            plan="plan", weight="w", dtype=tf.float32, shape=[2, 3]
        )
        return tf.linalg.matmul(x, value)

    x = np.eye(2, dtype=np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(f(x).numpy(), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(
    ("weight", "shape", "kind", "reason"),
    [
        ("missing", [2, 3], tf.errors.InvalidArgumentError, "Weight missing: There is no such"),
        ("w", [3, 2], tf.errors.InternalError, r"holds f32\[2, 3\], the graph expects f32\[3, 2\]"),
        ("w", [-1], tf.errors.InvalidArgumentError, "impossible shape"),
    ],
)
def test_weight_errors(fake, weight, shape, kind, reason):
    with pytest.raises(kind, match=reason):
        engine_op.ops().planish_weight(plan="p", weight=weight, dtype=tf.float32, shape=shape)


def test_errors_carry_our_words(fake):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Engine e: 13 is out of the profile"):
        add_op(tf.zeros([13]))
    with pytest.raises(
        tf.errors.FailedPreconditionError, match=r"missing.*There is no such engine"
    ):
        add_op(tf.zeros([2]), engine="missing")
    with pytest.raises(tf.errors.FailedPreconditionError, match=r"absent\.plan"):
        add_op(tf.zeros([2]), plan="absent.plan", engine="other")
    with pytest.raises(tf.errors.InvalidArgumentError, match="scalar string"):
        add_op(tf.zeros([2]), plan=["2.5"], engine="vector")
    with pytest.raises(tf.errors.InternalError, match="OutT"):
        engine_op.ops().planish_engine(
            plan="2.5", inputs=[tf.zeros([2])], OutT=[tf.float64], engine="outputs"
        )


def test_dtype_numbers_are_tensorflows():
    for dtype, code in DTYPE_CODES.items():
        name = "bool" if dtype is DType.BOOL else dtype.numpy.name
        assert tf.as_dtype(name).as_datatype_enum == code


FRESH = """
import sys
import numpy as np
import tensorflow as tf

folder, known = sys.argv[1:]
if known == "unknown":
    import os, planish
    framework = os.path.join(tf.sysconfig.get_lib(), "libtensorflow_framework.so.2")
    ctypes.CDLL(framework, mode=ctypes.RTLD_GLOBAL)  # TensorFlow 2.16 loads it for itself only
    tf.load_op_library(os.path.join(os.path.dirname(planish.__file__), "_tf_engine.so"))
else:
    from planish.tensorflow import engine_op
    engine_op.connect(resolve, weight)
f = tf.saved_model.load(folder).signatures["serving_default"]
try:
    for n in (3, 4, 3):
        y = f(tf.ones([2, n]))["y"].numpy()
        assert y.shape == (2, n) and (y == 8.5).all(), y
    assert len(resolved) == 1 and resolved[0][1].startswith(folder.encode()), resolved
    print("good")
except tf.errors.FailedPreconditionError as error:
    print(error.message)
"""


def test_saved_model_in_a_fresh_process(fake, tmp_path):
    (tmp_path / "engine.plan").write_text("7.5")

    class Model(tf.Module):
        def __init__(self):
            self.plan = tf.saved_model.Asset(str(tmp_path / "engine.plan"))

        @tf.function(input_signature=[tf.TensorSpec([None, None], name="x")])
        def serve(self, x):
            return {"y": add_op(x, self.plan.asset_path, "saved")}

    model = Model()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures=model.serve)
    (tmp_path / "engine.plan").unlink()
    (tmp_path / "model").rename(tmp_path / "moved")

    def fresh(known):
        done = subprocess.run(
            [sys.executable, "-c", RESOLVER + FRESH, str(tmp_path / "moved"), known],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout

    assert "good" in fresh("known")
    assert "import planish.tensorflow before running it" in fresh("unknown")
