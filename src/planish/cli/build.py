"""``planish build``: a model becomes a plan file."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import Json, command, note, table
from planish.cli.models import PLAN_SUFFIX, describe
from planish.cli.options import BuildOptions, with_build_options
from planish.errors import InputError

if TYPE_CHECKING:
    from planish.runtime.engine import Engine

EPILOG = """Examples

planish build saved_model/ -o m.plan

planish build model.onnx --input x=1..32x3x224x224 --tuning-seconds 60

planish build frozen.pb --output-name logits --threads 1 --json

The model may be a SavedModel folder, a frozen graph (.pb), a Keras file (.keras, .h5) or an ONNX
file. What was measured is kept in a timing cache: building again is quick."""


@command
@with_build_options()
def build(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="The plan file. (default: the model's name with .plan, in this folder)",
        ),
    ] = None,
    json_output: Json = False,
    *,
    options: BuildOptions,
) -> dict[str, Any]:
    """Builds the fastest plan for a model and saves it."""
    import planish

    path = Path(output) if output else Path(f"{Path(model).resolve().stem}{PLAN_SUFFIX}")
    check_writable(path)
    engine = planish.build(model, **options.arguments)
    engine.save(path)
    size = path.stat().st_size
    if not json_output:
        typer.echo(engine.summary())
        show_report(engine.report)
        typer.echo(f"saved {path} ({size / 1e6:.1f} MB)")
    return {"plan": str(path), "bytes": size, **engine_as_dict(engine)}


def check_writable(path: Path) -> None:
    """Complains before the work if its result could not be kept.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written, or the path is a folder.
    """
    folder = path.absolute().parent
    why = ""
    if path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        why = f"the folder {folder} cannot be written"
    if why:
        raise InputError(
            "The result could not be written", where=str(path), why=why, cure="pass another path"
        )


def engine_as_dict(engine: Engine) -> dict[str, Any]:
    """An engine for scripts."""
    return {
        "device": engine.device,
        "precision": engine.precision,
        "inputs": [describe(i) for i in engine.inputs],
        "outputs": [describe(o) for o in engine.outputs],
        "layers": len(engine.plan.steps),
        "report": dataclasses.asdict(engine.report),
    }


def show_precisions(report: Any) -> None:
    """Prints what became of INT8 and FP8, where they were permitted."""
    if not (report.quantized or report.accuracy):
        return
    others = len(report.not_quantized)
    typer.echo(f"{len(report.quantized)} layers compute in 8 bits, {others} in floats")
    if report.accuracy:
        scores = ", ".join(f"{name} {score:g}" for name, score in report.accuracy.items())
        typer.echo(f"accuracy: {scores}")
    if report.bought:
        table(
            ["kept in FP32 for accuracy", ">microseconds", ">gain"],
            [(k.layer, f"{1e6 * k.seconds:.1f}", f"{k.gain:g}") for k in report.bought],
        )
    if report.doubt:
        typer.echo(report.doubt)


def show_report(report: Any) -> None:
    """Prints what a build did."""
    tuning = report.tuning
    table(
        ["stage", ">seconds"],
        [(stage, f"{seconds:.2f}") for stage, seconds in report.seconds.items()],
    )
    typer.echo(
        f"{report.nodes_imported} nodes became {report.nodes_optimized}, run as {report.layers} "
        f"layers; {tuning.measured} tactics measured, {tuning.cached} known from the timing cache"
    )
    show_precisions(report)
    if not tuning.complete:
        note("not everything was measured: --tuning-seconds gives it more time")
    for name, reason in report.fallbacks.items():
        note(f"runs by its NumPy reference: {name} ({reason})")
