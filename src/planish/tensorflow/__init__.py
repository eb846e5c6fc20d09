"""Planish in TensorFlow: TF-TRT's converters, and the ops that run their engines.

>>> from planish.tensorflow import trt_convert as trt
>>> converter = trt.TrtGraphConverterV2(input_saved_model_dir="resnet50")
>>> converter.convert()
>>> converter.save("resnet50_planish")

A converted model is loaded like any other, once this package is imported:

>>> import tensorflow as tf, planish.tensorflow
>>> infer = tf.saved_model.load("resnet50_planish").signatures["serving_default"]
"""

from __future__ import annotations

from planish.frontends.tensorflow.model import tensorflow

tensorflow()  # quietly, or with our own error where it is not installed

from planish.tensorflow import engine_op, engines  # noqa: E402

engine_op.connect(engines.registry.resolve, engines.registry.weight)

from planish.tensorflow import trt_convert  # noqa: E402
from planish.tensorflow.cli import convert_saved_model  # noqa: E402
from planish.tensorflow.converter import TrtGraphConverterV2 as Converter  # noqa: E402
from planish.tensorflow.install import install, uninstall  # noqa: E402
from planish.tensorflow.parameters import TrtConversionParams as ConversionParams  # noqa: E402
from planish.tensorflow.tensorboard import write_graphs  # noqa: E402

__all__ = [
    "ConversionParams",
    "Converter",
    "convert_saved_model",
    "install",
    "trt_convert",
    "uninstall",
    "write_graphs",
]
