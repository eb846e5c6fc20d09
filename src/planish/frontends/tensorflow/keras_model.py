"""Keras models and the files that hold them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from planish.errors import ModelError
from planish.frontends.tensorflow.inputs import ModelInput
from planish.frontends.tensorflow.model import LoadedModel, ModelOutput, tensorflow
from planish.frontends.tensorflow.saved_model import from_function


def from_keras_file(path: Path) -> LoadedModel:
    """A model in a ``.keras`` or ``.h5`` file; errors as `read_keras_file` and `from_keras`."""
    return from_keras(read_keras_file(path), str(path))


def read_keras_file(path: Path) -> Any:
    """The Keras model in a ``.keras`` or ``.h5`` file.

    Raises
    ------
    ModelError
        The file is damaged or needs classes that are not known here.
    """
    keras = tensorflow().keras
    legacy = path.suffix.lower() != ".keras"
    custom = {"DepthwiseConv2D": _depthwise_without_groups(keras)} if legacy else {}
    try:
        return keras.models.load_model(str(path), compile=False, custom_objects=custom)
    except Exception as error:  # whatever zipfile, h5py, json or Keras raise
        why = f"{type(error).__name__}: {str(error)[:500]}"
        if not legacy and not zipfile.is_zipfile(path):
            why = "it is cut short, or not a .keras file, which is a zip archive"
        raise ModelError(
            f"{path.name} cannot be read as a Keras model",
            where=str(path),
            why=why,
            cure="copy the file again; if it has custom layers, load it with "
            "keras.models.load_model(custom_objects=...) and pass the model",
        ) from error


def _depthwise_without_groups(keras: Any) -> type:
    """Keras 2 wrote a key `groups` into this layer's configuration that Keras 3 refuses."""

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        def __init__(self, *args: Any, groups: int = 1, **options: Any) -> None:
            super().__init__(*args, **options)

    return DepthwiseConv2D


def from_keras(model: Any, where: str = "") -> LoadedModel:
    """A Keras model in inference mode. Inputs and outputs bear the layers' names.

    Raises
    ------
    ModelError
        The model's inputs are unknown because it has never been called.
    """
    tf = tensorflow()
    try:
        symbolic = list(model.inputs or ())
    except AttributeError:
        symbolic = []
    if not symbolic:
        raise ModelError(
            f"The Keras model {model.name!r} has no defined inputs",
            where=where or type(model).__name__,
            why="it is a subclassed model, or was never built",
            cure="save it with model.export(folder) or tf.saved_model.save and pass the folder, "
            "or pass a concrete function",
        )
    names = _distinct([t.name.partition(":")[0] for t in symbolic])
    specs = [
        tf.TensorSpec(tuple(t.shape), t.dtype, name=f"input_{i}") for i, t in enumerate(symbolic)
    ]
    single = len(specs) == 1

    def call(*tensors: Any) -> list[Any]:
        outputs = model(tensors[0] if single else list(tensors), training=False)
        return tf.nest.flatten(outputs)

    function = tf.function(call, input_signature=specs, autograph=False)
    with warnings.catch_warnings():  # Keras warns of lists where it wants its own structures
        warnings.simplefilter("ignore")
        loaded = from_function(function.get_concrete_function())
    inputs = tuple(
        ModelInput(name, i.tensor, i.shape, i.dtype)
        for name, i in zip(names, loaded.inputs, strict=True)
    )
    outputs = tuple(
        ModelOutput(name, o.tensor)
        for name, o in zip(_output_names(model, len(loaded.outputs)), loaded.outputs, strict=True)
    )
    return replace(loaded, inputs=inputs, outputs=outputs, name=model.name)


def _output_names(model: Any, count: int) -> list[str]:
    names = [str(n).partition(":")[0] for n in getattr(model, "output_names", None) or ()]
    if len(names) != count:
        names = [f"output_{i}" for i in range(count)] if count > 1 else ["output"]
    return _distinct(names)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered where they occur again."""
    result: list[str] = []
    for name in names:
        number, candidate = 0, name
        while candidate in result:
            number += 1
            candidate = f"{name}_{number}"
        result.append(candidate)
    return result
