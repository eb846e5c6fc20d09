"""A model as every way of reading one gives it: a GraphDef with named ends, its weights beside it.

The readers of files and objects (`load`, `saved_model`, `keras_model`) all import this module, and
none of them another one that imports it back.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from planish.errors import ModelError
from planish.frontends.tensorflow.inline import Inlined
from planish.frontends.tensorflow.inputs import ModelInput


class ModelOutput(NamedTuple):
    """An output of a model: the user's name and the tensor's name in the graph."""

    name: str
    tensor: str


@dataclass(frozen=True)
class LoadedModel:
    """A model as a graph of constants and ops, with the names of its ends."""

    graph_def: Any
    inputs: tuple[ModelInput, ...]
    outputs: tuple[ModelOutput, ...]
    name: str = "graph"
    has_signature: bool = False
    """Whether the ends were declared, and not found by looking for loose ends."""
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The arrays of nodes that only stand for them; see `weights`."""


def tensorflow() -> Any:
    """The module tensorflow, imported quietly.

    Raises
    ------
    ModelError
        It is not installed.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ModelError(
            "TensorFlow is needed to read this model",
            why=str(error),
            cure="pip install planish[tensorflow]",
        ) from error
    return tf


def inlined(model: LoadedModel) -> LoadedModel:
    """The model without calls of functions in its library."""
    if not model.graph_def.library.function:
        return model
    result = Inlined(model.graph_def)
    return replace(
        model,
        graph_def=result.graph_def,
        outputs=tuple(ModelOutput(o.name, result.tensor(o.tensor)) for o in model.outputs),
    )
