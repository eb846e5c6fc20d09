import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def
from planish.frontends.tensorflow.resampling import FILTERS

raw = tf.raw_ops
SIZES = [(5, 9), (13, 4), (20, 7), (3, 1)]


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "lanczos3", "gaussian"])
@pytest.mark.parametrize("size", SIZES)
def test_resize_antialias(check, rng, method, size):
    x = rng.normal(size=(2, 13, 7, 3)).astype("f")
    check(lambda x: tf.image.resize(x, size, method=method, antialias=True), x)


@pytest.mark.parametrize("kernel", list(FILTERS))
@pytest.mark.parametrize("antialias", [False, True])
def test_scale_and_translate(check, rng, kernel, antialias):
    x = rng.normal(size=(2, 9, 7, 3)).astype("f")

    def build(x):
        return raw.ScaleAndTranslate(
            images=x,
            size=[6, 11],
            scale=np.float32([0.7, 1.3]),
            translation=np.float32([0.4, -1.2]),
            kernel_type=kernel,
            antialias=antialias,
        )

    check(build, x, tolerance=5e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_area(check, rng, align_corners, size):
    for dtype in ("float32", "uint8"):
        x = rng.integers(0, 255, (2, 13, 7, 3)).astype(dtype)
        check(lambda x: raw.ResizeArea(images=x, size=size, align_corners=align_corners), x)


def test_unknown_size_is_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, None, 7, 3], "x")
        raw.ResizeArea(images=x, size=[4, 4], name="area")
    with pytest.raises(UnsupportedOpError, match="not fixed"):
        import_graph_def(graph.as_graph_def(), ["x"], ["area"])
