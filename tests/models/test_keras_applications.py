"""Networks of `keras.applications`: converted whole, fused, equal to TensorFlow."""

from __future__ import annotations

import pytest

from helpers.applications import application, fused_layers, random_images
from helpers.engines import quick_engine
from helpers.frameworks import assert_agrees, keras_model
from planish.frontends import import_model

SMALL = {
    "ResNet50": 64,
    "ResNet152": 32,
    "VGG19": 32,
    "InceptionV3": 96,
    "NASNetMobile": 64,
    "MobileNetV2": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "MobileNetV3Small": 64,
    "ConvNeXtTiny": 32,
}
"""Sizes of images at which every layer still has something to do."""

FULL = dict.fromkeys(list(SMALL)[:8], 224) | {"InceptionV3": 299}
del FULL["ResNet152"]  # ResNet50's layers, more often

MOST_LAYERS = {"VGG19": 27, "InceptionV3": 113, "ResNet152": 159}
"""Fused layers, the softmax included. VGG19 and ResNet152 have as many at any size."""

DEEP = {"NASNetMobile", "ResNet152"}
"""Networks of which Keras needs more than ten seconds to make even the smallest."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in SMALL]
)
def test_small_images(name: str) -> None:
    """Logits, not probabilities: those of random weights would all be nearly the same."""
    model = application(name, SMALL[name])
    engine = quick_engine(model)
    assert engine.host_steps() == []
    if name != "InceptionV3":  # small images leave it other work
        assert len(engine.layers()) + 1 <= MOST_LAYERS.get(name, 1000)
    reference = keras_model(model)
    (info,) = engine.inputs
    for batch in (1, 3):
        assert_agrees(engine, reference, {info.name: random_images(batch, SMALL[name])})


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_size(name: str) -> None:
    model = application(name, FULL[name], "softmax")
    engine = quick_engine(model)
    assert engine.host_steps() == []
    assert len(engine.layers()) <= MOST_LAYERS.get(name, 1000)
    (info,) = engine.inputs
    assert_agrees(engine, keras_model(model), {info.name: random_images(2, FULL[name])})


def test_number_of_layers_of_inception() -> None:
    graph = import_model(application("InceptionV3", FULL["InceptionV3"], "softmax"))
    assert len(fused_layers(graph)) <= MOST_LAYERS["InceptionV3"]
