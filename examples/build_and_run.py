"""Builds an engine from a Keras model, runs it, saves the plan and loads it again.

python examples/build_and_run.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np

import planish


def small_model() -> keras.Model:
    """A convolutional net with random weights."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((32, 32, 3), name="image"),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),
            layers.Conv2D(32, 1, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax", name="classes"),
        ]
    )


def main() -> None:
    keras.utils.set_random_seed(0)
    model = small_model()
    images = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)

    engine = planish.build(model, tuning_seconds=2)
    print(engine.summary())
    classes = engine(images)

    expected = np.asarray(model(images))
    print(f"largest difference from Keras: {np.abs(classes - expected).max():.1e}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.plan"
        engine.save(path)
        again = planish.load(path)
        print(
            f"saved {path.stat().st_size / 1e3:.0f} kB; the same after loading:",
            np.array_equal(again(images), classes),
        )


if __name__ == "__main__":
    main()
