"""One engine for every batch size in a range: an optimization profile.

python examples/dynamic_batch.py
"""

from __future__ import annotations

import keras
import numpy as np

import planish


def main() -> None:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,), name="features"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(8, name="scores"),
        ]
    )
    # Least, usual and greatest shape: tactics are measured at all three, since a matrix-vector
    # product at batch 1 wants another kernel than a matrix product at batch 32.
    batches = planish.Profile(min=(1, 64), opt=(8, 64), max=(32, 64))
    engine = planish.build(model, inputs={"features": batches}, tuning_seconds=2)
    print(engine.inputs[0], dict(engine.inputs[0].profile))

    for batch in (1, 5, 8, 32):
        x = np.ones((batch, 64), np.float32)
        difference = np.abs(engine(x) - np.asarray(model(x))).max()
        print(f"batch {batch:2}: difference from Keras {difference:.1e}")

    try:
        engine(np.ones((33, 64), np.float32))
    except planish.ShapeError as error:
        print(f"batch 33 is outside the profile:\n{error}")


if __name__ == "__main__":
    main()
