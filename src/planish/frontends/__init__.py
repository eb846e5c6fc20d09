"""Frontends: a trained model of some framework becomes a `Graph`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import DeviceError, InputError, ModelError, PlanishError
from planish.graph.graph import Graph
from planish.profile import TensorSpec


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
    specs = None if inputs is None else {n: TensorSpec.of(given) for n, given in inputs.items()}
    try:
        graph = _import(model, specs, outputs, allow_fallback)
        _check_dtypes(graph, specs or {})
        return graph
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
    inputs: Mapping[str, TensorSpec] | None,
    outputs: Sequence[str] | None,
    allow_fallback: bool,
) -> Graph:
    shapes = None if inputs is None else {name: spec.shape for name, spec in inputs.items()}
    if _is_onnx(model):
        from planish.frontends.onnx.convert import import_model as import_onnx

        return import_onnx(model, inputs=shapes, outputs=outputs, allow_fallback=allow_fallback)
    if _is_tensorflow(model):
        from planish.frontends.tensorflow.convert import import_model as import_tensorflow

        return import_tensorflow(model, inputs=shapes, outputs=outputs)
    if _is_torch(model):
        from planish.frontends.torch.convert import import_model as import_torch

        return import_torch(model, inputs=inputs, outputs=outputs, allow_fallback=allow_fallback)
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
        why="it is neither a SavedModel folder, .pb, .keras, .h5, .onnx or .pt2 file, nor a Keras "
        "model, ONNX ModelProto, PyTorch module or exported program",
        cure="export it with torch.export.save, or pass the module itself: this file holds weights "
        "or pickled Python"
        if _is_pickle(model)
        else "pass one of these",
    )


def _check_dtypes(graph: Graph, inputs: Mapping[str, TensorSpec]) -> None:
    for value in graph.inputs:
        wanted = inputs[value.name].dtype if value.name in inputs else None
        if wanted is not None and np.dtype(wanted) != value.dtype.numpy:
            raise InputError(
                f"Input {value.name!r} is {value.dtype.numpy.name}, not {np.dtype(wanted).name}",
                where="inputs=",
                why="that is its dtype in the model",
                cure="leave the dtype out, or change the model",
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
    return bool(_packages(model) & {"keras", "tensorflow", "tf_keras"})


def _is_torch(model: Any) -> bool:
    if isinstance(model, str | os.PathLike):
        return Path(model).suffix.lower() == ".pt2" and Path(model).is_file()
    return "torch" in _packages(model)


def _is_pickle(model: Any) -> bool:
    return isinstance(model, str | os.PathLike) and Path(model).suffix in (".pt", ".pth", ".bin")


def _packages(model: Any) -> set[str]:
    """The packages that define a model's class and its base classes."""
    return {kind.__module__.split(".")[0] for kind in type(model).__mro__}
