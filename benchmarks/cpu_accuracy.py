"""What lower precisions cost in accuracy on a CPU: top-1 of real networks beside FP32's.

    PLANISH_TEST_DATA=FOLDER python benchmarks/cpu_accuracy.py --precision bf16
    ... python benchmarks/cpu_accuracy.py --precision int8 --splits 5 mobilenetv2 resnet20

Each network sees the same pixels in FP32 and in the lower precision. INT8 is calibrated on images
that are not counted; with several splits each is calibrated on others. On CPUs without products of
bfloat16 set PLANISH_EMULATE_BF16=1: accuracy is the same there, speed is not.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_accuracy import DEVIATION, MEAN, cropped
from PIL import Image

import planish

BATCH = 50
CALIBRATED = {"mobilenetv2": 100, "squeezenet": 100, "resnet20": 500, "resnet56": 500}
"""How many images INT8 is calibrated on."""


@dataclass(frozen=True)
class Model:
    """A network: its file, its tensors, its images, and how it wants them.

    `background` says whether its first class is none of the images'.
    """

    file: str
    input: str
    output: str
    cifar: bool
    standardized: bool
    channels_first: bool
    background: bool = False

    def prepared(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8 ``[N, H, W, 3]``, as the network takes them."""
        x = images.astype(np.float32)
        x = (x / 255 - MEAN) / DEVIATION if self.standardized else x / np.float32(127.5) - 1
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if self.channels_first else x


MODELS = {
    "mobilenetv2": Model(
        "mobilenet_v2_1.0_224_frozen.pb",
        "input",
        "MobilenetV2/Logits/Squeeze",
        cifar=False,
        standardized=False,
        channels_first=False,
        background=True,
    ),
    "squeezenet": Model(
        "squeezenet1.1.onnx",
        "data",
        "squeezenet0_flatten0_reshape0",
        cifar=False,
        standardized=True,
        channels_first=True,
    ),
    "resnet20": Model("resnet20_cifar10.onnx", "input", "logits", True, True, True),
    "resnet56": Model("resnet56_cifar10.onnx", "input", "logits", True, True, True),
}


def imagenet(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 1000 sample images and their classes."""
    with (data / "imagenet_sample_1000.csv").open(newline="") as file:
        classes = {r["file"]: int(r["class_index_0_999"]) for r in csv.DictReader(file)}
    named = list(cropped(data / "imagenet_sample_1000.tar"))
    return np.stack([np.asarray(i) for _, i in named]), np.array([classes[n] for n, _ in named])


def cifar(data: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images of CIFAR-10 and their classes."""

    def members() -> Iterator[tuple[np.ndarray, str]]:
        with tarfile.open(data / "cifar10_jpeg_test.tar.xz") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith(".jpg") else None
                if content is not None:
                    name = Path(member.name).parts[-2]
                    yield np.asarray(Image.open(content).convert("RGB")), name

    images, names = zip(*members(), strict=True)
    order = sorted(set(names))
    return np.stack(images), np.array([order.index(name) for name in names])


def logits(engine: Any, model: Model, images: np.ndarray) -> np.ndarray:
    """What an engine says of every image, float32 ``[N, classes]``."""
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    return np.concatenate([np.asarray(engine(model.prepared(p)), np.float32) for p in parts])


def build(model: Model, data: Path, arguments: argparse.Namespace, **options: Any) -> Any:
    """An engine for any number of images."""
    size = 32 if model.cifar else 224
    shape = (3, size, size) if model.channels_first else (size, size, 3)
    return planish.build(
        data / model.file,
        inputs={model.input: planish.Profile((1, *shape), (BATCH, *shape), (BATCH, *shape))},
        outputs=[model.output],
        tuning_seconds=arguments.tuning_seconds,
        progress=False,
        **options,
    )


def main() -> None:
    """Measures the networks, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--splits", type=int, default=1, help="calibrations of INT8")
    parser.add_argument("--tuning-seconds", type=float, default=0.0, help="of each engine")
    parser.add_argument("--data", type=Path, default=os.environ.get("PLANISH_TEST_DATA"))
    parser.add_argument("-o", "--output", type=Path, help="results as JSON")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data, or the variable PLANISH_TEST_DATA, must name the folder of the data")
    rows = []
    for name in arguments.models:
        model = MODELS[name]
        images, classes = (cifar if model.cifar else imagenet)(arguments.data)
        classes = classes + model.background
        with build(model, arguments.data, arguments) as engine:
            exact = logits(engine, model, images)
        for split in range(arguments.splits):
            counted = np.ones(len(images), bool)
            options: dict[str, Any] = {"precision": arguments.precision}
            if arguments.precision == "int8":
                chosen = np.random.default_rng(split).choice(len(images), CALIBRATED[name], False)
                counted[chosen] = False
                seen = model.prepared(images[chosen])
                options["calibration"] = [
                    {model.input: seen[i : i + BATCH]} for i in range(0, len(seen), BATCH)
                ]
            with build(model, arguments.data, arguments, **options) as engine:
                found = logits(engine, model, images[counted])
                layers = engine.layers()
            wide = exact[counted]
            row = {
                "model": name,
                "precision": arguments.precision,
                "split": split,
                "images": int(counted.sum()),
                "top1_fp32": 100 * float((wide.argmax(1) == classes[counted]).mean()),
                "top1": 100 * float((found.argmax(1) == classes[counted]).mean()),
                "same_class": 100 * float((found.argmax(1) == wide.argmax(1)).mean()),
                "lowered_layers": sum(r["precision"] == arguments.precision for r in layers),
                "layers": len(layers),
            }
            rows.append(row)
            print(
                "{model:12} {precision} split {split}: top-1 {top1:.2f} % on {images} images "
                "(FP32 {top1_fp32:.2f} %), same class for {same_class:.2f} %, "
                "{lowered_layers} of {layers} layers lowered".format(**row),
                flush=True,
            )
    if arguments.output:
        document = {"planish": planish.__version__, "results": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
