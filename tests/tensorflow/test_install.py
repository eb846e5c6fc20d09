"""Planish behind TensorFlow's own names."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow")

import planish.tensorflow  # noqa: E402
from planish.tensorflow import trt_convert as ours  # noqa: E402


def test_old_names_lead_to_planish_and_back(layers, save):
    theirs = pytest.importorskip("tensorflow.python.compiler.tensorrt.trt_convert")
    before = theirs.TrtGraphConverterV2, theirs.TrtConversionParams
    planish.tensorflow.install()
    planish.tensorflow.install()
    try:
        from tensorflow.python.compiler.tensorrt import trt_convert as trt

        assert trt.TrtGraphConverterV2 is ours.TrtGraphConverterV2
        assert trt.DEFAULT_TRT_CONVERSION_PARAMS is ours.DEFAULT_TRT_CONVERSION_PARAMS
        assert tf.experimental.tensorrt.Converter is ours.TrtGraphConverterV2
        folder, _ = save(
            lambda image: {"y": tf.nn.relu(layers.conv(image, 8))},
            tf.TensorSpec([None, 64, 64, 3], name="image"),
        )
        params = tf.experimental.tensorrt.ConversionParams(precision_mode="FP16")
        converter = tf.experimental.tensorrt.Converter(folder, conversion_params=params)
        converter.convert()
        assert len(converter.converted.engines) == 1
    finally:
        planish.tensorflow.uninstall()
    assert (theirs.TrtGraphConverterV2, theirs.TrtConversionParams) == before


def test_names_of_the_package():
    assert planish.tensorflow.Converter is ours.TrtGraphConverterV2
    assert set(planish.tensorflow.__all__) >= {"Converter", "install", "convert_saved_model"}
