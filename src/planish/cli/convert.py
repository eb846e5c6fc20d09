"""``planish convert``: a SavedModel with Planish engines in it, as TF-TRT made them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import Json, command
from planish.cli.shapes import parse_bytes, parse_inputs
from planish.errors import CalibrationError, ModelError

if TYPE_CHECKING:
    import numpy as np

EPILOG = """Examples

planish convert saved_model/ optimized/

planish convert saved_model/ optimized/ --input x=8x224x224x3

planish convert saved_model/ optimized/ --precision int8 --calibration images.npz

The result is a SavedModel that TensorFlow runs after `import planish.tensorflow`. What Planish
cannot run stays in TensorFlow. With --input engines for these shapes are built now, and not when
the model first sees them."""


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
    precision: Annotated[str, typer.Option(help="fp32, fp16, bf16 or int8.")] = "fp32",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For int8: an .npz of inputs by name, or an .npy."),
    ] = None,
    minimum_segment_size: Annotated[
        int, typer.Option(help="Fewest ops that become an engine.")
    ] = 3,
    max_workspace_size: Annotated[
        str, typer.Option(metavar="BYTES", help="Most workspace: bytes, 64MB, 64MiB.")
    ] = "1GiB",
    tags: Annotated[str, typer.Option(help="Tags of the graph, with commas.")] = "serve",
    signature: Annotated[str, typer.Option(help="The signature to convert.")] = "serving_default",
    json_output: Json = False,
) -> dict[str, Any]:
    """Converts a SavedModel into one that runs Planish engines inside TensorFlow."""
    shapes = parse_inputs(input or [])
    if not all(
        isinstance(s, tuple) and all(isinstance(d, int) for d in s) for s in shapes.values()
    ):
        raise typer.BadParameter("--input must give sizes: an engine is built for exactly these")
    if Path(saved_model).resolve() == Path(output).resolve():
        raise ModelError(
            "The result would overwrite the model",
            where=output,
            cure="pass another folder as OUT_DIR",
        )
    from planish.tensorflow import trt_convert

    converter = trt_convert.TrtGraphConverterV2(
        input_saved_model_dir=saved_model,
        input_saved_model_tags=tags.split(","),
        input_saved_model_signature_key=signature,
        precision_mode=precision.upper(),
        minimum_segment_size=minimum_segment_size,
        max_workspace_size_bytes=parse_bytes(max_workspace_size),
    )
    function = converter.convert(
        calibration_input_fn=(lambda: _calibration(calibration)) if calibration else None
    )
    if shapes:
        converter.build(input_fn=lambda: iter([_example(function, shapes)]))
    converter.save(output)
    if not json_output:
        converter.summary(print_fn=lambda text="": typer.echo(text))
        typer.echo(f"saved {output}")
    nodes = list(function.graph.as_graph_def().node)
    return {
        "output": output,
        "precision": precision,
        "engines": [n.name for n in nodes if n.op == "PlanishEngine"],
        "nodes": len(nodes),
    }


def _example(function: Any, shapes: dict[str, Any]) -> dict[str, Any]:
    """Random inputs of these shapes, for the signature's inputs.

    Raises
    ------
    ModelError
        A name is not an input of the signature, or one is missing.
    """
    from planish.cli.arrays import random_array

    specs = function.structured_input_signature[1]
    if set(shapes) != set(specs):
        raise ModelError(
            "--input does not name the inputs of the signature",
            where=", ".join(shapes),
            why=f"they are {', '.join(specs)}",
            cure="give the shape of each",
        )
    import tensorflow as tf

    return {
        name: tf.constant(random_array(shapes[name], spec.dtype.as_numpy_dtype))
        for name, spec in specs.items()
    }


def _calibration(path: str) -> Iterator[dict[str, np.ndarray] | tuple[np.ndarray]]:
    """The inputs in a file, in batches of one."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            "The calibration file cannot be read",
            where=path,
            why=str(error),
            cure="write it with numpy.savez, an array [images, …] for each input",
        ) from error
    if isinstance(loaded, np.ndarray):
        for i in range(len(loaded)):
            yield (loaded[i : i + 1],)
        return
    arrays = dict(loaded)
    for i in range(min(map(len, arrays.values()))):
        yield {name: array[i : i + 1] for name, array in arrays.items()}
