"""The arguments of `planish.build` as flags of the same name, shared by the commands that build.

`with_build_options` gives a command all of them, and those of `planish.cli.images`, and hands it
one `BuildOptions`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.cli.images import as_data, image_flags
from planish.cli.shapes import parse_bytes, parse_inputs, parse_pairs

PANEL = "Building"


@dataclass(frozen=True)
class BuildOptions:
    """What the flags say.

    Attributes
    ----------
    arguments : dict
        Keyword arguments for `planish.build`.
    device : str or None
        The device, if one was named: plans have one.
    images : dict
        How the images of folders are prepared; see `planish.cli.images.image_flags`.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    images: dict[str, Any] = field(default_factory=image_flags)


def _flags(
    input: Annotated[
        list[str] | None,
        typer.Option(
            help="Shape of an input: NAME=8x224x224x3; N is symbolic, 1..32 or 1:8:32 a range. "
            "Repeatable. (default: the model's own)",
            metavar="NAME=SHAPE",
            rich_help_panel=PANEL,
        ),
    ] = None,
    output_name: Annotated[
        list[str] | None,
        typer.Option(
            help="A tensor to give back, also a middle one. Repeatable. (default: the model's own)",
            metavar="NAME",
            rich_help_panel=PANEL,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Where to run: cpu, cuda:0. (default: a plan's own; cpu)", rich_help_panel=PANEL
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            help="Permitted precisions: fp32, tf32, fp16, bf16, int8, fp8, best, or several with "
            "commas. INT8 needs --calibration, or a model that brings its own scales; FP8 needs "
            "--calibration.",
            rich_help_panel=PANEL,
        ),
    ] = "fp32",
    layer_precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Precision of the layers of a name or pattern. Repeatable.",
            metavar="PATTERN=PRECISION",
            rich_help_panel=PANEL,
        ),
    ] = None,
    strict_types: Annotated[
        bool,
        typer.Option(
            "--strict-types", help="Obey --layer-precision or fail.", rich_help_panel=PANEL
        ),
    ] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Calibration data: an .npz, a folder of images (see --image-size), or a "
            "calibration cache.",
            metavar="PATH",
            rich_help_panel=PANEL,
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="A Python function of an engine that gives its accuracy, larger is better, or "
            "that of each sample: FILE.py:NAME or MODULE:NAME.",
            metavar="FILE.py:NAME",
            rich_help_panel=PANEL,
        ),
    ] = None,
    accuracy_budget: Annotated[
        float | None,
        typer.Option(
            help="What INT8 may cost, in the unit of --evaluate.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    allow_fallback: Annotated[
        bool,
        typer.Option(
            "--allow-fallback/--no-fallback",
            help="Whether an op without a kernel may run by its NumPy reference, or is an error.",
            rich_help_panel=PANEL,
        ),
    ] = True,
    max_workspace_size: Annotated[
        str | None,
        typer.Option(
            help="Most workspace of a tactic: bytes, 64MB, 64MiB.",
            metavar="BYTES",
            rich_help_panel=PANEL,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads. (default: all cores)", min=1, rich_help_panel=PANEL),
    ] = None,
    tuning_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time for measuring; 0: heuristics only. (default: by the size of the network)",
            min=0,
            rich_help_panel=PANEL,
        ),
    ] = None,
    timing_cache: Annotated[
        str | None,
        typer.Option(
            help="File of measured times. (default: the user's)",
            metavar="PATH",
            rich_help_panel=PANEL,
        ),
    ] = None,
    progress: Annotated[
        bool, typer.Option(help="Whether to show progress.", rich_help_panel=PANEL)
    ] = True,
) -> BuildOptions:
    return BuildOptions(
        {
            "inputs": parse_inputs(input or []) or None,
            "outputs": output_name or None,
            "device": device or "cpu",
            "precision": _precision(precision),
            "layer_precision": parse_pairs(layer_precision or [], "PATTERN=PRECISION") or None,
            "strict_types": strict_types,
            "calibration": calibration,
            "evaluate": _function(evaluate) if evaluate else None,
            "accuracy_budget": accuracy_budget,
            "allow_fallback": allow_fallback,
            "max_workspace_size": parse_bytes(max_workspace_size) if max_workspace_size else None,
            "threads": threads,
            "tuning_seconds": tuning_seconds,
            "timing_cache": timing_cache,
            "progress": progress,
        },
        device,
    )


def with_build_options(*without: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the command gets these flags in place of its parameter `options`.

    Parameters
    ----------
    without : str
        Flags to leave out, where the command has its own of that name.
    """
    images = keyword_parameters(image_flags)
    flags = [*(p for p in keyword_parameters(_flags) if p.name not in without), *images]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = [p for p in keyword_parameters(function) if p.name != "options"]
        names = {p.name for p in flags}

        @functools.wraps(function)
        def wrapper(**given: Any) -> Any:
            chosen = {name: given.pop(name) for name in list(given) if name in names}
            prepared = {p.name: chosen.pop(p.name) for p in images if p.name in chosen}
            options = replace(_flags(**chosen), images=image_flags(**prepared))
            return function(**given, options=_with_images(options))

        wrapper.__signature__ = inspect.Signature([*own, *flags])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *flags)}
        return wrapper

    return decorate


def _with_images(options: BuildOptions) -> BuildOptions:
    """The options with the images in place of the name of their folder."""
    path = options.arguments["calibration"]
    if path is None:
        return options
    data = as_data(path, options.images, "--calibration")
    return replace(options, arguments={**options.arguments, "calibration": data})


def keyword_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """A command's parameters, by keyword only, their annotations evaluated."""
    return [
        p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function, eval_str=True).parameters.values()
    ]


def _precision(text: str) -> str | set[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    return names[0] if len(names) == 1 else set(names)


def _function(reference: str) -> Callable[..., Any]:
    """The function that ``FILE.py:NAME`` or ``MODULE:NAME`` names."""
    place, colon, name = reference.rpartition(":")
    if not (place and colon and name):
        raise typer.BadParameter(f"{reference!r} names no function; write FILE.py:NAME")
    if place.endswith(".py"):
        if not Path(place).is_file():
            raise typer.BadParameter(f"there is no file {place!r}")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise typer.BadParameter(f"{place!r} cannot be imported: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise typer.BadParameter(f"{place} has no function {name!r}")
    return function
