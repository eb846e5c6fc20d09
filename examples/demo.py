"""Native TensorFlow beside Planish, on a model that is made here: ``make demo``.

1. Takes Keras' MobileNetV2 with its ImageNet weights, where they can be had; without a network it
   trains a small convolutional net on scikit-learn's handwritten digits instead, and says so.
2. Saves it as a SavedModel, converts that with `planish.tensorflow` (TF-TRT's API), saves again.
3. Loads both in fresh processes, which take turns, and prints latency and accuracy side by side.

    pip install 'planish[tensorflow,demo]'
    python examples/demo.py [--offline]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

WEIGHTS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet_v2/"
    "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5"
)
PATIENCE = 5.0
"""Seconds to wait for the network."""

BATCHES = (1, 8)
TURNS = 4
SECONDS_PER_TURN = 0.75


@dataclass(frozen=True)
class Subject:
    """The model of the demo and what it is judged by.

    Attributes
    ----------
    model : keras.Model
    images : array [n, height, width, channels]
    labels : array [n] or None
        None: the share of images is shown on which the two agree.
    """

    name: str
    model: Any
    images: np.ndarray
    labels: np.ndarray | None


@contextmanager
def quiet() -> Iterator[None]:
    """TensorFlow's C++ code greets on the descriptor of standard error, whatever its log level."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# ---- the model -----------------------------------------------------------------------------


def choose(offline: bool) -> Subject:
    """MobileNetV2 if its weights are here or can be had, else a net trained on digits."""
    if not offline:
        try:
            return mobilenet()
        except Exception as error:  # whatever the network, the disk or Keras raise
            print(f"No ImageNet weights ({type(error).__name__}: {str(error)[:80]}).")
    print("Training a small convolutional net on scikit-learn's handwritten digits instead.")
    return digits()


def mobilenet() -> Subject:
    """Keras' MobileNetV2, and crops of the photos that come with scikit-learn."""
    import keras
    from sklearn.datasets import load_sample_images

    kept = Path.home() / ".keras" / "models" / WEIGHTS.rpartition("/")[2]
    if not kept.exists():
        print(f"Asking for MobileNetV2's ImageNet weights (at most {PATIENCE:.0f} s)…", flush=True)
        urllib.request.urlopen(
            urllib.request.Request(WEIGHTS, method="HEAD"), timeout=PATIENCE
        ).close()
    model = keras.applications.MobileNetV2(weights="imagenet")
    generator = np.random.default_rng(0)
    crops = []
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        for _ in range(64):
            top, left = generator.integers(height - 224), generator.integers(width - 224)
            crops.append(photo[top : top + 224, left : left + 224])
    images = np.stack(crops).astype(np.float32) / 127.5 - 1
    return Subject("MobileNetV2 (ImageNet weights)", model, images, None)


def digits() -> Subject:
    """A net of separable convolutions with residuals, trained for a few seconds."""
    import keras
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    data = load_digits()
    images = np.kron(data.images / 16.0, np.ones((4, 4)))[..., None].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1400], order[1400:]
    layers = keras.layers

    def block(x: Any, channels: int, stride: int) -> Any:
        y = layers.SeparableConv2D(channels, 3, strides=stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(layers.BatchNormalization(momentum=0.8)(y))
        y = layers.Conv2D(channels, 3, padding="same", use_bias=False)(y)
        y = layers.BatchNormalization(momentum=0.8)(y)
        x = layers.Conv2D(channels, 1, strides=stride, padding="same")(x)
        return layers.ReLU()(layers.Add()([x, y]))

    image = keras.Input((32, 32, 1), name="image")
    x = layers.Conv2D(16, 3, strides=2, padding="same", activation="relu")(image)
    x = block(block(block(x, 32, 1), 64, 2), 128, 2)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images[train], data.target[train], batch_size=64, epochs=6, verbose=2)
    return Subject("a small net for digits", model, images[test], data.target[test])


# ---- converting ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversion:
    """What converting did."""

    nodes_before: int
    nodes_after: int
    engines: int
    seconds: float


def convert(source: str, target: str, images: np.ndarray) -> Conversion:
    """Converts a SavedModel and builds its engines for the batches of the demo."""
    import tensorflow as tf
    from planish.tensorflow import trt_convert

    start = time.monotonic()
    converter = trt_convert.TrtGraphConverterV2(input_saved_model_dir=source)
    function = converter.convert()
    converter.build(input_fn=lambda: iter([(tf.constant(images[:n]),) for n in BATCHES]))
    converter.save(target)
    seconds = time.monotonic() - start
    native = tf.saved_model.load(source).signatures["serving_default"]
    ops = [node.op for node in function.graph.as_graph_def().node]
    return Conversion(_node_count(native), len(ops), ops.count("PlanishEngine"), seconds)


def _node_count(function: Any) -> int:
    """The nodes of a function and of those that it calls."""
    graph = function.graph.as_graph_def()
    return len(graph.node) + sum(len(f.node_def) for f in graph.library.function)


# ---- measuring -----------------------------------------------------------------------------


def serve(pipe: Connection, folder: str, images: np.ndarray, with_planish: bool) -> None:
    """A fresh process: loads a SavedModel, then measures a batch size whenever it is asked to."""
    with quiet():
        import tensorflow as tf

    if with_planish:
        import planish.tensorflow  # noqa: F401 (registers the engine's op)
    function = tf.saved_model.load(folder).signatures["serving_default"]
    (name,) = function.structured_input_signature[1]

    def predict(batch: Any) -> Any:
        return next(iter(function(**{name: batch}).values()))

    found = [predict(tf.constant(images[i : i + 8])).numpy() for i in range(0, len(images), 8)]
    pipe.send(np.concatenate(found).argmax(1))
    while (batch := pipe.recv()) is not None:
        x = tf.constant(images[:batch])
        predict(x)
        times = []
        end = time.perf_counter() + SECONDS_PER_TURN
        while time.perf_counter() < end:
            start = time.perf_counter()
            predict(x)
            times.append((time.perf_counter() - start) * 1e3)
        pipe.send(times)


def measure(folders: dict[str, str], images: np.ndarray) -> dict[str, dict[str, Any]]:
    """Predictions, and median milliseconds by batch size, of SavedModels that take turns."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, folder in folders.items():
        pipes[name], theirs = context.Pipe()
        arguments = (theirs, folder, images, name == "Planish")
        processes.append(context.Process(target=serve, args=arguments, daemon=True))
        processes[-1].start()
        theirs.close()  # a process that dies is then an EOFError here, not a wait without end
    results = {name: {"predictions": pipe.recv()} for name, pipe in pipes.items()}
    for batch in BATCHES:
        times: dict[str, list[float]] = {name: [] for name in pipes}
        print(f"Measuring batch {batch} in {TURNS} turns…", flush=True)
        for _ in range(TURNS):
            for name, pipe in pipes.items():
                pipe.send(batch)
                times[name] += pipe.recv()
        for name, measured in times.items():
            results[name][f"batch {batch}"] = median(measured)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return results


# ---- the table -----------------------------------------------------------------------------


def show(subject: Subject, conversion: Conversion, results: dict[str, dict[str, Any]]) -> None:
    """Prints native TensorFlow beside Planish."""
    from rich.console import Console
    from rich.table import Table

    native, ours = results["TensorFlow"], results["Planish"]
    table = Table(title=f"{subject.name}, {os.cpu_count()} cores", title_justify="left")
    for column in ("", "native TensorFlow", "Planish", "TensorFlow / Planish"):
        table.add_column(column, justify="left" if not column else "right")
    for batch in (f"batch {n}" for n in BATCHES):
        a, b = native[batch], ours[batch]
        table.add_row(f"latency, {batch}", f"{a:.2f} ms", f"{b:.2f} ms", f"{a / b:.2f}x")
    if subject.labels is not None:
        accuracies = [np.mean(r["predictions"] == subject.labels) for r in (native, ours)]
        table.add_row("accuracy", *(f"{a:.1%}" for a in accuracies), "")
    agree = np.mean(native["predictions"] == ours["predictions"])
    table.add_row("same prediction", "", f"{agree:.1%}", "")
    table.add_row("graph nodes", str(conversion.nodes_before), str(conversion.nodes_after), "")
    table.add_row("engines", "", str(conversion.engines), "")
    table.add_row("converted and built in", "", f"{conversion.seconds:.1f} s", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offline", action="store_true", help="do not ask the network for weights")
    offline = parser.parse_args().offline
    print("Importing TensorFlow…", flush=True)
    with quiet():
        import tensorflow  # noqa: F401
    subject = choose(offline)
    with tempfile.TemporaryDirectory(prefix="planish-demo-") as folder:
        native, converted = f"{folder}/native", f"{folder}/converted"
        print("Saving the model, converting it, building engines…", flush=True)
        subject.model.export(native, verbose=False)
        conversion = convert(native, converted, subject.images)
        print("Loading both in fresh processes…", flush=True)
        results = measure({"TensorFlow": native, "Planish": converted}, subject.images)
    show(subject, conversion, results)


if __name__ == "__main__":
    main()
