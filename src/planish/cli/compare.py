"""``planish compare``: the outputs of a plan against those of the original framework.

With ``--data`` layer by layer against Planish's own float32 instead: see `planish.cli.layers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import Json, ThresholdMissedError, command, note, table
from planish.cli.layers import (
    JudgedBy,
    as_dict,
    compare_with_data,
    refuse_mixed,
    show,
    worst_output,
)
from planish.cli.models import open_engine, sizes
from planish.cli.options import BuildOptions, with_build_options
from planish.cli.shapes import parse_pairs

if TYPE_CHECKING:
    import numpy as np

    from planish.runtime.engine import Engine

EPILOG = """Examples

planish compare saved_model/ m.plan

planish compare model.onnx m.plan --input images.npy --max-error 1e-4

planish compare frozen.pb --input input=4x224x224x3

planish compare model.onnx half.plan --layers

planish compare model.onnx int8.plan --data images/ --image-size 224 --image-mean 127.5
--image-scale 1/127.5 --labels labels.csv

TensorFlow models are run by TensorFlow, ONNX models by ONNX Runtime, or by onnx.reference where
that is not installed. Without a plan, one is built for the comparison.

With --data the reference is Planish's own FP32, and every layer is judged: what it adds to the
error, what it inherits, and why."""


@command
@with_build_options("input")
def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The original model.")],
    plan: Annotated[
        str | None, typer.Argument(metavar="PLAN", help="A plan of it; left out: one is built.")
    ] = None,
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="An input: x.npy, name=x.npy, inputs.npz, or name=4x3x224x224 for random values "
            "of that shape. Repeatable.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Compare layer by layer on these data: an .npz, or a folder of images (see "
            "--image-size).",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --data: the classes. An .npy, or a text with a number, or FILE NAME,NUMBER, "
            "a line.",
        ),
    ] = None,
    classes_before: Annotated[
        int,
        typer.Option(
            help="How many classes the model has before the first label: 1 for a background class.",
            min=0,
        ),
    ] = 0,
    label_output: Annotated[
        str | None,
        typer.Option(help="The output that holds the scores. (default: the only one)"),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(help="Exit with 3 if an output deviates by more, relative to its scale."),
    ] = None,
    python_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER=PYTHON",
            help="The Python of another environment that has tensorflow or onnxruntime.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs.")] = 0,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="With --data: show all layers. Otherwise also run the plan by NumPy references, "
            "and name the layers whose values overflow their precision.",
        ),
    ] = False,
    json_output: Json = False,
    *,
    options: BuildOptions,
) -> dict[str, Any]:
    """Shows how far a plan's outputs are from the original's."""
    from planish.cli.arrays import read_inputs
    from planish.cli.deviation import deviations

    refuse_mixed(data, labels, {"--input": input, "--python-for": python_for, "--seed": seed})
    if data is not None:
        engine = open_engine(plan or model, options)
        judged_by = JudgedBy(labels, classes_before, label_output)
        compared = compare_with_data(model, engine, data, judged_by, options)
        if not json_output:
            show(compared, everything=layers)
        name, error = worst_output(compared)
        return _within(name, error, max_error, as_dict(compared))
    pythons = parse_pairs(python_for or [], "PEER=/path/to/python")
    engine = open_engine(plan or model, options)
    arrays, made = read_inputs(input or [], engine.inputs, sizes(engine), seed)
    if made:
        note(f"random values for {', '.join(made)} (pass --input to give real ones)")
    given = [arrays[i.name] for i in engine.inputs]
    name, references = _references(model, engine, given, pythons)
    results = engine(arrays)
    actual = list(results.values()) if isinstance(results, dict) else [results]
    found = deviations([o.name for o in engine.outputs], references, actual)
    if not json_output:
        table(
            ["output", ">largest", ">relative to scale", ">1 - cosine", ">same top-1"],
            [
                (
                    d.name,
                    f"{d.largest:.3g}",
                    f"{d.relative:.3g}",
                    f"{1 - d.cosine:.2g}",
                    "-" if d.top1 is None else f"{d.top1:.1%}",
                )
                for d in found
            ],
            title=f"Planish against {name}",
        )
    result = {
        "reference": name,
        "random_inputs": made,
        "outputs": [dataclasses.asdict(d) for d in found],
    }
    if layers:
        result["overflows"] = _overflows(engine, arrays, json_output)
    worst = max(found, key=lambda d: d.relative)
    return _within(worst.name, worst.relative, max_error, result)


def _within(name: str, error: float, limit: float | None, result: dict[str, Any]) -> dict[str, Any]:
    """The result, if its worst output is within the limit."""
    if limit is not None and not error <= limit:
        raise ThresholdMissedError(
            f"output {name!r} deviates by {error:.3g} of its scale, more than --max-error "
            f"{limit:g}",
            result,
        )
    return result


def _overflows(
    engine: Engine, arrays: Mapping[str, np.ndarray], json_output: bool
) -> list[dict[str, Any]]:
    """The layers whose values overflow; tells the user which to keep in fp32."""
    from planish.precision.overflow import find_overflows

    found = find_overflows(engine.plan.graph, arrays)
    if not json_output:
        for one in found:
            typer.echo(f"overflow in {one.layer}: {one}")
        if not found:
            typer.echo("no layer overflows on these inputs")
    if found:
        note(f"--layer-precision {found[0].layer}=fp32 keeps the first of them in FP32")
    return [{**dataclasses.asdict(one), "dtype": one.dtype.value} for one in found]


def _references(
    model: str, engine: Engine, arrays: list[np.ndarray], pythons: Mapping[str, str]
) -> tuple[str, list[np.ndarray]]:
    """The outputs of the original framework, and its name and version."""
    from planish.cli.peers.catalog import ModelFiles
    from planish.cli.peers.process import PeerError

    inputs = [i.name for i in engine.inputs]
    outputs = [o.name for o in engine.outputs]
    with ModelFiles(model, inputs, outputs, pythons) as files:
        if files.kind != "onnx":
            return _run(files, "tensorflow", arrays, pythons)
        try:
            return _run(files, "onnxruntime", arrays, pythons)
        except PeerError as error:
            note(f"onnx.reference stands in for ONNX Runtime: {error.what} ({error.why})")
            return _run(files, "onnx-reference", arrays, pythons)


def _run(
    files: Any, peer: str, arrays: list[np.ndarray], pythons: Mapping[str, str]
) -> tuple[str, list[np.ndarray]]:
    from planish.cli.peers.process import PeerProcess

    source = files.for_peer(peer)
    with PeerProcess(peer, python=pythons.get(peer)) as process:
        process.open(source.path, source.kind, source.inputs, source.outputs, threads=1)
        process.feed(arrays)
        return f"{peer} {process.version}", process.run()
