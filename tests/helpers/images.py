"""The sample images, decoded and prepared as the README beside them says for each model."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def members(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Name and RGB image of every JPEG in a tar, compressed or not, in the order of the file."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None
                name = member.name.rpartition("/")[2]
                yield name, Image.open(io.BytesIO(file.read())).convert("RGB")


def imagenet(data_dir: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The 1000 sample images: name, and uint8 [224, 224, 3] (shorter side 256, centre crop)."""
    for name, image in members(data_dir / "imagenet_sample_1000.tar"):
        scale = 256 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - 224) // 2, (height - 224) // 2
        yield name, np.asarray(image.crop((left, top, left + 224, top + 224)))


@cache
def first_imagenet(data_dir: Path, count: int = 8) -> np.ndarray:
    """The first sample images, uint8 [count, 224, 224, 3]."""
    return np.stack([image for _, image in islice(imagenet(data_dir), count)])


@cache
def imagenet_classes(data_dir: Path) -> dict[str, int]:
    """The class, 0 to 999, of each sample image by its name."""
    with (data_dir / "imagenet_sample_1000.csv").open(newline="") as file:
        return {r["file"]: int(r["class_index_0_999"]) for r in csv.DictReader(file)}


@cache
def cifar(data_dir: Path, count: int = 8) -> np.ndarray:
    """The first CIFAR-10 test images, uint8 [count, 32, 32, 3]."""
    images = members(data_dir / "cifar10_jpeg_test.tar.xz")
    return np.stack([np.asarray(image) for _, image in islice(images, count)])


@cache
def photos(data_dir: Path) -> dict[str, np.ndarray]:
    """The photos for detection by name, uint8 [H, W, 3] of different sizes."""
    images = members(data_dir / "coco_photos_22.tar")
    return {name: np.asarray(image) for name, image in images}


def resized_photos(data_dir: Path, count: int, height: int, width: int) -> np.ndarray:
    """The first photos at one size, uint8 [count, height, width, 3]."""
    chosen = islice(photos(data_dir).values(), count)
    return np.stack([np.asarray(Image.fromarray(p).resize((width, height))) for p in chosen])


# ---- what models want ------------------------------------------------------------------------


def symmetric(images: np.ndarray) -> np.ndarray:
    """From -1 to 1, channels last: MobileNet."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def standardized(images: np.ndarray) -> np.ndarray:
    """ImageNet's mean and deviation taken out, channels last."""
    return (images.astype(np.float32) / np.float32(255) - MEAN) / DEVIATION


def channels_first(images: np.ndarray) -> np.ndarray:
    """From [N, H, W, C] to [N, C, H, W], dense."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def nanodet_input(images: np.ndarray) -> np.ndarray:
    """BGR, standardised in the scale of 0 to 255, channels first."""
    mean = np.array([103.53, 116.28, 123.675], np.float32)
    deviation = np.array([57.375, 57.12, 58.395], np.float32)
    return channels_first((images[..., ::-1].astype(np.float32) - mean) / deviation)
