"""A day of bad calibrators: data, caches and ranges that are no good."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from helpers.networks import N, Net
from helpers.provoke.registry import case
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Graph
from planish.ops import ew
from planish.passes import optimize
from planish.quantization.calibration import calibrate
from planish.quantization.collect import collect_ranges
from planish.quantization.evaluators import top1
from planish.quantization.given import check_complete
from planish.quantization.images import ImageFolder, Preprocess
from planish.quantization.mean_square import MseCalibrator
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.observe import quantizable
from planish.quantization.percentile import PercentileCalibrator
from planish.quantization.ranges import Ranges

X = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)


def one(seed: int = 0) -> Graph:
    """relu(x w), x of [N, 4]."""
    net = Net(seed=seed)
    graph = net.output(net.relu(net.dense(net.input(N, 4), 3)))
    optimize(graph)
    return graph


def two() -> Graph:
    """x + y, both of [N, 4]."""
    net = Net()
    graph = net.output(net.add(net.input(N, 4), net.input(N, 4, name="y")))
    optimize(graph)
    return graph


def data(name: str, make: Callable[[], Any], graph: Callable[[], Graph] = one) -> None:
    """Registers calibration data under the name of their row."""

    def provoke(folder: Path) -> None:
        calibrate(graph(), make())

    case(name)(provoke)


# ---- data ------------------------------------------------------------------------------------


def consumed() -> Iterator[np.ndarray]:
    batches = iter([X])
    next(batches)
    return batches


def failing() -> Iterator[np.ndarray]:
    yield X
    yield X
    raise ValueError("image 17 is damaged")


def failing_at_once() -> Any:
    raise FileNotFoundError("no folder 'images'")


class Addresses:
    """A calibrator that was written for device memory."""

    def get_batch_size(self) -> int:
        return 1

    def get_batch(self, names: list[str]) -> list[int]:
        return [140_000_000]

    def read_calibration_cache(self) -> Any:
        return None

    def write_calibration_cache(self, cache: bytes) -> None:
        pass


class NoBytes(Addresses):
    """A calibrator whose cache is a text."""

    def read_calibration_cache(self) -> str:
        return "planish calibration cache 1"


class Unreadable(Addresses):
    """A calibrator whose cache cannot be opened."""

    def read_calibration_cache(self) -> bytes:
        raise PermissionError("calibration.cache")


BAD = X.copy()
BAD[3, 2], BAD[4, 1] = np.nan, np.inf

data("Calibration data without anything in them", list)
data("A generator of calibration data that was consumed before", consumed)
data("A generator of calibration data that raises", failing)
data("A function of calibration data that raises", lambda: failing_at_once)
data("Calibration data with NaN or infinity", lambda: [X, BAD])
data("Calibration data that are the same everywhere", lambda: np.zeros((16, 4), np.float32))
data("A batch without elements", lambda: [X, X[:0]])
data("A batch of another shape", lambda: [X, X[:, :3]])
data("A batch of bytes for a model of floats", lambda: [(X * 20).astype(np.uint8)])
data("A batch of another dtype", lambda: [X.astype(np.int64)])
data("A batch that is no array", lambda: ["cat.jpg"])
data("Calibration data for an input that does not exist", lambda: {"y": X})
data("Calibration data that lack an input", lambda: {"x": X}, two)
data("One array for a model of two inputs", lambda: X, two)
data("One array in a batch for a model of two inputs", lambda: [X], two)
data("A batch with labels", lambda: [(X, np.arange(16))])
data("Inputs with different numbers of samples", lambda: {"x": X, "y": X[:5]}, two)
data("Inputs of a batch with different numbers of rows", lambda: [(X, X[:5])], two)
data("Calibration data of another kind", lambda: 3)
data("`get_batch` that gives addresses of device memory", Addresses)
data("A calibrator without data", MinMaxCalibrator)
data("`read_calibration_cache` that gives no bytes", NoBytes)
data("`read_calibration_cache` that raises", Unreadable)
data("A class in place of a calibrator", lambda: MinMaxCalibrator)


@case("A calibration batch outside the profile")
def outside(folder: Path) -> None:
    net = Net()
    net.graph.ranges["S"] = DimRange(2, 4, 8)
    graph = net.output(net.relu(net.input(N, symbol("S"), 4)))
    optimize(graph)
    calibrate(graph, [np.ones((1, 9, 4), np.float32)])


@case("A network that gives NaN on the calibration data")
def nan_inside(folder: Path) -> None:
    net = Net()
    graph = net.output(net.relu(net.graph.add(ew.Log(), net.input(N, 4), name="logarithm")))
    optimize(graph)
    calibrate(graph, X)


@case("A tensor that never changes on the calibration data")
def dead(folder: Path) -> None:
    net = Net()
    x = net.input(N, 4)
    low = net.graph.constant(np.full(4, -1e9, np.float32))
    graph = net.output(net.relu(net.add(x, low)), net.relu(x))
    optimize(graph)
    calibrate(graph, np.abs(X))


@case("More samples than a fixed batch divides")
def remainder(folder: Path) -> None:
    net = Net()
    graph = net.output(net.relu(net.input(6, 4)))
    optimize(graph)
    calibrate(graph, X)


@case("Ranges of a tensor that does not exist")
def tensors(folder: Path) -> None:
    collect_ranges(one(), X, MinMaxCalibrator(), tensors=["nothing"])


# ---- files of data ---------------------------------------------------------------------------


@case("An .npz file that is damaged")
def npz(folder: Path) -> None:
    np.savez(folder / "x.npz", x=X)
    (folder / "x.npz").write_bytes((folder / "x.npz").read_bytes()[:50])
    calibrate(one(), folder / "x.npz")


@case("An .npz file that does not exist")
def no_npz(folder: Path) -> None:
    calibrate(one(), folder / "x.npz")


@case("An array file in a calibrator")
def npy(folder: Path) -> None:
    calibrate(one(), MinMaxCalibrator(folder / "x.npy"))


@case("A folder of images without pre-processing")
def no_preprocess(folder: Path) -> None:
    calibrate(one(), folder)


@case("A folder of images that does not exist")
def no_folder(folder: Path) -> None:
    ImageFolder(folder / "images", Preprocess((224, 224)))


@case("A folder without images")
def no_images(folder: Path) -> None:
    ImageFolder(folder, Preprocess((224, 224)))


@case("A folder of damaged images")
def bad_images(folder: Path) -> None:
    (folder / "cat.jpg").write_bytes(b"no image")
    list(ImageFolder(folder, Preprocess((224, 224))))


@case("One damaged image among others")
def bad_image(folder: Path) -> None:
    from PIL import Image

    (folder / "cat.jpg").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(folder / "dog.png")
    list(ImageFolder(folder, Preprocess((4, 4))))


@case("Images without Pillow")
def no_pillow(folder: Path) -> None:
    (folder / "cat.jpg").write_bytes(b"")
    with patch.dict(sys.modules, {"PIL": None, "PIL.Image": None}):
        list(ImageFolder(folder, Preprocess((224, 224))))


@case("A part of `Preprocess` that is wrong")
def preprocess(folder: Path) -> None:
    Preprocess((224, 224), channels="rgb")


# ---- caches ----------------------------------------------------------------------------------


def cache(folder: Path) -> Path:
    """A cache of `one`."""
    path = folder / "ranges.txt"
    calibrate(one(), MinMaxCalibrator(X, cache=path))
    return path


def changed(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """Uses a cache after a change."""
    path = cache(folder)
    path.write_bytes(change(path.read_bytes()))
    calibrate(one(), path)


@case("A calibration cache that does not exist")
def no_cache(folder: Path) -> None:
    calibrate(one(), folder / "ranges.txt")


@case("A calibration cache of another network")
def other_network(folder: Path) -> None:
    calibrate(two(), cache(folder))


@case("A calibration cache of the same network with other weights")
def other_weights(folder: Path) -> None:
    calibrate(one(seed=1), cache(folder))


@case("A calibration cache of another version")
def other_version(folder: Path) -> None:
    changed(folder, lambda text: text.replace(b"cache 1", b"cache 7"))


@case("A calibration cache that is cut short")
def cut_cache(folder: Path) -> None:
    changed(folder, lambda text: text[: text.rindex(b" ")])


@case("A calibration cache with a damaged line")
def damaged_cache(folder: Path) -> None:
    changed(folder, lambda text: text.replace(b'"x"', b"x"))


@case("A calibration cache with a range that is none")
def damaged_range(folder: Path) -> None:
    changed(folder, lambda text: re.sub(rb"\n-[\d.]+", b"\nnan", text, count=1))


@case("A file that is no calibration cache")
def no_such_cache(folder: Path) -> None:
    (folder / "ranges.txt").write_text("x: 6.0\n")
    calibrate(one(), folder / "ranges.txt")


@case("A calibration cache of TensorRT")
def tensorrt(folder: Path) -> None:
    (folder / "calibration.cache").write_text("TRT-8601-EntropyCalibration2\nx: 3c010a14\n")
    calibrate(one(), folder / "calibration.cache")


@case("A calibration cache of another calibrator")
def other_calibrator(folder: Path) -> None:
    calibrate(one(), MseCalibrator(X, cache=cache(folder)))


@case("A calibration cache that cannot be written")
def unwritable(folder: Path) -> None:
    calibrate(one(), MinMaxCalibrator(X, cache=folder / "no" / "ranges.txt"))


@case("A calibrator whose `cache=` is no path")
def cache_kind(folder: Path) -> None:
    MinMaxCalibrator(X, cache=3)


@case("A percentile that is none")
def percentile(folder: Path) -> None:
    PercentileCalibrator(X, percentile=101)


# ---- ranges ----------------------------------------------------------------------------------


@case("Tensors without a range")
def missing(folder: Path) -> None:
    graph = one()
    check_complete(Ranges({"x": (-1.0, 1.0)}, calibrator="given"), quantizable(graph))


@case("Made-up ranges")
def dummy(folder: Path) -> None:
    calibrate(one(), "dummy")


@case("`dynamic_ranges=` that is no mapping")
def ranges_kind(folder: Path) -> None:
    calibrate(one(), None, dynamic_ranges=[6.0])  # type: ignore[arg-type]


@case("`dynamic_ranges=` for a tensor that does not exist")
def ranges_name(folder: Path) -> None:
    calibrate(one(), None, dynamic_ranges={"rellu": 6.0})


@case("`dynamic_ranges=` with a range that is none")
def ranges_value(folder: Path) -> None:
    calibrate(one(), None, dynamic_ranges={"relu": (6.0, -6.0)})


# ---- metrics ---------------------------------------------------------------------------------


@case("Labels that are no classes")
def labels(folder: Path) -> None:
    top1(X, np.eye(4))


@case("Images of a metric that can be read once")
def images_once(folder: Path) -> None:
    top1(iter([X]), [0] * 16)


def metric(count: int = 16, output: str | None = None, channels: int = 3, outputs: int = 1) -> None:
    from helpers.networks import build

    net = Net()
    x = net.input(N, 4)
    engine = build(net.output(*[net.relu(net.dense(x, channels)) for _ in range(outputs)]))
    top1(X, np.zeros(count, int), output=output)(engine)


@case("More images than labels")
def labels_few(folder: Path) -> None:
    metric(9)


@case("More labels than images")
def labels_many(folder: Path) -> None:
    metric(20)


@case("Scores among several outputs")
def scores_several(folder: Path) -> None:
    metric(outputs=2)


@case("Scores in an output that does not exist")
def scores_unknown(folder: Path) -> None:
    metric(outputs=2, output="scores")


@case("An output that holds no scores")
def scores_none(folder: Path) -> None:
    metric(channels=1)
