"""From a path on the command line to an engine: a plan is loaded, a model is built."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import note
from planish.cli.options import BuildOptions

if TYPE_CHECKING:
    from planish.runtime.arrays import TensorInfo
    from planish.runtime.engine import Engine

PLAN_SUFFIX = ".plan"
_PLAN_START = b"planish plan "


def is_plan(path: str) -> bool:
    """Whether a path names a plan, by its first bytes or its suffix."""
    file = Path(path)
    if file.suffix == PLAN_SUFFIX:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(len(_PLAN_START)) == _PLAN_START
    except OSError:
        return False


DeviceCode = Annotated[
    bool,
    typer.Option(
        "--allow-device-code",
        help="Run the machine code for GPUs that a plan holds: only of plans that you trust.",
    ),
]


def open_engine(path: str, options: BuildOptions, allow_device_code: bool = False) -> Engine:
    """The engine of a plan, or of a model, which is built first.

    Raises
    ------
    PlanishError
        The plan cannot be loaded, or the model not be built.
    """
    import planish

    if is_plan(path):
        return planish.load(path, options.device, allow_device_code)
    note(f"building an engine from {path}; planish build -o keeps one for the next time")
    return planish.build(path, **options.arguments)


def describe(info: TensorInfo) -> dict[str, Any]:
    """An input or output for scripts."""
    return {
        "name": info.name,
        "dtype": str(info.dtype),
        "shape": [d if isinstance(d, int) else str(d) for d in info.shape],
        "profile": {n: [r.min, r.opt, r.max] for n, r in info.profile.items()},
    }


def sizes(engine: Engine, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """The usual size of every symbolic dimension of an engine, with some put over them."""
    from planish.profile import tuning_points

    usual = tuning_points(engine.plan.graph)[0]
    return {**usual, **(given or {})}
