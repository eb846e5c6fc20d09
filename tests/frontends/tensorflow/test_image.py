import numpy as np
import pytest

import tensorflow as tf

raw = tf.raw_ops

FLAGS = [
    {"align_corners": False, "half_pixel_centers": False},
    {"align_corners": True, "half_pixel_centers": False},
    {"align_corners": False, "half_pixel_centers": True},
]


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("size", [(9, 14), (3, 4), (6, 8), (5, 1), (13, 5)])
def test_bilinear_and_nearest(check, rng, flags, size):
    x = rng.normal(size=(2, 6, 8, 3)).astype("f")
    check(lambda x: raw.ResizeBilinear(images=x, size=size, **flags), x)
    check(lambda x: raw.ResizeNearestNeighbor(images=x, size=size, **flags), x)


@pytest.mark.parametrize("flags", FLAGS)
def test_bytes(check, rng, flags):
    x = rng.integers(0, 255, (2, 6, 8, 3)).astype("uint8")
    check(lambda x: raw.ResizeBilinear(images=x, size=[4, 5], **flags), x)
    check(lambda x: raw.ResizeNearestNeighbor(images=x, size=[7, 5], **flags), x)


@pytest.mark.parametrize("flags", [FLAGS[0], FLAGS[2]])
@pytest.mark.parametrize("size", [(12, 16), (24, 4), (3, 32)])
def test_bicubic(check, rng, flags, size):
    """At sizes where TensorFlow's table of 1024 weights holds the weights exactly."""
    x = rng.normal(size=(2, 6, 8, 3)).astype("f")
    check(lambda x: raw.ResizeBicubic(images=x, size=size, **flags), x)


def test_bicubic_align_corners(check, rng):
    x = rng.normal(size=(2, 6, 9, 3)).astype("f")
    check(lambda x: raw.ResizeBicubic(images=x, size=[11, 17], align_corners=True), x)


def test_size_from_a_shape(check, rng):
    x = rng.normal(size=(2, 6, 8, 3)).astype("f")

    def build(x):
        return tf.compat.v1.image.resize_bilinear(x, tf.shape(x)[1:3] * 2)

    graph = check(build, x)
    assert np.shape(graph.outputs[0].shape) == (4,)
