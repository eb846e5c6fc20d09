"""Frontends: a trained model of some framework becomes a `Graph`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.errors import DeviceError, ModelError, PlanishError
from planish.graph.graph import Graph


def import_model(
    model: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    allow_fallback: bool = True,
) -> Graph:
    """The graph of a model of any supported framework; see `planish.build` for the arguments.

    Raises
    ------
    ModelError
        The model cannot be read, or is of no kind that Planish knows.
    UnsupportedOpError
        It has an op that cannot be converted.
    DeviceError
        It does not fit into memory.
    """
    where = str(model) if isinstance(model, str | os.PathLike) else type(model).__name__
    try:
        return _import(model, inputs, outputs, allow_fallback)
    except PlanishError as error:
        if error.cure:
            raise
        raise type(error)(
            error.what,
            where=error.where or where,
            why=error.why,
            cure="check the shapes given in inputs=, and that the model's own framework runs it"
            if inputs
            else "check that the model's own framework runs it, or export it again",
        ) from error
    except MemoryError as error:
        raise DeviceError(
            "There is no memory to read the model",
            where=where,
            why=str(error),
            cure="use a machine with more memory",
        ) from error
    except Exception as error:  # files are untrusted: whatever they break is told as an error
        raise ModelError(
            "The model cannot be converted",
            where=where,
            why=f"{type(error).__name__}: {str(error)[:500]}",
            cure="check that the model's own framework runs it; if it does, please report this",
        ) from error


def _import(
    model: Any,
    inputs: Mapping[str, Any] | None,
    outputs: Sequence[str] | None,
    allow_fallback: bool,
) -> Graph:
    if _is_onnx(model):
        from planish.frontends.onnx.convert import import_model as import_onnx

        return import_onnx(model, inputs=inputs, outputs=outputs, allow_fallback=allow_fallback)
    if _is_tensorflow(model):
        from planish.frontends.tensorflow.convert import import_model as import_tensorflow

        return import_tensorflow(model, inputs=inputs, outputs=outputs)
    if isinstance(model, str | os.PathLike) and not Path(model).exists():
        raise ModelError(
            f"There is no model {str(model)!r}",
            where=str(model),
            why="no such file or folder",
            cure="check the path",
        )
    raise ModelError(
        "This is not a model Planish can read",
        where=str(model) if isinstance(model, str | os.PathLike) else type(model).__name__,
        why="it is neither a SavedModel folder, .pb, .keras, .h5 or .onnx file, nor a Keras model "
        "or ONNX ModelProto",
        cure="pass one of these",
    )


def _is_onnx(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        return Path(model).suffix.lower() == ".onnx" and Path(model).is_file()
    return type(model).__module__.startswith("onnx") and type(model).__name__ == "ModelProto"


def _is_tensorflow(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return path.is_dir() or (
            path.is_file() and path.suffix.lower() in (".pb", ".keras", ".h5", ".hdf5")
        )
    modules = {kind.__module__.split(".")[0] for kind in type(model).__mro__}
    return bool(modules & {"keras", "tensorflow", "tf_keras"})
