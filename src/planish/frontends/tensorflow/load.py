"""Reading models of every kind TensorFlow has: the way in, files of frozen graphs, bare graphs.

What has functions and variables is read by `saved_model` and `keras_model`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.errors import ModelError
from planish.frontends.tensorflow import graphdef, keras_model, saved_model
from planish.frontends.tensorflow.inputs import placeholder
from planish.frontends.tensorflow.model import LoadedModel, ModelOutput, inlined, tensorflow


def load_graph_def(
    source: Any, *, tags: Sequence[str] = ("serve",), signature: str = "serving_default"
) -> LoadedModel:
    """Reads and freezes a model.

    Parameters
    ----------
    source
        A path: of a frozen graph (``.pb``), a SavedModel folder (of TensorFlow 1 or 2), a Keras
        file (``.keras``, ``.h5``); or an object: a GraphDef, a Keras model, a concrete function.
    tags, signature
        Which graph and which function of a SavedModel.

    Raises
    ------
    ModelError
        There is no such file or signature, or it is not a model, or it is damaged.
    """
    if isinstance(source, str | os.PathLike):
        return _load_path(Path(source), tags, signature)
    if hasattr(source, "node") and hasattr(source, "library"):
        return from_graph_def(source)
    if hasattr(source, "as_graph_def"):
        return from_graph_def(source.as_graph_def())
    if hasattr(source, "structured_outputs") and hasattr(source, "graph"):
        return saved_model.from_function(source)
    if any(base.__module__.split(".")[0] in _KERAS for base in type(source).__mro__):
        return keras_model.from_keras(source)
    raise ModelError(
        f"{type(source).__name__} is not a TensorFlow model",
        why="it is neither a path nor a GraphDef, Keras model or concrete function",
        cure="pass one of these",
    )


_KERAS = {"keras", "tf_keras"}


def _load_path(path: Path, tags: Sequence[str], signature: str) -> LoadedModel:
    if not path.exists():
        raise ModelError(
            f"There is no file {str(path)!r}", where=str(path), cure="check the path of the model"
        )
    if path.name == "saved_model.pb":
        path = path.parent
    if path.is_dir():
        return saved_model.from_saved_model(path, tags, signature)
    if path.suffix.lower() in (".keras", ".h5", ".hdf5"):
        return keras_model.from_keras_file(path)
    return _from_frozen(path)


def _from_frozen(path: Path) -> LoadedModel:
    tensorflow()
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.graph_pb2 import GraphDef

    graph_def = GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ModelError(
            f"{path.name} cannot be read as a frozen graph",
            where=str(path),
            why=f"it is cut short, or not a TensorFlow GraphDef ({error})",
            cure="copy or freeze the model again; of a SavedModel pass the folder, "
            "of an ONNX model a file that ends in .onnx",
        ) from error
    return from_graph_def(graph_def, path.stem, str(path))


def from_graph_def(graph_def: Any, name: str = "graph", where: str = "") -> LoadedModel:
    """A bare graph: inputs are its placeholders, outputs the nodes that nobody reads.

    Raises
    ------
    ModelError
        It has no nodes, or nodes without a name or op.
    """
    where = where or "GraphDef"
    if not graph_def.node or not all(n.name and n.op for n in graph_def.node):
        raise ModelError(
            "The graph has no nodes" if not graph_def.node else "The graph has nameless nodes",
            where=where,
            why="the file is empty, damaged or not a TensorFlow GraphDef",
            cure="copy or freeze the model again",
        )
    inputs = [
        placeholder(n, n.name) for n in graph_def.node if n.op in ("Placeholder", "PlaceholderV2")
    ]
    outputs = [ModelOutput(t, t) for t in loose_ends(graph_def)]
    if not outputs:
        raise ModelError(
            "The graph has no outputs",
            where=where,
            why="every node is read by another one",
            cure="export the model again",
        )
    return inlined(LoadedModel(graph_def, tuple(inputs), tuple(outputs), name))


def loose_ends(graph_def: Any) -> list[str]:
    """The tensors of nodes that no node reads, in the order of the graph.

    Output 0 is called like its node. Nodes that compute nothing (constants, Assert, NoOp,
    Identity of an input) do not count, unless there are no others.
    """
    ops = {n.name: n.op for n in graph_def.node}
    read = Counter(source for n in graph_def.node for source, _ in graphdef.data_inputs(n))
    ends = [n for n in graph_def.node if not read[n.name] and n.op not in _NO_OUTPUT]
    computed = [n for n in ends if not _passes_input(n, ops)]
    names = []
    for node in computed or ends:
        names += [node.name, *(f"{node.name}:{i}" for i in range(1, _output_count(node)))]
    return names


MOST_OUTPUTS = 1 << 14
"""No node of a real graph has more."""

_NO_OUTPUT = {"Const", "NoOp", "Assert", "Placeholder", "PlaceholderV2", "SaveV2", "Print"}
_PASSING = {"Identity", "PlaceholderWithDefault"}
_ONE_USEFUL_OUTPUT = {"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"}


def _passes_input(node: Any, ops: dict[str, str]) -> bool:
    sources = graphdef.data_inputs(node)
    return node.op in _PASSING and all(
        ops.get(name) in ("Placeholder", "Const", None) for name, _ in sources
    )


def _checked_count(node: Any, count: int) -> int:
    if not 0 <= count <= MOST_OUTPUTS:
        raise ModelError(
            f"{node.op} cannot have {count:,} outputs",
            where=f"{node.name} ({node.op})",
            why="the graph is damaged",
            cure="copy or freeze the model again",
        )
    return count


def _output_count(node: Any) -> int:
    if node.op in _ONE_USEFUL_OUTPUT:
        return 1
    tensorflow()
    from tensorflow.python.framework import op_def_registry

    op_def = op_def_registry.get(node.op)
    if op_def is None:
        return 1
    count = 0
    for output in op_def.output_arg:
        if output.number_attr:
            count += _checked_count(node, node.attr[output.number_attr].i)
        elif output.type_list_attr:
            count += len(node.attr[output.type_list_attr].list.type)
        else:
            count += 1
    return count
