"""Folders of images as data, prepared as it is stated: size, cropping, mean, scale, order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import CalibrationError, InputError

log = logging.getLogger("planish")

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

MODES = ("nearest", "bilinear", "bicubic", "lanczos")
FITS = ("stretch", "crop", "pad")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes what a model takes: ``(pixels - mean) * scale``.

    Attributes
    ----------
    size : (int, int)
        Height and width that the model takes.
    fit : str
        "crop": the shorter side is resized to `shorter`, and the centre is cut out; "stretch": the
        image is resized to the size; "pad": the image is resized to fit in, and centred on zeros
        (after mean and scale).
    shorter : int, optional
        See `fit`; None: 256/224 of the smaller of height and width, rounded.
    mode : str
        How images are resized: "nearest", "bilinear", "bicubic", "lanczos".
    mean, scale : float or sequence of float
        One number, or one for each channel in the order of `channels`; pixels are 0 to 255.
    channels : str
        "RGB", "BGR", or "L" (grey).
    layout : str
        "NHWC" or "NCHW".
    dtype : str
        "float32", or "uint8", which takes mean 0 and scale 1.

    Raises
    ------
    InputError
        A part of it is wrong.
    """

    size: tuple[int, int]
    fit: str = "crop"
    shorter: int | None = None
    mode: str = "bilinear"
    mean: float | Sequence[float] = 0.0
    scale: float | Sequence[float] = 1.0
    channels: str = "RGB"
    layout: str = "NHWC"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (
            ("fit", FITS),
            ("mode", MODES),
            ("channels", ("RGB", "BGR", "L")),
            ("layout", ("NHWC", "NCHW")),
            ("dtype", ("float32", "uint8")),
        ):
            if getattr(self, name) not in known:
                _refuse(name, getattr(self, name), f"one of {', '.join(known)}")
        size = self.size
        whole = isinstance(size, Sequence) and [type(n) for n in size] == [int, int]
        if not whole or min(size) < 1:
            _refuse("size", size, "height and width, such as (224, 224)")
        if self.shorter is not None and not (
            isinstance(self.shorter, int) and self.shorter >= max(size)
        ):
            _refuse("shorter", self.shorter, f"a whole number of at least {max(size)}")
        for name in ("mean", "scale"):
            numbers = np.asarray(getattr(self, name))
            if numbers.dtype.kind not in "fiu" or numbers.shape not in ((), (len(self.channels),)):
                _refuse(name, getattr(self, name), "a number, or one for each channel")
        plain = not np.any(self.mean) and np.all(np.asarray(self.scale) == 1)
        if self.dtype == "uint8" and not plain:
            _refuse("dtype", self.dtype, "float32 where there are mean and scale")

    def __call__(self, image: Any) -> np.ndarray:
        """Prepares one image: a PIL image, or an array uint8 [H, W, 3] in RGB or [H, W].

        Returns
        -------
        numpy.ndarray
            [H, W, C] or [C, H, W], of `dtype`.
        """
        pillow = _pillow()
        if isinstance(image, np.ndarray):
            image = pillow.fromarray(image)
        image = image.convert("L" if self.channels == "L" else "RGB")
        method = getattr(pillow.Resampling, self.mode.upper())
        height, width = self.size
        if self.fit == "stretch":
            pixels = np.asarray(image.resize((width, height), method))
        elif self.fit == "crop":
            shorter = self.shorter or max(round(min(height, width) * 256 / 224), height, width)
            factor = shorter / min(image.size)
            image = image.resize(tuple(round(side * factor) for side in image.size), method)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        else:
            factor = min(width / image.width, height / image.height)
            inner = tuple(max(round(side * factor), 1) for side in image.size)
            pixels = np.asarray(image.resize(inner, method))
        array = pixels.reshape(*pixels.shape[:2], -1)
        if self.channels == "BGR":
            array = array[..., ::-1]
        if self.dtype == "float32":
            mean, scale = (np.asarray(n, np.float32) for n in (self.mean, self.scale))
            array = (array.astype(np.float32) - mean) * scale
        if self.fit == "pad":
            whole = np.zeros((height, width, array.shape[-1]), array.dtype)
            top, left = (height - array.shape[0]) // 2, (width - array.shape[1]) // 2
            whole[top : top + array.shape[0], left : left + array.shape[1]] = array
            array = whole
        return np.ascontiguousarray(array.transpose(2, 0, 1) if self.layout == "NCHW" else array)


class ImageFolder:
    """The images of a folder and its folders, in the order of their names, in batches.

    Parameters
    ----------
    folder : path
    preprocess : Preprocess
    limit : int, optional
        At most so many images, evenly from the whole list; None: all.
    batch : int
        Images of a batch.

    Raises
    ------
    CalibrationError
        The folder does not exist or holds no images, or none of them can be read. One that cannot
        be read is left out, with a warning.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        preprocess: Preprocess,
        *,
        limit: int | None = 500,
        batch: int = 8,
    ) -> None:
        if not isinstance(preprocess, Preprocess):
            _refuse("preprocess", preprocess, "a planish.Preprocess")
        for name, number in (("limit", limit), ("batch", batch)):
            if not (name == "limit" and number is None) and not (
                isinstance(number, int) and number >= 1
            ):
                _refuse(name, number, "a whole number of at least 1")
        self._preprocess, self._batch = preprocess, batch
        self._folder = Path(folder)
        files = sorted(
            path
            for path in self._folder.rglob("*")
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if not files:
            exists = self._folder.is_dir()
            raise CalibrationError(
                "There are no images" if exists else "There is no such folder",
                where=os.fspath(folder),
                why=f"images end in {', '.join(sorted(SUFFIXES))}" if exists else "",
                cure="check the path",
            )
        if limit is not None and len(files) > limit:
            files = [files[i * len(files) // limit] for i in range(limit)]
        self.files = files

    def __len__(self) -> int:
        return -(-len(self.files) // self._batch)

    def __iter__(self) -> Iterator[np.ndarray]:
        pillow = _pillow()
        ready: list[np.ndarray] = []
        unread: list[str] = []
        seen = 0
        for path in self.files:
            try:
                with pillow.open(path) as image:
                    ready.append(self._preprocess(image))
            except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:
                log.warning("%s is left out: it cannot be read (%s)", path, error)
                unread.append(str(error))
                continue
            seen += 1
            if len(ready) == self._batch:
                yield np.stack(ready)
                ready = []
        if ready:
            yield np.stack(ready)
        if not seen:
            raise CalibrationError(
                f"None of the {len(unread)} images can be read",
                where=str(self._folder),
                why=unread[0],
                cure="check the files",
            )


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise CalibrationError(
            "Images need Pillow",
            where="planish.quantization.images",
            why=str(error),
            cure="pip install 'planish[images]'",
        ) from error
    return PIL.Image


def _refuse(name: str, given: object, wanted: str) -> None:
    raise InputError(
        f"{name}= is {given!r}"[:120],
        where=f"{name}=",
        why=f"it must be {wanted}",
        cure=f"pass {wanted}",
    )
