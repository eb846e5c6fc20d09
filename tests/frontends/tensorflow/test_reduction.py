import numpy as np
import pytest

import tensorflow as tf

raw = tf.raw_ops
EVERY = ("static", "batch", "everything")


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min", "Prod", "EuclideanNorm"])
@pytest.mark.parametrize("keep_dims", [False, True])
def test_reductions(check, rng, op, keep_dims):
    x = rng.normal(size=(2, 3, 4)).astype("f")
    reduce = getattr(raw, op)

    def build(x):
        return [reduce(input=x, axis=a, keep_dims=keep_dims) for a in (1, [-1, 0], [0, 1, 2])]

    check(build, x, shapes=EVERY)
    check(lambda x: reduce(input=x, axis=[-1], keep_dims=keep_dims), x, shapes=EVERY)


def test_no_axes(check, rng):
    x = rng.normal(size=(2, 3)).astype("f")
    check(lambda x: (tf.reduce_sum(x, []), tf.reduce_max(x, [])), x)
    check(lambda x: raw.EuclideanNorm(input=x, axis=tf.constant([], "int32")), x)


def test_integer_reductions(check, rng):
    x = rng.integers(-20, 20, (3, 5)).astype("int32")
    check(lambda x: (tf.reduce_sum(x, 1), tf.reduce_prod(x, 1), tf.reduce_mean(x, 1)), x)


def test_any_all(check, rng):
    x = rng.integers(0, 2, (3, 4)).astype(bool)
    check(lambda x: (tf.reduce_any(x, 1), tf.reduce_all(x, 0), tf.reduce_all(x)), x)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_arg_max(check, rng, dtype):
    x = rng.integers(0, 4, (3, 5)).astype("f")
    check(lambda x: (tf.argmax(x, 1, dtype), tf.argmin(x, -1, dtype), tf.argmax(x, 0, dtype)), x)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumsum(check, rng, exclusive, reverse):
    x = rng.normal(size=(3, 4, 5)).astype("f")
    check(lambda x: tf.cumsum(x, -2, exclusive, reverse), x, shapes=EVERY)


def test_top_k(check, rng):
    x = rng.integers(0, 9, (3, 8)).astype("f")
    check(lambda x: tf.math.top_k(x, 5), x)
    check(lambda x: raw.TopKV2(input=x, k=2, index_type=tf.int64), x)


def test_k_from_a_shape(check, rng):
    x = rng.normal(size=(3, 8)).astype(np.float32)
    check(lambda x: tf.math.top_k(x, tf.minimum(4, tf.shape(x)[1])), x)
