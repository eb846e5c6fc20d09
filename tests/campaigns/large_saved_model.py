"""Converts a SavedModel of more than 2 GB, which no GraphDef could hold, and compares the results.

    python tests/campaigns/large_saved_model.py --folder /somewhere/with/8/GB

Needs some 12 GB of memory. The exit status is 1 if results differ.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("PLANISH_TUNING_SECONDS", "0")

ROWS, DEPTH = 37_500_000, 8
"""Of each of two embeddings of float32: 1.2 GB."""


def main() -> int:
    """Makes, converts, saves, loads and runs the model; 1 if results differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default=None, help="where to write; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ.setdefault("PLANISH_CACHE", str(Path(folder) / "cache"))
        return _run(Path(folder))


def _run(folder: Path) -> int:
    import numpy as np

    import tensorflow as tf
    from planish.frontends import import_model
    from planish.tensorflow import trt_convert as trt

    started = time.perf_counter()

    def tell(what: str) -> None:
        nonlocal started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what}: {time.perf_counter() - started:.1f} s, peak {peak:.1f} GB", flush=True)
        started = time.perf_counter()

    class Model(tf.Module):
        def __init__(self) -> None:
            self.first = tf.Variable(tf.zeros([ROWS, DEPTH]))
            self.second = tf.Variable(tf.ones([ROWS, DEPTH]))
            self.weight = tf.Variable(tf.random.normal([DEPTH, 64]))
            self.first.scatter_update(tf.IndexedSlices(tf.random.normal([2, DEPTH]), [7, ROWS - 1]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="ids")])
        def serve(self, ids):
            found = tf.gather(self.first, ids) + tf.gather(self.second, ids)
            return {"y": tf.nn.relu(tf.matmul(found, self.weight))}

    model = Model()
    function = model.serve.get_concrete_function()
    tell("made")
    import_model(function)
    tell("imported")
    tf.saved_model.save(model, str(folder / "model"), signatures=function)
    tell("saved")
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(folder / "model"))
    converter.convert()
    tell("loaded and converted")
    converter.save(str(folder / "converted"))
    del converter
    tell("saved again")
    again = tf.saved_model.load(str(folder / "converted")).signatures["serving_default"]
    ids = tf.constant([7, ROWS - 1, 3])
    error = np.abs(again(ids=ids)["y"] - function(ids)["y"]).max()
    tell("loaded again and run")
    print(f"largest difference: {error:.1e}")
    return int(not error < 1e-5)


if __name__ == "__main__":
    sys.exit(main())
