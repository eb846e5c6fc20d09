"""Folders of images, prepared as `tests/helpers/images.py` and a definition in float64 do it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import planish
from helpers.images import imagenet, symmetric
from planish.errors import CalibrationError, InputError
from planish.quantization.images import ImageFolder, Preprocess

RANDOM = np.random.default_rng(0)


def picture(height: int, width: int) -> np.ndarray:
    """A smooth picture of colours, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 127 + 0 * x], -1).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (height, width) in enumerate([(40, 60), (70, 50), (32, 32)]):
        place = tmp_path / ("b" if number == 1 else "a")
        place.mkdir(exist_ok=True)
        Image.fromarray(picture(height, width)).save(place / f"{number}.PNG")
    (tmp_path / "labels.txt").write_text("no image")
    return tmp_path


def test_public_name() -> None:
    assert planish.Preprocess is Preprocess


def test_crop_mean_scale() -> None:
    prepare = Preprocess((32, 32), shorter=40, mean=(1, 2, 3), scale=(0.5, 1, 2))
    image = Image.fromarray(picture(60, 90))
    found = prepare(image)
    resized = image.resize((60, 40), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized)[4:36, 14:46].astype(np.float64)
    np.testing.assert_allclose(found, (pixels - [1, 2, 3]) * [0.5, 1, 2], rtol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(prepare(picture(60, 90)), found)


def test_stretch_and_order_of_channels() -> None:
    image = Image.fromarray(picture(60, 90))
    found = Preprocess((16, 20), "stretch", channels="BGR", layout="NCHW", mode="nearest")(image)
    pixels = np.asarray(image.resize((20, 16), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(found, pixels[..., ::-1].transpose(2, 0, 1))
    assert found.flags.c_contiguous


def test_pad_puts_zeros_after_mean_and_scale() -> None:
    found = Preprocess((32, 32), "pad", mean=100.0)(picture(30, 60))
    assert found.shape == (32, 32, 3)
    assert not found[:8].any()
    assert not found[24:].any()
    np.testing.assert_allclose(found[8:24, :, 2], 27)


def test_grey_and_bytes() -> None:
    found = Preprocess((16, 16), "stretch", channels="L", dtype="uint8")(picture(60, 90))
    assert (found.shape, found.dtype) == ((16, 16, 1), np.uint8)


def test_transparency_and_palettes() -> None:
    for mode in ("RGBA", "P", "L", "1", "CMYK"):
        image = Image.fromarray(picture(40, 40)).convert(mode)
        assert Preprocess((8, 8))(image).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 224},
        {"size": (224,)},
        {"size": (0, 3)},
        {"size": (2.0, 2.0)},
        {"fit": "cover"},
        {"mode": "cubic"},
        {"shorter": 100},
        {"mean": (1, 2)},
        {"scale": "1/255"},
        {"channels": "rgb"},
        {"layout": "HWC"},
        {"dtype": "float16"},
        {"dtype": "uint8", "mean": 1},
    ],
    ids=str,
)
def test_what_is_wrong_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        Preprocess(**{"size": (224, 224), **wrong})
    assert caught.value.where == f"{next(iter(wrong))}="


def test_a_folder_in_batches(folder: Path) -> None:
    data = ImageFolder(folder, Preprocess((24, 24)), batch=2)
    assert [path.name for path in data.files] == ["0.PNG", "2.PNG", "1.PNG"]
    assert len(data) == 2
    assert [b.shape for b in data] == [(2, 24, 24, 3), (1, 24, 24, 3)]
    assert [b.shape for b in data] == [(2, 24, 24, 3), (1, 24, 24, 3)]  # again


def test_a_limit_is_spread(folder: Path) -> None:
    data = ImageFolder(folder, Preprocess((24, 24)), limit=2)
    assert [path.name for path in data.files] == ["0.PNG", "2.PNG"]
    assert len(ImageFolder(folder, Preprocess((24, 24)), limit=None).files) == 3
    with pytest.raises(InputError, match="limit="):
        ImageFolder(folder, Preprocess((24, 24)), limit=0)


def test_a_damaged_image_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = folder / "a" / "2.PNG"
    damaged.write_bytes(damaged.read_bytes()[:60])
    found = list(ImageFolder(folder, Preprocess((24, 24)), batch=2))
    assert [len(b) for b in found] == [2]
    assert "2.PNG is left out" in caplog.text


def test_no_image_can_be_read(folder: Path) -> None:
    for path in folder.rglob("*.PNG"):
        path.write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="None of the 3 images can be read"):
        list(ImageFolder(folder, Preprocess((24, 24))))


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="no such folder"):
        ImageFolder(tmp_path / "nothing", Preprocess((24, 24)))
    with pytest.raises(CalibrationError, match="There are no images"):
        ImageFolder(tmp_path, Preprocess((24, 24)))
    with pytest.raises(InputError, match="preprocess="):
        ImageFolder(tmp_path, (24, 24))  # type: ignore[arg-type]


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(CalibrationError) as caught:
        list(ImageFolder(folder, Preprocess((24, 24))))
    assert caught.value.cure == "pip install 'planish[images]'"


@pytest.mark.data
def test_the_sample_images_as_other_code_prepares_them(data_dir: Path, tmp_path: Path) -> None:
    """Decoded from the JPEGs themselves: what MobileNetV2's accuracy is measured with."""
    import tarfile

    with tarfile.open(data_dir / "imagenet_sample_1000.tar") as tar:
        members = [m for m in tar if m.name.endswith(".jpg")][:20]
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            (tmp_path / os.path.basename(member.name)).write_bytes(file.read())
    wanted = {n: a for (n, a), _ in zip(imagenet(data_dir), range(20), strict=False)}
    prepare = Preprocess((224, 224), mean=127.5, scale=1 / 127.5)
    data = ImageFolder(tmp_path, prepare)
    found = np.concatenate(list(data))
    for path, image in zip(data.files, found, strict=True):
        np.testing.assert_allclose(image, symmetric(wanted[path.name]), atol=1e-6)
