"""What the command ``planish convert`` does, as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from planish.tensorflow import report
from planish.tensorflow.conversion import Converted
from planish.tensorflow.converter import TrtGraphConverterV2
from planish.tensorflow.converter_v1 import TrtGraphConverter
from planish.tensorflow.parameters import DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES
from planish.tensorflow.tensorboard import write_graphs


def convert_saved_model(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    tags: Iterable[str] = ("serve",),
    signature: str = "serving_default",
    precision: str = "FP32",
    max_workspace_size: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    minimum_segment_size: int = 3,
    maximum_cached_engines: int = 1,
    convert_tf1_model: bool = False,
    input_fn: Callable[[], Iterable[Any]] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    print_fn: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Converts a SavedModel and writes the result.

    Parameters
    ----------
    input_dir, output_dir : path
    tags, signature
        Which function of the SavedModel.
    precision, max_workspace_size, minimum_segment_size, maximum_cached_engines
        See `TrtConversionParams`.
    convert_tf1_model : bool
        Whether to write a SavedModel of TensorFlow 1, with the plans in its graph.
    input_fn : callable, optional
        Yields inputs of the shapes to tune for.
    tensorboard : path, optional
        Where to write pictures of the graphs before and after.
    print_fn : callable, optional
        Prints the summary line by line.

    Returns
    -------
    dict
        ``engines`` (name to number of nodes), ``converted`` and ``native`` (numbers of nodes),
        ``reasons`` (why nodes stayed in TensorFlow, by name) and ``report`` (as text).

    Raises
    ------
    PlanishError
        An argument is wrong, or the model cannot be read or converted.
    """
    common: dict[str, Any] = {
        "input_saved_model_dir": input_dir,
        "input_saved_model_tags": list(tags),
        "input_saved_model_signature_key": signature,
        "precision_mode": precision,
        "max_workspace_size_bytes": max_workspace_size,
        "minimum_segment_size": minimum_segment_size,
        "maximum_cached_engines": maximum_cached_engines,
    }
    converter: TrtGraphConverter | TrtGraphConverterV2
    if convert_tf1_model:
        converter = TrtGraphConverter(**common)
        converter.convert()
    else:
        converter = TrtGraphConverterV2(**common)
        converter.convert()
        if input_fn is not None:
            converter.build(input_fn)
        if print_fn is not None:
            converter.summary(print_fn=print_fn)
    converter.save(output_dir)
    if tensorboard is not None:
        write_graphs(tensorboard, converter)
    return _told(converter.converted)


def _told(converted: Converted) -> dict[str, Any]:
    native = report.native_nodes(converted)
    return {
        "engines": {e.name: e.segment.size for e in converted.engines},
        "converted": sum(e.segment.size for e in converted.engines),
        "native": len(native),
        "reasons": {name: reason for name, _, reason in native},
        "report": report.text(converted),
    }
