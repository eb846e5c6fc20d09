"""How the images of a folder are prepared, as flags; and data on the command line.

The flags belong to every command that takes a folder of images: `with_build_options` adds them, and
they hold for ``--calibration`` and ``--data`` alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from planish.quantization.images import ImageFolder

PANEL = "Images of a folder"


def image_flags(
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Height and width that the model takes: 224x224. Needed for folders of images.",
            metavar="HxW",
            rich_help_panel=PANEL,
        ),
    ] = None,
    image_fit: Annotated[
        str,
        typer.Option(
            help="crop: resize the shorter side and cut out the centre; stretch; pad.",
            rich_help_panel=PANEL,
        ),
    ] = "crop",
    image_shorter: Annotated[
        int | None,
        typer.Option(
            help="With crop: the shorter side before. (default: 256/224 of the size)",
            min=1,
            rich_help_panel=PANEL,
        ),
    ] = None,
    image_mode: Annotated[
        str,
        typer.Option(help="nearest, bilinear, bicubic or lanczos.", rich_help_panel=PANEL),
    ] = "bilinear",
    image_mean: Annotated[
        str,
        typer.Option(
            help="(pixels - mean) * scale, of pixels from 0 to 255: a number, or one for each "
            "channel with commas.",
            metavar="NUMBERS",
            rich_help_panel=PANEL,
        ),
    ] = "0",
    image_scale: Annotated[
        str,
        typer.Option(
            help="See --image-mean; fractions are welcome: 1/127.5.",
            metavar="NUMBERS",
            rich_help_panel=PANEL,
        ),
    ] = "1",
    image_channels: Annotated[
        str, typer.Option(help="RGB, BGR or L (grey).", rich_help_panel=PANEL)
    ] = "RGB",
    image_layout: Annotated[
        str, typer.Option(help="NHWC or NCHW.", rich_help_panel=PANEL)
    ] = "NHWC",
    image_dtype: Annotated[
        str, typer.Option(help="float32 or uint8.", rich_help_panel=PANEL)
    ] = "float32",
    image_limit: Annotated[
        int,
        typer.Option(
            help="At most so many images, evenly from the whole folder.",
            min=1,
            rich_help_panel=PANEL,
        ),
    ] = 500,
) -> dict[str, Any]:
    """The flags as arguments of `planish.Preprocess`, and the ``limit``."""
    return {
        "size": _size(image_size),
        "fit": image_fit,
        "shorter": image_shorter,
        "mode": image_mode,
        "mean": _numbers(image_mean, "--image-mean"),
        "scale": _numbers(image_scale, "--image-scale"),
        "channels": image_channels,
        "layout": image_layout,
        "dtype": image_dtype,
        "limit": image_limit,
    }


def as_data(path: str, images: Mapping[str, Any], flag: str, batch: int = 8) -> str | ImageFolder:
    """Data for a path: a folder's images, prepared as the flags say; other paths as they are.

    Raises
    ------
    typer.BadParameter
        It is a folder, and nothing says the size of its images.
    """
    if not Path(path).is_dir():
        return path
    if images["size"] is None:
        raise typer.BadParameter(
            f"{path} is a folder: --image-size, --image-mean, --image-scale say how its images are "
            "prepared",
            param_hint=flag,
        )
    from planish.quantization.images import ImageFolder, Preprocess

    arguments = {name: value for name, value in images.items() if name != "limit"}
    return ImageFolder(path, Preprocess(**arguments), limit=images["limit"], batch=batch)


def read_labels(path: str, files: Sequence[Path] | None) -> np.ndarray:
    """The classes of samples: an .npy of whole numbers, or a text.

    A line of the text is a number, or a file's name, a comma, and a number; then the order does not
    matter, and files that are not in `files` may be among them. A first line without a number is
    a heading.

    Raises
    ------
    InputError
        The file cannot be read, or a file has no label.
    """
    import numpy as np

    try:
        if path.endswith(".npy"):
            return np.load(path, allow_pickle=False)
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            "The labels cannot be read",
            where=path,
            why=getattr(error, "strerror", None) or str(error),
            cure="pass an .npy of whole numbers, or a text with a number, or NAME,NUMBER, a line",
        ) from error
    named: dict[str, int] = {}
    plain: list[int] = []
    for place, line in enumerate(line.strip() for line in lines):
        name, _, number = line.rpartition(",")
        try:
            label = int(number)
        except ValueError as error:
            if not line or not place:
                continue
            raise InputError(
                f"Line {place + 1} holds no label",
                where=path,
                why=f"it is {line!r}"[:120],
                cure="write a number, or NAME,NUMBER, a line",
            ) from error
        if name:
            named[name] = label
        else:
            plain.append(label)
    if not named:
        return np.array(plain, np.int64)
    wanted = [file.name for file in files or ()]
    missing = [name for name in wanted if name not in named]
    if missing or not wanted:
        raise InputError(
            f"{len(missing)} of the images have no label" if missing else "The labels have names",
            where=path,
            why=f"there is none for {missing[0]}" if missing else "the data are no folder of files",
            cure="add them" if missing else "write a number a line, in the order of the samples",
        )
    return np.array([named[name] for name in wanted], np.int64)


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) == 1:
        parts *= 2
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no size; write 224x224", param_hint="--image-size")
    return int(parts[0]), int(parts[1])


def _numbers(text: str, flag: str) -> float | list[float]:
    """One number, or several with commas; each may be a fraction of two decimal numbers."""
    try:
        found = []
        for part in text.split(","):
            above, slash, below = part.partition("/")
            found.append(float(Fraction(above) / Fraction(below) if slash else Fraction(above)))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(
            f"{text!r} are no numbers; write 127.5, 1/127.5, or one for each channel with commas",
            param_hint=flag,
        ) from None
    return found[0] if len(found) == 1 else found
