"""Models that ONNX Runtime's quantizer wrote: accuracy beside ONNX Runtime's, and FP32's.

    python tests/campaigns/quantized_models.py resnet20 squeezenet [--images 1000] [--tune 10]

Each model is quantized statically in both formats, QDQ and QOperator, with weights of seven bits
(ONNX Runtime's sums saturate without 8-bit dot products), and built with ``precision="int8"``. A
row says: top-1 of the float model, of the quantized one by ONNX Runtime and by us, how often the
last two name the same class, the largest difference of any output in steps of the last scale or
relative to the largest output, how many layers compute in INT8, and the time of each by tuning.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

import planish
from helpers import images
from helpers.onnx_quantizer import FORMATS, quantized

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CALIBRATION = 64


def cifar(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Test images of all classes, prepared, and their classes."""
    found, labels = [], []
    with tarfile.open(folder / "cifar10_jpeg_test.tar.xz") as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith(".jpg")]
        for member in members[:: max(len(members) // count, 1)][:count]:
            file = tar.extractfile(member)
            assert file is not None
            found.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
            labels.append(CLASSES.index(member.name.split("/")[-2]))
    return images.channels_first(images.standardized(np.stack(found))), np.array(labels)


def imagenet(folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    classes = images.imagenet_classes(folder)
    found, labels = [], []
    for place, (name, image) in enumerate(images.imagenet(folder)):
        if place % max(1000 // count, 1) == 0:
            found.append(image)
            labels.append(classes[name])
    return images.channels_first(images.standardized(np.stack(found))), np.array(labels)


MODELS = {
    "resnet20": ("resnet20_cifar10.onnx", cifar),
    "squeezenet": ("squeezenet1.1.onnx", imagenet),
}


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def by_runtime(path: Path, data: np.ndarray) -> np.ndarray:
    running = session(path)
    name = running.get_inputs()[0].name
    return np.concatenate([running.run(None, {name: row[None]})[0] for row in data])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", choices=MODELS)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--tune", type=float, default=0.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(os.environ["PLANISH_TEST_DATA"])
    for model in options.models:
        file, load = MODELS[model]
        x, labels = load(folder, options.images)
        exact = by_runtime(folder / file, x)
        with tempfile.TemporaryDirectory() as work:
            for style in FORMATS:
                path = quantized(folder / file, x[:: len(x) // CALIBRATION], style, Path(work))
                theirs = by_runtime(path, x)
                engine = planish.build(
                    str(path), precision="int8", tuning_seconds=options.tune, progress=False
                )
                (shape,) = (i.shape for i in engine.inputs)
                rows = 1 if shape[0] == 1 else 8
                ours = np.concatenate([engine(x[i : i + rows]) for i in range(0, len(x), rows)])
                tell(model, style, labels, exact, theirs, ours, engine)


def tell(
    model: str,
    style: str,
    labels: np.ndarray,
    exact: np.ndarray,
    theirs: np.ndarray,
    ours: np.ndarray,
    engine: planish.Engine,
) -> None:
    def top1(scores: np.ndarray) -> float:
        return 100 * float(np.mean(scores.argmax(1) == labels))

    same = 100 * np.mean(theirs.argmax(1) == ours.argmax(1))
    rows = engine.layers()
    time = sum(row["microseconds"] or 0 for row in rows)
    print(
        f"{model} {style}: top-1 fp32 {top1(exact):.1f}, ONNX Runtime {top1(theirs):.1f}, "
        f"Planish {top1(ours):.1f}; same class {same:.1f} %, equal outputs "
        f"{100 * np.mean(ours == theirs):.2f} %, largest difference "
        f"{np.abs(ours - theirs).max() / np.abs(theirs).max():.4f}; {len(rows)} layers, "
        f"{len(engine.report.quantized)} in INT8, {len(engine.report.not_quantized)} in floats; "
        f"{time:.0f} µs"
    )


if __name__ == "__main__":
    main()
