"""The networks of `cpu_accuracy.py`: their files, their samples, and how near two results are.

A network is a `Network`: what it is built from, feeds by the number of a sample, and figures. All
of them are real ones with published weights.
"""

from __future__ import annotations

import csv
import re
import tarfile
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from gpu_accuracy import DEVIATION, MEAN, cropped
from minilm import MiniLm
from PIL import Image

import planish
from planish.quantization import Scores

Feed = dict[str, np.ndarray]

BATCH = 50


@cache
def imagenet(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 1000 sample images, uint8 ``[N, 224, 224, 3]``, and their classes."""
    with (data / "imagenet_sample_1000.csv").open(newline="") as file:
        classes = {r["file"]: int(r["class_index_0_999"]) for r in csv.DictReader(file)}
    named = list(cropped(data / "imagenet_sample_1000.tar"))
    return np.stack([np.asarray(i) for _, i in named]), np.array([classes[n] for n, _ in named])


def pictures(tar: Path) -> Iterator[tuple[tarfile.TarInfo, np.ndarray]]:
    """Every JPEG of a tar, uint8 ``[H, W, 3]``."""
    with tarfile.open(tar) as file:
        for member in file:
            content = file.extractfile(member) if member.name.endswith(".jpg") else None
            if content is not None:
                yield member, np.asarray(Image.open(content).convert("RGB"))


@cache
def cifar(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images of CIFAR-10, uint8 ``[N, 32, 32, 3]``, and their classes."""
    members, images = zip(*pictures(data / "cifar10_jpeg_test.tar.xz"), strict=True)
    names = [Path(member.name).parts[-2] for member in members]
    order = sorted(set(names))
    return np.stack(images), np.array([order.index(name) for name in names])


class Network(ABC):
    """A network and its samples.

    Attributes
    ----------
    data : Path
        The folder of the files.
    calibrated : int
        How many samples INT8 is calibrated on.
    bars : dict of str to float
        By the name of a figure what it shall reach.
    """

    calibrated: int
    bars: dict[str, float]

    @property
    @abstractmethod
    def judged(self) -> int:
        """How many samples there are to be judged by."""

    @property
    def samples(self) -> int:
        """How many samples there are to calibrate on, those that are judged by first."""
        return self.judged

    @abstractmethod
    def build(self, **options: Any) -> planish.Engine:
        """An engine for any of the feeds."""

    @abstractmethod
    def feeds(self, chosen: Sequence[int]) -> Iterator[Feed]:
        """Samples by their numbers, as the engine takes them."""

    @abstractmethod
    def results(self, engine: planish.Engine, chosen: Sequence[int]) -> Any:
        """What an engine says of samples; `figures` can do with it."""

    def selected(self, results: Any, chosen: Sequence[int]) -> Any:
        """Some of the results for all samples that are judged by."""
        return results[list(chosen)]

    @abstractmethod
    def figures(self, exact: Any, found: Any, chosen: Sequence[int]) -> dict[str, float]:
        """How near results are to those in FP32."""


@dataclass(frozen=True)
class Classifier(Network):
    """A network that names the class of an image.

    `background` says whether its first class is none of the images'; `pixels` how it takes them.
    """

    data: Path
    file: str
    input: str
    output: str
    calibrated: int
    bars: dict[str, float]
    is_cifar: bool = True
    pixels: str = "standardized"
    channels_first: bool = True
    background: bool = False
    quantized: str = ""

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        return (cifar if self.is_cifar else imagenet)(self.data)

    @property
    def judged(self) -> int:
        return len(self._images[0])

    @property
    def classes(self) -> np.ndarray:
        """What the network should say, by sample."""
        return self._images[1] + self.background

    def build(self, **options: Any) -> planish.Engine:
        size = 32 if self.is_cifar else 224
        shape = (3, size, size) if self.channels_first else (size, size, 3)
        profile = planish.Profile((1, *shape), (BATCH, *shape), (BATCH, *shape))
        return planish.build(
            self.data / self.file,
            inputs={self.input: profile},
            outputs=[self.output] if self.output else None,
            progress=False,
            **options,
        )

    def feeds(self, chosen: Sequence[int]) -> Iterator[Feed]:
        for at in range(0, len(chosen), BATCH):
            x = self._images[0][list(chosen[at : at + BATCH])].astype(np.float32)
            if self.pixels == "standardized":
                x = (x / 255 - MEAN) / DEVIATION
            elif self.pixels == "symmetric":
                x = x / np.float32(127.5) - 1
            yield (
                {self.input: np.ascontiguousarray(x.transpose(0, 3, 1, 2))}
                if (self.channels_first)
                else {self.input: x}
            )

    def results(self, engine: planish.Engine, chosen: Sequence[int]) -> np.ndarray:
        return np.concatenate([np.asarray(engine(feed), np.float32) for feed in self.feeds(chosen)])

    def figures(
        self, exact: np.ndarray, found: np.ndarray, chosen: Sequence[int]
    ) -> dict[str, float]:
        wanted = self.classes[list(chosen)]
        top1 = {
            "top1_fp32": 100 * float((exact.argmax(1) == wanted).mean()),
            "top1": 100 * float((found.argmax(1) == wanted).mean()),
        }
        if self.quantized:
            top1["top1_tflite"] = 100 * float((self.tflite[list(chosen)] == wanted).mean())
        return {
            **top1,
            "lost": top1["top1_fp32"] - top1["top1"],
            "same_class": 100 * float((found.argmax(1) == exact.argmax(1)).mean()),
            "sqnr": _decibels(exact, found),
        }

    @cached_property
    def tflite(self) -> np.ndarray:
        """The classes that TFLite's quantized form of the network finds, by sample."""
        import tensorflow as tf

        interpreter = tf.lite.Interpreter(str(self.data / self.quantized), num_threads=2)
        interpreter.allocate_tensors()
        (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
        signed = given["dtype"] is np.int8
        found = []
        for image in self._images[0]:
            x = (image.astype(np.int16) - 128).astype(np.int8) if signed else image
            interpreter.set_tensor(given["index"], x[None])
            interpreter.invoke()
            found.append(int(interpreter.get_tensor(wanted["index"]).argmax()))
        return np.array(found)

    def scores(self, found: np.ndarray, chosen: Sequence[int]) -> Scores:
        """Top-1 accuracy in percent, which knows the samples that are right."""
        return Scores(100.0 * (found.argmax(1) == self.classes[list(chosen)]))


@dataclass(frozen=True)
class Detector(Network):
    """SSD MobileNet on the photos; calibrated on the sample images of ImageNet."""

    data: Path
    calibrated: int
    bars: dict[str, float]

    @cached_property
    def _photos(self) -> list[np.ndarray]:
        return [image for _, image in pictures(self.data / "coco_photos_22.tar")]

    @property
    def judged(self) -> int:
        return len(self._photos)

    @property
    def samples(self) -> int:
        return self.judged + len(imagenet(self.data)[0])

    def build(self, **options: Any) -> planish.Engine:
        return planish.build(
            self.data / "ssd_mobilenet_v1_0.75_300_coco_frozen.pb",
            outputs=[
                "detection_boxes",
                "detection_scores",
                "detection_classes",
                "num_detections",
            ],
            progress=False,
            **options,
        )

    def feeds(self, chosen: Sequence[int]) -> Iterator[Feed]:
        for number in chosen:
            others = number - self.judged
            image = self._photos[number] if others < 0 else imagenet(self.data)[0][others]
            yield {"image_tensor": image[None]}

    def results(self, engine: planish.Engine, chosen: Sequence[int]) -> list[Any]:
        found = []
        for feed in self.feeds(chosen):
            result = {name: np.asarray(array)[0] for name, array in engine(feed).items()}
            count = int(result["num_detections"])
            rows = zip(
                result["detection_boxes"][:count],
                result["detection_scores"][:count],
                result["detection_classes"][:count],
                strict=True,
            )
            found.append([(box, float(score), int(label)) for box, score, label in rows])
        return found

    def selected(self, results: list[Any], chosen: Sequence[int]) -> list[Any]:
        return [results[i] for i in chosen]

    def figures(
        self, exact: list[Any], found: list[Any], chosen: Sequence[int]
    ) -> dict[str, float]:
        pairs = list(zip(exact, found, strict=True))
        sure = sum(score >= 0.5 for wide, _ in pairs for _, score, _ in wide)
        return {
            "detections": sure,
            "matched": 100 - 100 * sum(_unmatched(wide, own) for wide, own in pairs) / sure,
            "invented": 100 * sum(_unmatched(own, wide) for wide, own in pairs) / sure,
        }


@dataclass(frozen=True)
class Encoder(Network):
    """all-MiniLM-L6-v2 on sentences of Python's manual."""

    folder: Path
    calibrated: int
    bars: dict[str, float]

    @property
    def judged(self) -> int:
        return 200

    @cached_property
    def _model(self) -> MiniLm:
        return MiniLm(self.folder)

    @cached_property
    def _sentences(self) -> list[str]:
        from pydoc_data.topics import topics

        text = " ".join(topics[name] for name in sorted(topics))
        found = re.findall(r"[A-Z][a-z][^.\n*`|=]*(?:\n[^.\n*`|=]+)*\.", text)
        whole = dict.fromkeys(" ".join(one.split()) for one in found)
        likely = [one for one in whole if 30 <= len(one) <= 400]
        return [likely[i] for i in np.random.default_rng(0).permutation(len(likely))]

    @property
    def samples(self) -> int:
        return len(self._sentences)

    def build(self, **options: Any) -> planish.Engine:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "minilm.onnx"
            self._model.write(file)
            profile = planish.Profile((1, 2), (1, 32), (1, 256))
            return planish.build(file, inputs={"ids": profile}, progress=False, **options)

    def feeds(self, chosen: Sequence[int]) -> Iterator[Feed]:
        for number in chosen:
            yield {"ids": self._model.tokens(self._sentences[number])}

    def results(self, engine: planish.Engine, chosen: Sequence[int]) -> np.ndarray:
        return np.concatenate([np.asarray(engine(feed)) for feed in self.feeds(chosen)])

    def figures(
        self, exact: np.ndarray, found: np.ndarray, chosen: Sequence[int]
    ) -> dict[str, float]:
        lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(found, axis=1)
        cosines = (exact * found).sum(1) / lengths
        return {
            "cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
            "sqnr": _decibels(exact, found),
        }


def networks(data: Path, minilm: Path | None) -> dict[str, Network]:
    """The networks by name; the encoder only where there is its folder."""
    standard = {"lost": 0.2}
    found: dict[str, Network] = {
        "mobilenetv2": Classifier(
            data,
            "mobilenet_v2_1.0_224_frozen.pb",
            "input",
            "MobilenetV2/Logits/Squeeze",
            calibrated=200,
            bars={"lost": 0.5, "same_class": 95.0},
            is_cifar=False,
            pixels="symmetric",
            channels_first=False,
            background=True,
            quantized="tf2_mobilenet_v2_1.0_224_ptq.tflite",
        ),
        "squeezenet": Classifier(
            data,
            "squeezenet1.1.onnx",
            "data",
            "squeezenet0_flatten0_reshape0",
            calibrated=200,
            bars={},
            is_cifar=False,
        ),
        "resnet20": Classifier(data, "resnet20_cifar10.onnx", "input", "logits", 500, standard),
        "resnet56": Classifier(data, "resnet56_cifar10.onnx", "input", "logits", 500, standard),
        "resnet8": Classifier(
            data,
            "mlperf_tiny_resnet8_cifar10.h5",
            "input_1",
            "",
            500,
            standard,
            pixels="raw",
            channels_first=False,
            quantized="mlperf_tiny_resnet8_cifar10_int8.tflite",
        ),
        "ssd": Detector(data, 200, {"matched": 95.0, "invented": 5.0}),
    }
    if minilm is not None:
        found["minilm"] = Encoder(minilm, 200, {"cosine": 0.995})
    return found


def _unmatched(one: list[Any], other: list[Any]) -> int:
    """The sure detections of one list without a partner of their class in the other."""
    left = list(other)
    missing = 0
    for box, score, label in sorted(one, key=lambda d: -d[1]):
        partners = [d for d in left if d[2] == label and _overlap(box, d[0]) > 0.7]
        if score < 0.5:
            continue
        if not partners:
            missing += 1
            continue
        best = max(
            range(len(left)), key=lambda i: _overlap(box, left[i][0]) * (left[i][2] == label)
        )
        left.pop(best)
    return missing


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (ymin, xmin, ymax, xmax)."""
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return float(height * width / (sum(areas) - height * width))


def _decibels(exact: np.ndarray, found: np.ndarray) -> float:
    """Signal to error."""
    error = np.square(found - exact, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(exact, dtype=np.float64).sum() / error))
