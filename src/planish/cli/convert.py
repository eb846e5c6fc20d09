"""``planish convert``: a SavedModel with Planish engines in it, as TF-TRT made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.cli.console import Json, command, note
from planish.cli.shapes import parse_bytes, parse_inputs
from planish.errors import InputError

EPILOG = """Examples

planish convert saved_model/ optimized/

planish convert saved_model/ optimized/ --input x=8x224x224x3

planish convert saved_model/ optimized/ --minimum-segment-size 10 --tensorboard logs/

The result is a SavedModel that TensorFlow loads and runs after `import planish.tensorflow`. What
Planish cannot run stays in TensorFlow. With --input, engines for these shapes are built now, and
not when the model first sees them."""


@command
def convert(
    saved_model: Annotated[
        str, typer.Argument(metavar="SAVED_MODEL_DIR", help="The SavedModel's folder.")
    ],
    output: Annotated[str, typer.Argument(metavar="OUT_DIR", help="The folder to write.")],
    input: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHAPE", help="Shapes to build engines for, NAME=8x224x224x3. Repeatable."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="Permitted precision.")] = "fp32",
    max_workspace_size: Annotated[
        str, typer.Option(metavar="BYTES", help="Most workspace: bytes, 64MB, 64MiB.")
    ] = "1GiB",
    minimum_segment_size: Annotated[
        int, typer.Option(help="Fewest ops that become an engine.")
    ] = 3,
    maximum_cached_engines: Annotated[
        int, typer.Option(min=1, help="Engines kept for each segment, by input shapes.")
    ] = 1,
    tags: Annotated[str, typer.Option(help="Tags of the graph, with commas.")] = "serve",
    signature: Annotated[str, typer.Option(help="The signature to convert.")] = "serving_default",
    convert_tf1_model: Annotated[
        bool,
        typer.Option(
            "--convert-tf1-model", help="Write a SavedModel of TensorFlow 1, plans in its graph."
        ),
    ] = False,
    tensorboard: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Write the graphs before and after for TensorBoard."),
    ] = None,
    json_output: Json = False,
) -> dict[str, Any]:
    """Converts a SavedModel into one that runs Planish engines inside TensorFlow."""
    shapes = parse_inputs(input or [])
    if not all(
        isinstance(shape, tuple) and all(isinstance(d, int) for d in shape)
        for shape in shapes.values()
    ):
        raise typer.BadParameter("--input must give sizes: an engine is built for exactly these")
    if Path(saved_model).resolve() == Path(output).resolve():
        raise InputError(
            "The result would overwrite the model", where=output, cure="pass another OUT_DIR"
        )
    size = parse_bytes(max_workspace_size)
    note("importing TensorFlow")
    from planish.tensorflow import convert_saved_model

    told = convert_saved_model(
        saved_model,
        output,
        tags=tags.split(","),
        signature=signature,
        precision=precision.upper(),
        max_workspace_size=size,
        minimum_segment_size=minimum_segment_size,
        maximum_cached_engines=maximum_cached_engines,
        convert_tf1_model=convert_tf1_model,
        input_fn=(lambda: _examples(saved_model, tags, signature, shapes)) if shapes else None,
        tensorboard=tensorboard,
    )
    if not json_output:
        typer.echo(told["report"])
        typer.echo(f"saved {output}")
    return {"output": output, **told}


def _examples(
    folder: str, tags: str, signature: str, shapes: Mapping[str, Any]
) -> Iterable[dict[str, Any]]:
    """One set of random inputs of these shapes.

    Raises
    ------
    InputError
        The names are not those of the signature's inputs.
    """
    import tensorflow as tf
    from planish.cli.arrays import random_array

    loaded = tf.saved_model.load(folder, tags=tags.split(","))
    specs = loaded.signatures[signature].structured_input_signature[1]
    if set(shapes) != set(specs):
        raise InputError(
            "--input does not name the inputs of the signature",
            where=", ".join(shapes),
            why=f"they are {', '.join(specs)}",
            cure="give the shape of each",
        )
    yield {
        name: tf.constant(random_array(shapes[name], spec.dtype.as_numpy_dtype))
        for name, spec in specs.items()
    }
