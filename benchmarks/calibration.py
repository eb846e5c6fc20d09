"""What calibrating for INT8 takes: seconds and memory, of the whole build of a model of Keras.

    python benchmarks/calibration.py ResNet50 --images 500 --batch 1

Images are noise; nothing is tuned. Memory is that of the process above what it held after the same
model was built in FP32 and let go.
"""

from __future__ import annotations

import argparse
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import planish

PAGE = 4096


def resident() -> float:
    """Megabytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


class Watch:
    """The most memory that was held while it was open, looked at every 20 ms."""

    def __enter__(self) -> Watch:
        self.most, self._ended = resident(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, resident())

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one of keras.applications, with random weights")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=1, help="must divide the number of images")
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    import keras

    model = getattr(keras.applications, options.model)(weights=None)
    shape = (options.batch, options.side, options.side, 3)
    (name,) = model.input_names if hasattr(model, "input_names") else [model.inputs[0].name]

    def images() -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(options.images // options.batch):
            yield {name: rng.random(shape, dtype=np.float32)}

    common = {"inputs": {name: shape}, "progress": False, "tuning_seconds": 0}
    planish.build(model, **common).close()
    before, start = resident(), time.perf_counter()
    with Watch() as watch:
        planish.build(model, precision="int8", calibration=images(), **common)
    seconds = time.perf_counter() - start
    print(
        f"{platform.processor() or platform.machine()}: {options.model}, {options.images} images "
        f"in batches of {options.batch}: {seconds:.1f} s, {watch.most - before:.0f} MB above"
    )


if __name__ == "__main__":
    main()
