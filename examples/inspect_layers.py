"""Looks inside an engine: which ops were fused, which tactic runs them, how long they take.

python examples/inspect_layers.py
"""

from __future__ import annotations

import keras
import numpy as np

import planish


def main() -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="stem")(image)
    y = layers.Conv2D(16, 3, padding="same", name="branch")(x)
    x = layers.ReLU(name="join")(layers.Add(name="residual")([x, y]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, layers.Dense(10, name="scores")(x))

    engine = planish.build(model, tuning_seconds=2)
    for layer in engine.layers():
        print(f"{layer['name']}\n    fuses  {layer['origin']}\n    tactic {layer['tactic']}")

    times: dict[str, list[float]] = {}
    images = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    with engine.create_execution_context() as context:
        context.execute({"image": images})
        context.profiler = lambda name, milliseconds: times.setdefault(name, []).append(
            milliseconds
        )
        for _ in range(50):
            context.execute({"image": images})
    for name, measured in times.items():
        print(f"{np.median(measured) * 1e3:8.1f} µs  {name}")


if __name__ == "__main__":
    main()
