"""SavedModels and functions of TensorFlow 2, with the names of their signatures.

How their variables become weights is said in `freeze`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from planish.errors import ModelError, PlanishError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.freeze import (
    FrozenGraph,
    freeze_function,
    freeze_saved,
    freeze_session,
)
from planish.frontends.tensorflow.inputs import ModelInput, placeholder
from planish.frontends.tensorflow.model import LoadedModel, ModelOutput, tensorflow
from planish.frontends.tensorflow.saved_function import signature_function


def from_saved_model(folder: Path, tags: Sequence[str], signature: str) -> LoadedModel:
    """One signature of a SavedModel, of TensorFlow 1 or 2.

    Raises
    ------
    ModelError
        The folder is not a SavedModel, lacks the tags or signature, or cannot be loaded.
    """
    meta = _meta_graph(folder, tags)
    if signature not in meta.signature_def:
        raise _no_signature(folder, signature, meta.signature_def)
    with _as_model_error(folder):
        if meta.HasField("object_graph_def"):
            return _from_version_2(folder, meta, tags, signature)
        return _from_version_1(folder, tags, meta.signature_def[signature])


def _meta_graph(folder: Path, tags: Sequence[str]) -> Any:
    tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = folder / "saved_model.pb"
    if not file.exists():
        raise ModelError(
            f"{folder.name!r} is not a SavedModel",
            where=str(folder),
            why="the folder holds no saved_model.pb",
            cure="pass the folder that tf.saved_model.save wrote",
        )
    saved = SavedModel()
    try:
        saved.ParseFromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise ModelError(
            "saved_model.pb cannot be read",
            where=str(file),
            why=f"it is cut short or damaged ({error})",
            cure="copy or save the model again",
        ) from error
    for meta in saved.meta_graphs:
        if set(meta.meta_info_def.tags) == set(tags):
            return meta
    present = [", ".join(m.meta_info_def.tags) or "(none)" for m in saved.meta_graphs]
    raise ModelError(
        f"The SavedModel has no graph with the tags {', '.join(tags)}",
        where=str(folder),
        why=f"its graphs have the tags {' and '.join(present) or '(there is no graph)'}",
        cure="pass tags=",
    )


def _from_version_2(folder: Path, meta: Any, tags: Sequence[str], signature: str) -> LoadedModel:
    function = signature_function(meta, folder, signature)
    frozen = freeze_saved(function) if function else None
    if function and frozen:
        nodes = {n.name: n for n in function.graph_def.node}
        names = [graphdef.tensor_name(a)[0] for a in function.arguments]
        own = [placeholder(nodes[n], n) for n in names if n not in function.captures]
        return _model(frozen, own, sorted(meta.signature_def[signature].outputs), folder.name)
    loaded = tensorflow().saved_model.load(str(folder), tags=list(tags))
    model = from_function(loaded.signatures[signature], folder.name)
    del loaded  # it owns the variables until they are frozen
    return model


def _from_version_1(folder: Path, tags: Sequence[str], signature: Any) -> LoadedModel:
    v1 = tensorflow().compat.v1
    ends = sorted(signature.outputs.items())
    with v1.Session(graph=tensorflow().Graph()) as session:
        v1.saved_model.loader.load(session, list(tags), str(folder))
        frozen = freeze_session(session, [info.name for _, info in ends])
    inputs = tuple(
        ModelInput(
            name,
            info.name,
            graphdef.shape_of(info.tensor_shape),
            graphdef.dtype_of(info.dtype),
        )
        for name, info in sorted(signature.inputs.items())
    )
    outputs = tuple(
        ModelOutput(name, tensor) for (name, _), tensor in zip(ends, frozen.outputs, strict=True)
    )
    return LoadedModel(frozen.graph_def, inputs, outputs, folder.name, True, frozen.weights)


def from_function(function: Any, name: str = "graph") -> LoadedModel:
    """A concrete function with its variables as weights and its calls inlined."""
    captured = {inner.name for _, inner in function.graph.captures}
    own = [_declared(t) for t in function.inputs if t.name not in captured]
    names = _output_names(function.structured_outputs, [t.name for t in function.outputs])
    return _model(freeze_function(function), own, names, name)


def _model(
    frozen: FrozenGraph[Any], inputs: Sequence[ModelInput], outputs: Sequence[str], name: str
) -> LoadedModel:
    """A frozen function, its inputs called as the user called them."""
    users = {
        n.name: n.attr["_user_specified_name"].s.decode()
        for n in frozen.graph_def.node
        if "_user_specified_name" in n.attr
    }
    return LoadedModel(
        frozen.graph_def,
        tuple(i._replace(name=users.get(i.name, i.name)) for i in inputs),
        tuple(ModelOutput(o, t) for o, t in zip(outputs, frozen.outputs, strict=True)),
        name,
        True,
        frozen.weights,
    )


def _declared(tensor: Any) -> ModelInput:
    shape = tuple(tensor.shape.as_list()) if tensor.shape.rank is not None else None
    dtype = graphdef.dtype_of(tensor.dtype.as_datatype_enum)
    return ModelInput(graphdef.tensor_name(tensor.name)[0], tensor.name, shape, dtype)


def _output_names(structure: Any, tensors: Sequence[str]) -> list[str]:
    """Names of a function's outputs: keys of its dictionary, or the tensors' own."""
    if isinstance(structure, Mapping) and len(structure) == len(tensors):
        return sorted(structure)
    return [t.removesuffix(":0") for t in tensors]


def _no_signature(folder: Path, signature: str, present: Mapping[str, Any]) -> ModelError:
    names = [n for n in present if not n.startswith("__")]
    return ModelError(
        f"The SavedModel has no signature {signature!r}",
        where=str(folder),
        why=f"it has {', '.join(map(repr, sorted(names))) or 'none'}",
        cure="pass signature=, or save the model with signatures=",
    )


@contextmanager
def _as_model_error(folder: Path) -> Iterator[None]:
    """Whatever TensorFlow raises while it loads files becomes a `ModelError`."""
    try:
        yield
    except PlanishError:
        raise
    except Exception as error:
        raise ModelError(
            f"The SavedModel {folder.name!r} cannot be loaded",
            where=str(folder),
            why=f"{type(error).__name__}: {str(error)[:500]}",
            cure="check that its files are complete (saved_model.pb, variables/), or save it again",
        ) from error
