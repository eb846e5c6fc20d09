"""Puts Planish engines into a SavedModel, as TF-TRT did, and runs it in TensorFlow.

Code written for TF-TRT needs only its import changed:
``from tensorflow.python.compiler.tensorrt import trt_convert`` becomes
``from planish.tensorflow import trt_convert``.

    python examples/tensorflow_savedmodel.py
"""

from __future__ import annotations

import tempfile

import keras
import numpy as np

import tensorflow as tf
from planish.tensorflow import trt_convert


def main() -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, name="scores"),
        ]
    )
    images = np.random.default_rng(0).random((8, 32, 32, 3), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/native", verbose=False)

        converter = trt_convert.TrtGraphConverterV2(
            input_saved_model_dir=f"{folder}/native", precision_mode="FP32"
        )
        converter.convert()
        converter.build(input_fn=lambda: iter([(tf.constant(images),)]))
        converter.summary()
        converter.save(f"{folder}/converted")

        loaded = tf.saved_model.load(f"{folder}/converted")
        function = loaded.signatures["serving_default"]
        (name,) = function.structured_input_signature[1]
        (scores,) = function(**{name: tf.constant(images)}).values()
    difference = np.abs(scores.numpy() - np.asarray(model(images))).max()
    print(f"largest difference from native TensorFlow: {difference:.1e}")


if __name__ == "__main__":
    main()
