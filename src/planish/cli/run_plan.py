"""``planish run``: one inference, of a plan or a model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.cli.console import Json, command, note, table
from planish.cli.models import DeviceCode, describe, open_engine, sizes
from planish.cli.options import BuildOptions, with_build_options

EPILOG = """Examples

planish run m.plan --input x.npy --output y.npy

planish run m.plan --input ids=ids.npy --input mask=mask.npy --output results.npz

planish run model.onnx --input x=4x3x224x224

Inputs that are not given are random. Arrays are never converted: their dtype must be the
engine's."""


@command
@with_build_options("input")
def run(
    plan: Annotated[
        str, typer.Argument(metavar="PLAN_OR_MODEL", help="A plan file, or a model to build.")
    ],
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="An input: x.npy, name=x.npy, inputs.npz, or "
            "name=4x3x224x224 for random values of that shape. Repeatable.",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to write: .npy for one output, .npz."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs.")] = 0,
    allow_device_code: DeviceCode = False,
    json_output: Json = False,
    *,
    options: BuildOptions,
) -> dict[str, Any]:
    """Runs a plan once, on arrays from files or on random ones."""
    from planish.cli.arrays import read_inputs, write_outputs

    engine = open_engine(plan, options, allow_device_code)
    arrays, made = read_inputs(input or [], engine.inputs, sizes(engine), seed)
    if made:
        note(f"random values for {', '.join(made)} (pass --input to give real ones)")
    with engine.create_execution_context(options.arguments["threads"]) as context:
        context.execute(arrays)
        start = time.perf_counter()
        results = context.execute(arrays)
        milliseconds = (time.perf_counter() - start) * 1e3
    if not isinstance(results, dict):
        results = {engine.outputs[0].name: results}
    if output:
        write_outputs(Path(output), results)
    if not json_output:
        table(
            ["output", "type", ">least", ">mean", ">greatest"],
            [(name, f"{a.dtype}{list(a.shape)}", *_statistics(a)) for name, a in results.items()],
        )
        typer.echo(f"{milliseconds:.3f} ms (second run)" + (f"; wrote {output}" if output else ""))
    return {
        "milliseconds": milliseconds,
        "inputs": [
            {**describe(i), "shape": list(arrays[i.name].shape), "random": i.name in made}
            for i in engine.inputs
        ],
        "outputs": [
            {"name": n, "dtype": str(a.dtype), "shape": list(a.shape)} for n, a in results.items()
        ],
        "output_file": output,
    }


def _statistics(array: Any) -> list[str]:
    if not array.size:
        return ["-", "-", "-"]
    return [f"{float(f()):.6g}" for f in (array.min, array.mean, array.max)]
