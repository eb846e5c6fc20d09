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


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("size", [(12, 16), (24, 4), (11, 17), (3, 5), (7, 1)])
def test_bicubic(check, rng, flags, size):
    x = rng.normal(size=(2, 6, 9, 3)).astype("f")
    check(lambda x: raw.ResizeBicubic(images=x, size=size, **flags), x)


@pytest.mark.parametrize("op", ["ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"])
def test_random_sizes(check, op):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1, *rng.integers(1, 20, 2), 2)).astype("f")
        size = [int(n) for n in rng.integers(1, 30, 2)]
        flags = FLAGS[seed % 3]
        kinds = ("everything",) if seed % 2 else ("static",)
        check(
            lambda x, op=op, size=size, flags=flags: getattr(raw, op)(images=x, size=size, **flags),
            x,
            shapes=kinds,
        )


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(4, 3), (1, 5), (1, 1)])
def test_crop_and_resize(check, rng, method, size):
    # as many images as boxes: the first unknown dimensions of inputs are one
    x = rng.normal(size=(6, 7, 9, 4)).astype("f")
    boxes = rng.uniform(-0.3, 1.3, (6, 4)).astype("f")  # some upside down, some partly outside
    images = rng.integers(0, 6, 6).astype("i")

    def build(x, boxes, images):
        return raw.CropAndResize(
            image=x,
            boxes=boxes,
            box_ind=images,
            crop_size=size,
            method=method,
            extrapolation_value=-2.5,
        )

    check(build, x, boxes, images)


def test_crop_and_resize_bytes(check, rng):
    x = rng.integers(0, 255, (2, 6, 8, 3)).astype("uint8")
    boxes = rng.uniform(0, 1, (4, 4)).astype("f")
    images = rng.integers(0, 2, 4).astype("i")
    check(
        lambda x, b, i: tf.image.crop_and_resize(x, b, i, (3, 4)),
        x,
        boxes,
        images,
        shapes=["static"],
    )


def test_size_from_a_shape(check, rng):
    x = rng.normal(size=(2, 6, 8, 3)).astype("f")

    def build(x):
        return tf.compat.v1.image.resize_bilinear(x, tf.shape(x)[1:3] * 2)

    graph = check(build, x)
    assert np.shape(graph.outputs[0].shape) == (4,)
