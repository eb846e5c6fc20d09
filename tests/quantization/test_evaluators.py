"""Top-1 by engines whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.networks import N, Net, build
from planish.errors import InputError
from planish.quantization.evaluators import top1
from planish.runtime.engine import Engine

IMAGES = np.eye(5, dtype=np.float32)[np.arange(20) % 5] * 2


def classifier(batch: Any = N, outputs: int = 1) -> Engine:
    """Gives class k for images whose k-th number is the largest."""
    net = Net()
    x = net.input(batch, 5)
    return build(net.output(*[net.relu(x) for _ in range(outputs)]))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return classifier()


def test_share_of_right_answers(engine: Engine) -> None:
    labels = np.arange(20) % 5
    assert top1(IMAGES, labels)(engine) == 100.0
    labels[:3] = [4, 3, 0]
    assert top1(IMAGES, labels)(engine) == 85.0
    assert top1(IMAGES, labels.tolist())(engine) == 85.0


def test_which_images_are_right(engine: Engine) -> None:
    labels = np.arange(20) % 5
    labels[:3] = [4, 1, 0]
    right = top1([IMAGES[:13], IMAGES[13:]], labels)(engine).samples
    np.testing.assert_array_equal(right, [0, 100, 0] + [100] * 17)


def test_a_background_class(engine: Engine) -> None:
    assert top1(IMAGES[1:2], [0], classes_before=1)(engine) == 100.0


def test_batches_and_a_fixed_batch(engine: Engine) -> None:
    labels = np.arange(20) % 5
    assert top1([IMAGES[:13], IMAGES[13:]], labels)(engine) == 100.0
    assert top1(IMAGES, labels)(classifier(4)) == 100.0


def test_again_for_every_engine(engine: Engine) -> None:
    metric = top1(IMAGES, np.zeros(20, int))
    assert metric(engine) == metric(engine) == 20.0


def test_several_outputs() -> None:
    net = Net()
    x = net.input(N, 5)
    engine = build(net.output(net.relu(x), net.graph.add(_negative(), x)))
    labels = np.arange(20) % 5
    assert top1(IMAGES, labels, output="out0")(engine) == 100.0
    assert top1(IMAGES, labels, output="out1")(engine) < 100.0
    with pytest.raises(InputError, match="has 2 outputs"):
        top1(IMAGES, labels)(engine)
    with pytest.raises(InputError, match="no output 'scores'"):
        top1(IMAGES, labels, output="scores")(engine)


def _negative() -> Any:
    from planish.ops import ew

    return ew.Neg()


@pytest.mark.parametrize("labels", [np.eye(5), [0.5, 1.0], [], "01"])
def test_no_labels(labels: Any) -> None:
    with pytest.raises(InputError, match="labels= must be whole numbers"):
        top1(IMAGES, labels)


def test_images_that_can_be_read_once() -> None:
    with pytest.raises(InputError, match="only once"):
        top1(iter([IMAGES]), [0] * 20)


@pytest.mark.parametrize("count", [19, 21])
def test_as_many_labels_as_images(engine: Engine, count: int) -> None:
    with pytest.raises(InputError, match=f"There are {count} labels"):
        top1(IMAGES, np.zeros(count, int))(engine)


def test_no_scores() -> None:
    net = Net()
    engine = build(net.output(net.dense(net.input(N, 5), 1)))
    with pytest.raises(InputError, match="holds no scores"):
        top1(IMAGES, np.zeros(20, int))(engine)
