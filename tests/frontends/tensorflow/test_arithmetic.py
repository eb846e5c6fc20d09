import numpy as np
import pytest

import tensorflow as tf

raw = tf.raw_ops

FLOAT = [
    "Abs",
    "Asin",
    "Atan",
    "Ceil",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Erfc",
    "Exp",
    "Expm1",
    "Floor",
    "Inv",
    "Neg",
    "Reciprocal",
    "Relu",
    "Relu6",
    "Rint",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Square",
    "Tan",
    "Tanh",
    "Acos",
    "Asinh",
    "Atanh",
]
POSITIVE = ["Log", "Log1p", "Rsqrt", "Sqrt", "Acosh"]
BINARY = [
    "Add",
    "AddV2",
    "Sub",
    "Mul",
    "Div",
    "RealDiv",
    "FloorDiv",
    "Maximum",
    "Minimum",
    "SquaredDifference",
    "DivNoNan",
    "MulNoNan",
    "Mod",
    "FloorMod",
    "Atan2",
    "Xdivy",
    "Less",
    "LessEqual",
    "Greater",
    "GreaterEqual",
    "Equal",
    "NotEqual",
]
INTEGER = [
    "Add",
    "AddV2",
    "Sub",
    "Mul",
    "Div",
    "FloorDiv",
    "FloorMod",
    "Mod",
    "TruncateDiv",
    "TruncateMod",
    "Maximum",
    "Minimum",
    "SquaredDifference",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Less",
    "Equal",
]


def call(op, *inputs, **attributes):
    """A raw op by name with positional inputs."""
    names = list(getattr(raw, op).__signature__.parameters)
    return getattr(raw, op)(**dict(zip(names, inputs, strict=False)), **attributes)


@pytest.mark.parametrize("op", FLOAT)
def test_unary(check, rng, op):
    check(lambda x: call(op, x), rng.uniform(-0.99, 0.99, (3, 4)).astype("f"))


@pytest.mark.parametrize("op", ["Floor", "Ceil", "Round", "Rint", "Sign", "Relu6", "Abs"])
def test_unary_on_whole_and_half_numbers(check, op):
    check(lambda x: call(op, x), np.arange(-8, 16, dtype="f").reshape(4, 6) / 2)


@pytest.mark.parametrize("op", POSITIVE)
def test_unary_of_positive(check, rng, op):
    check(lambda x: call(op, x), rng.uniform(1.01, 5, (3, 4)).astype("f"))


@pytest.mark.parametrize("op", BINARY)
def test_binary_broadcasts(check, rng, op):
    a = rng.uniform(0.1, 4, (3, 4, 5)).astype("f") * rng.choice([-1, 1], (3, 4, 5)).astype("f")
    b = rng.uniform(0.5, 4, (4, 1)).astype("f") * np.float32([[1], [-1], [1], [-1]])
    check(lambda x: call(op, x, tf.constant(b)), a)


@pytest.mark.parametrize("op", INTEGER)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers(check, rng, op, dtype):
    a = rng.integers(-20, 20, (3, 5)).astype(dtype)
    b = np.array([-7, -2, 1, 3, 5], dtype)
    check(lambda x: call(op, x, tf.constant(b)), a)


def test_pow_and_xlogy(check, rng):
    x = rng.uniform(0.1, 3, (3, 4)).astype("f")
    check(lambda x: (raw.Pow(x=x, y=tf.constant(2.5)), raw.Xlogy(x=x, y=x)), x)
    check(lambda x: (raw.Xlog1py(x=x, y=x), raw.Xlogy(x=x * 0, y=x * 0)), x)


def test_division_by_zero_without_nan(check):
    x = np.array([[1, 0, -2]], "f")
    check(lambda x: (raw.DivNoNan(x=x, y=x * 0), raw.Xdivy(x=x * 0, y=x * 0)), x)
    check(lambda x: raw.MulNoNan(x=x / 0, y=x * 0), x)


def test_logic(check, rng):
    a, b = rng.integers(0, 2, (2, 3, 4)).astype(bool)
    check(lambda a, b: (raw.LogicalAnd(x=a, y=b), raw.LogicalOr(x=a, y=b)), a, b)
    check(lambda a, b: (raw.LogicalNot(x=a), raw.Equal(x=a, y=b), raw.NotEqual(x=a, y=b)), a, b)


def test_tests_of_numbers(check):
    x = np.array([[1, np.inf, -np.inf, np.nan]], "f")
    check(lambda x: (raw.IsNan(x=x), raw.IsInf(x=x), raw.IsFinite(x=x)), x)


def test_add_n_and_bias(check, rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("f")
    check(lambda x: (tf.add_n([x, x * x, x]), tf.nn.bias_add(x, np.arange(5.0))), x)
    check(lambda x: raw.BiasAdd(value=x, bias=tf.range(3.0), data_format="NCHW") * 1, x)
    check(lambda x: raw.AddN(inputs=[x]), x)


def test_leaky_relu_and_clip(check, rng):
    x = rng.normal(size=(4, 5)).astype("f")
    check(lambda x: (tf.nn.leaky_relu(x, 0.3), tf.clip_by_value(x, -0.5, 0.25)), x)
    limits = np.broadcast_to(np.linspace(-1, 0, 5, dtype="f"), (4, 5))
    check(
        lambda x: raw.ClipByValue(t=x, clip_value_min=limits, clip_value_max=limits + 1),
        x,
        shapes=["static"],
    )
    ints = rng.integers(-9, 9, (3, 4)).astype("int32")
    check(lambda x: raw.ClipByValue(t=x, clip_value_min=-3, clip_value_max=4), ints)


@pytest.mark.parametrize(
    "to", ["int32", "int64", "uint8", "float16", "bfloat16", "bool", "float64"]
)
def test_cast(check, to):
    check(lambda x: tf.cast(x, to), np.array([[0, 0.5, 1.75, 2.5, 100.9]], "f"))


def test_select(check, rng):
    condition = rng.integers(0, 2, (3,)).astype(bool)
    a, b = rng.normal(size=(2, 3, 4)).astype("f")
    check(lambda c, a, b: raw.Select(condition=c, x=a, y=b), condition, a, b)
    check(lambda a, b: raw.Select(condition=a > b, x=a, y=b), a, b)
    check(lambda a, b: raw.SelectV2(condition=a[:, :1] > 0, t=a, e=tf.constant(1.0)), a, b)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_floats(check, rng, dtype):
    x = rng.normal(size=(3, 4)).astype("f").astype(tf.as_dtype(dtype).as_numpy_dtype)
    check(lambda x: tf.nn.relu(x * x - x), x, tolerance=1e-2 if "16" in dtype else 1e-12)


def test_l2_loss(check, rng):
    check(lambda x: tf.nn.l2_loss(x), rng.normal(size=(3, 4)).astype("f"), shapes=["static"])
