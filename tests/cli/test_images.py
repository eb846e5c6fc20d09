"""Folders of images on the command line, and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from planish.cli.images import as_data, image_flags, read_labels
from planish.cli.options import BuildOptions, with_build_options
from planish.errors import InputError
from planish.quantization.images import ImageFolder

image = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    for number in range(3):
        pixels = np.full((6, 6, 3), (10 * number, 20, 30), np.uint8)
        image.fromarray(pixels).save(path / f"{number}.png")
    return path


def test_flags_prepare_the_images(folder: Path) -> None:
    flags = image_flags(
        image_size="4x2",
        image_fit="stretch",
        image_mean="1,2,3",
        image_scale="1/2",
        image_channels="BGR",
        image_layout="NCHW",
        image_limit=2,
    )
    data = as_data(str(folder), flags, "--data", batch=5)
    assert isinstance(data, ImageFolder)
    (batch,) = data
    assert batch.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(batch[0, :, 0, 0], [29 / 2, 18 / 2, -3 / 2])


def test_commands_that_build_get_the_folder_prepared(folder: Path) -> None:
    seen = []

    @with_build_options()
    def work(*, options: BuildOptions) -> None:
        seen.append(options)

    work(calibration=str(folder), image_size="8")
    assert isinstance(seen[0].arguments["calibration"], ImageFolder)
    assert seen[0].images["size"] == (8, 8)
    with pytest.raises(typer.BadParameter, match="--image-size"):
        work(calibration=str(folder))
    work(calibration="model.ranges")
    assert seen[1].arguments["calibration"] == "model.ranges"


@pytest.mark.parametrize(
    "flags",
    [{"image_size": "big"}, {"image_size": "2x3x4"}, {"image_mean": "a"}, {"image_scale": "1/0"}],
)
def test_malformed_flags(flags: dict[str, str]) -> None:
    with pytest.raises(typer.BadParameter):
        image_flags(**flags)  # type: ignore[arg-type]


def test_labels_in_order_and_by_name(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.iterdir())
    text = tmp_path / "labels.csv"
    text.write_text("file,class\n2.png,7\n0.png,5\nelse.png,1\n1.png,6\n")
    assert read_labels(str(text), files).tolist() == [5, 6, 7]
    with pytest.raises(InputError, match="have names"):
        read_labels(str(text), None)
    text.write_text("0.png,5\n")
    with pytest.raises(InputError, match=r"2 of the images have no label.*\n.*\n.*1\.png"):
        read_labels(str(text), files)
    text.write_text("3\n1\n2\n")
    assert read_labels(str(text), None).tolist() == [3, 1, 2]
    text.write_text("3\none\n")
    with pytest.raises(InputError, match="Line 2 holds no label"):
        read_labels(str(text), None)
    np.save(tmp_path / "labels.npy", np.array([1, 2]))
    assert read_labels(str(tmp_path / "labels.npy"), None).tolist() == [1, 2]
