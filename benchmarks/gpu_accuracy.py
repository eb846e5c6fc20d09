"""What lower precisions cost in accuracy on a GPU, beside FP32 on a CPU: top-1 on sample images.

    python benchmarks/gpu_accuracy.py prepare FOLDER      where the models can be read, on any CPU
    python benchmarks/gpu_accuracy.py run FOLDER          where the GPU is; needs that folder only

`prepare` reads the models (PLANISH_TEST_DATA), and writes portable plans in FP32, the images as
they are cut for the networks, what the CPU engine says of each of them, and ranges calibrated on
200 of them. `run` has the same pixels, lowers and tunes each plan for the GPU, and compares. It
exits with 1 where top-1 is off by more than `--bar` points (INT8: `--int8-bar`, on the images that
it was not calibrated on), or an output is not finite. What the overflow detector finds on some
images is computed by `prepare`, with the references, and shown by `run`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import planish
from planish.builder import build_graph
from planish.graph.types import DType
from planish.precision.overflow import find_overflows
from planish.precision.permissions import parse_precision
from planish.quantization import MseCalibrator
from planish.targets.devices import find_target

BATCH = 50
QUALITY = 75
"""Of the JPEGs that the images are kept as, colours in half the resolution: 10 MB."""

CALIBRATED_ON = 200
"""Images that INT8's ranges are from: chosen at random, and not judged by in INT8."""

LOOKED_AT = 2
"""Images on which overflows are looked for."""

HALVES = {"fp16": DType.FLOAT16, "bf16": DType.BFLOAT16}
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Model:
    """A network: its file, its tensors, and how it wants images.

    `background` says whether its first class is none of ImageNet's.
    """

    file: str
    input: str
    output: str
    channels_first: bool
    background: bool

    def shape(self, batch: int) -> tuple[int, ...]:
        """Of the input."""
        return (batch, 3, 224, 224) if self.channels_first else (batch, 224, 224, 3)

    def prepared(self, images: np.ndarray) -> np.ndarray:
        """Images, uint8 ``[N, 224, 224, 3]``, as the network takes them."""
        x = images.astype(np.float32)
        if not self.channels_first:
            return x / np.float32(127.5) - np.float32(1)
        return np.ascontiguousarray(((x / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2))


MODELS = {
    "mobilenetv2": Model(
        "mobilenet_v2_1.0_224_frozen.pb", "input", "MobilenetV2/Logits/Squeeze", False, True
    ),
    "squeezenet": Model("squeezenet1.1.onnx", "data", "squeezenet0_flatten0_reshape0", True, False),
}


def cropped(tar: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and picture of every JPEG: shorter side 256, the middle 224 x 224."""
    with tarfile.open(tar) as file:
        for member in file:
            content = file.extractfile(member)
            if content is None or not member.name.endswith(".jpg"):
                continue
            image = Image.open(io.BytesIO(content.read())).convert("RGB")
            scale = 256 / min(image.size)
            width, height = (round(side * scale) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
            left, top = (width - 224) // 2, (height - 224) // 2
            yield member.name.rpartition("/")[2], image.crop((left, top, left + 224, top + 224))


def decoded(file: Path) -> np.ndarray:
    """The images of a tar of equally large JPEGs, uint8 ``[N, 224, 224, 3]``."""
    with tarfile.open(file) as tar:
        contents = [tar.extractfile(m) for m in tar]
        return np.stack([np.asarray(Image.open(c)) for c in contents if c is not None])


def logits(engine: Any, model: Model, images: np.ndarray) -> np.ndarray:
    """What an engine says of every image, float32 ``[N, classes]``."""
    parts = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        whole = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), 0)])
        parts.append(np.asarray(engine(model.prepared(whole)), np.float32)[: len(part)])
    return np.concatenate(parts)


def prepare(arguments: argparse.Namespace) -> int:
    """Writes the folder."""
    data, folder = arguments.data, arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (data / "imagenet_sample_1000.csv").open(newline="") as file:
        classes = {r["file"]: int(r["class_index_0_999"]) for r in csv.DictReader(file)}
    labels = []
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name, image in cropped(data / "imagenet_sample_1000.tar"):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
            member = tarfile.TarInfo(name)
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)
            labels.append(classes[name])
    images = decoded(folder / "images.tar")
    about: dict[str, Any] = {"pixels": digest(images), "labels": labels, "models": {}}
    for name, model in MODELS.items():
        print(name, flush=True)
        engine = build(model, data, BATCH)
        engine.save(folder / f"{name}.plan")
        found = logits(engine, model, images)
        np.save(folder / f"{name}.npy", found)
        calibrate(folder, name, model, images)
        few = model.prepared(images[:LOOKED_AT])
        with build(model, data, LOOKED_AT) as small:
            overflows = {
                precision: list(map(str, find_overflows(small.plan.graph, {model.input: few}, d)))
                for precision, d in HALVES.items()
            }
        about["models"][name] = {"top1": top1(found, labels, model), "overflows": overflows}
        print(f"  top-1 {about['models'][name]['top1']:.2f}, overflows {overflows}", flush=True)
    (folder / "about.json").write_text(json.dumps(about, indent=1))
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")
    return 0


def build(model: Model, data: Path, batch: int) -> Any:
    """The engine in FP32 on the CPU."""
    return planish.build(
        str(data / model.file),
        inputs={model.input: model.shape(batch)},
        outputs=[model.output],
        tuning_seconds=0,
        progress=False,
    )


def calibration_images() -> np.ndarray:
    """The numbers of the images that ranges are from."""
    return np.sort(np.random.default_rng(0).choice(1000, CALIBRATED_ON, replace=False))


def calibrate(folder: Path, name: str, model: Model, images: np.ndarray) -> None:
    """Writes the ranges of a plan's tensors."""
    chosen = images[calibration_images()]
    parts = [chosen[i : i + BATCH] for i in range(0, len(chosen), BATCH)]
    data = [{model.input: model.prepared(part)} for part in parts]
    (folder / f"{name}.ranges").unlink(missing_ok=True)
    calibration = MseCalibrator(data, cache=folder / f"{name}.ranges")
    in_int8(folder, name, "cpu", calibration, tuning_seconds=0).close()


def in_int8(folder: Path, name: str, device: str, calibration: Any, **options: Any) -> Any:
    """The engine in INT8, and FP16 where the device has it, of the network that a plan holds."""
    target = find_target(device)
    with planish.load(folder / f"{name}.plan") as stored:
        asked = {"int8", *({"fp16"} & target.precisions)}
        precision = parse_precision(asked, device, target.precisions)
        graph = stored.plan.graph
    return build_graph(graph, target, precision=precision, calibration=calibration, **options)


def digest(images: np.ndarray) -> str:
    """A name of exactly these pixels."""
    return hashlib.sha256(images.tobytes()).hexdigest()


def top1(found: np.ndarray, labels: list[int], model: Model) -> float:
    """The share of images whose class is found, in percent."""
    wanted = np.array(labels) + int(model.background)
    return 100 * float((found.argmax(1) == wanted).mean())


def run(arguments: argparse.Namespace) -> int:
    """Compares, prints, writes the results."""
    folder = arguments.folder
    about = json.loads((folder / "about.json").read_text())
    images, labels = decoded(folder / "images.tar"), about["labels"]
    if digest(images) != about["pixels"]:
        print("the images are decoded differently here: the comparison is not of the same pixels")
        return 1
    rows, missed = [], 0
    for name in arguments.models:
        model = MODELS[name]
        reference = np.load(folder / f"{name}.npy")
        known = about["models"][name]
        for precision in arguments.precisions:
            start = time.perf_counter()
            judged = np.arange(len(images))
            if precision == "int8":
                judged = np.setdiff1d(judged, calibration_images())
            with lowered(arguments, name, precision) as engine:
                found = logits(engine, model, images[judged])
                layers = engine.layers()
            few = [labels[i] for i in judged]
            row = compared(found, reference[judged], few, model)
            row |= {
                "model": name,
                "precision": precision,
                "lowered_layers": sum(r["precision"] == precision for r in layers),
                "layers": len(layers),
                "overflows": known["overflows"].get(precision, []),
                "seconds": time.perf_counter() - start,
            }
            rows.append(row)
            off = abs(row["top1"] - row["top1_fp32"])
            bar = arguments.int8_bar if precision == "int8" else arguments.bar
            bad = off > bar + 1e-9 or not row["finite"]
            missed += bad
            print(told(row) + (" MISSED" if bad else ""), flush=True)
    if arguments.output:
        document = {"device": arguments.device, "planish": planish.__version__, "results": rows}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if missed else 0


def lowered(arguments: argparse.Namespace, name: str, precision: str) -> Any:
    """The engine of a model in a lower precision, tuned for the device."""
    folder, device, seconds = arguments.folder, arguments.device, arguments.tuning_seconds
    if precision == "int8":
        ranges = folder / f"{name}.ranges"
        return in_int8(folder, name, device, ranges, tuning_seconds=seconds)
    return planish.load(
        folder / f"{name}.plan",
        device=device,
        retune=True,
        precision=precision,
        tuning_seconds=seconds,
    )


def compared(
    found: np.ndarray, reference: np.ndarray, labels: list[int], model: Model
) -> dict[str, Any]:
    """How near outputs are to those of FP32."""
    return {
        "top1": top1(found, labels, model),
        "top1_fp32": top1(reference, labels, model),
        "same_class": 100 * float((found.argmax(1) == reference.argmax(1)).mean()),
        "largest_error": float(np.abs(found - reference).max() / np.abs(reference).max()),
        "finite": bool(np.isfinite(found).all()),
    }


def told(row: dict[str, Any]) -> str:
    """A row as text."""
    overflows = row["overflows"] or ["none"]
    return (
        f"{row['model']:12} {row['precision']:5} top-1 {row['top1']:.2f} % "
        f"(fp32 on the CPU {row['top1_fp32']:.2f} %), same class for {row['same_class']:.2f} %, "
        f"largest error {row['largest_error']:.2e} of the scale, "
        f"{row['lowered_layers']} of {row['layers']} layers lowered, overflows: "
        f"{'; '.join(overflows)}; {row['seconds']:.0f} s"
    )


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    steps = parser.add_subparsers(required=True)
    first = steps.add_parser("prepare")
    first.add_argument("folder", type=Path)
    first.add_argument("--data", type=Path, default=os.environ.get("PLANISH_TEST_DATA"))
    first.set_defaults(step=prepare)
    second = steps.add_parser("run")
    second.add_argument("folder", type=Path)
    second.add_argument("--device", default="cuda:0")
    second.add_argument(
        "--precisions", type=lambda t: t.split(","), default=["fp16", "bf16", "int8"]
    )
    second.add_argument("--models", type=lambda t: t.split(","), default=list(MODELS))
    second.add_argument("--bar", type=float, default=0.1, help="points of top-1")
    second.add_argument("--int8-bar", type=float, default=0.5, help="the same in INT8")
    second.add_argument("--tuning-seconds", type=float, default=20.0, help="of each engine")
    second.add_argument("-o", "--output", type=Path, help="results as JSON")
    second.set_defaults(step=run)
    arguments = parser.parse_args()
    if getattr(arguments, "data", "") is None:
        parser.error("--data, or the variable PLANISH_TEST_DATA, must name the folder of the data")
    return arguments.step(arguments)


if __name__ == "__main__":
    sys.exit(main())
