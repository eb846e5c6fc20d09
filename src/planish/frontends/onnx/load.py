"""Reading ONNX files: from a path, bytes or a parsed model to a checked `ModelProto`.

Model files are untrusted. Nothing in them is run, external data stays inside the model's folder
(see `tensors`), and whatever is damaged raises `ModelError`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from planish.errors import InputError, ModelError, UnsupportedOpError
from planish.frontends.onnx.tensors import tensor_array

OLDEST_OPSET = 6
"""Models of older operator sets can be read as far as their operators have not changed since."""

NEWEST_CONCEIVABLE = (1 << 31) - 1
"""Greatest version of an operator set that ``onnx.defs`` can be asked for."""

PROTOBUF_LIMIT = (1 << 31) - 1

ModelSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"


@dataclass(frozen=True)
class OpenModel:
    """A parsed model whose external data has not been read yet."""

    proto: onnx.ModelProto
    folder: Path | None
    """Where external data lies; None for a model that was not a file."""
    label: str
    """What to call the model in messages."""

    @property
    def opsets(self) -> dict[str, int]:
        """The version of each operator set the model uses, by domain ("" is ONNX's own)."""
        return opset_versions(self.proto.opset_import)


def opset_versions(imports) -> dict[str, int]:
    """Versions by domain; "ai.onnx" is the same as ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: int(o.version) for o in imports}


def load_model(source: ModelSource) -> onnx.ModelProto:
    """Reads an ONNX model with all of its external data.

    Parameters
    ----------
    source : path, bytes or ModelProto
        External data can be read only for a path; a `ModelProto` is not changed.

    Returns
    -------
    ModelProto
        With every tensor's data inside. In memory it may be larger than protobuf's 2 GB limit for
        files; it only cannot be serialised then.

    Raises
    ------
    ModelError
        The file is missing, cut off, not ONNX, too old, or its external data is unusable.
    """
    opened = open_model(source)
    if not any(t.data_location == TensorProto.EXTERNAL for t in _tensors(opened.proto)):
        return opened.proto
    model = onnx.ModelProto()
    model.CopyFrom(opened.proto)
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _bring_in(tensor, opened.folder)
    return model


def open_model(source: ModelSource) -> OpenModel:
    """Parses and checks a model, leaving external data where it is; errors as `load_model`."""
    if isinstance(source, onnx.ModelProto):
        opened = OpenModel(source, None, source.graph.name or "model")
    elif isinstance(source, bytes | bytearray | memoryview):
        opened = OpenModel(_parse(bytes(source), "the given bytes"), None, "the given bytes")
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        opened = OpenModel(_parse(_read(path), str(path)), path.parent, str(path))
    else:
        raise InputError(
            f"A model cannot be a {type(source).__name__}",
            cure="pass a path, bytes or an onnx.ModelProto",
        )
    _check(opened)
    return opened


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > PROTOBUF_LIMIT:
            raise ModelError(
                "The model's file is larger than an ONNX file can be",
                where=str(path),
                why=f"{size:,} bytes; protobuf's limit is 2 GB",
                cure="save the model with external data",
            )
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            "The model cannot be read",
            where=str(path),
            why=error.strerror or str(error),
            cure="check the path",
        ) from error


def _parse(data: bytes, label: str) -> onnx.ModelProto:
    if not data:
        raise ModelError(
            "The model is empty",
            where=label,
            why="it has no bytes",
            cure="export or download it again",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(
            "This is not an ONNX model, or it is cut off",
            where=label,
            why=str(error),
            cure="export or download it again",
        ) from error
    return model


def _check(opened: OpenModel) -> None:
    model = opened.proto
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            "This is not an ONNX model",
            where=opened.label,
            why="it has no graph" if not model.HasField("graph") else "it names no operator set",
            cure="pass the .onnx file that the exporter wrote",
        )
    for imports in (model.opset_import, *(f.opset_import for f in model.functions)):
        for imported in imports:
            if not 0 <= imported.version <= NEWEST_CONCEIVABLE:
                raise ModelError(
                    f"There is no operator set {imported.domain or 'ai.onnx'!r} of version "
                    f"{imported.version}",
                    where=opened.label,
                    why="the file is damaged, or was not written by an exporter",
                    cure="export or download the model again",
                )
    for text in _texts(model):
        if isinstance(text, bytes):  # what protobuf gives for text that is none
            raise ModelError(
                "The model is damaged",
                where=opened.label,
                why=f"the name {text[:100]!r} is not UTF-8 text",
                cure="export or download it again",
            )


def check_version(node: onnx.NodeProto, opset: int, where: str) -> None:
    """Refuses a node of an operator set that is older than what the converters know.

    Raises
    ------
    UnsupportedOpError
        The operator had another definition then.
    """
    if opset >= OLDEST_OPSET or opset < 1:
        return
    try:
        old, new = (
            onnx.defs.get_schema(node.op_type, version, "").since_version
            for version in (opset, OLDEST_OPSET)
        )
    except onnx.defs.SchemaError:
        return  # unknown operators have an error of their own
    if old != new:
        raise UnsupportedOpError(
            f"{node.op_type} of opset {opset} cannot be converted",
            where=where,
            why=f"the oldest definition of it that can be read is that of opset {OLDEST_OPSET}",
            cure="upgrade the model with onnx.version_converter, or export it again",
        )


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _texts(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """All names that the import looks at."""
    yield from (o.domain for o in model.opset_import)
    yield from _graph_texts(model.graph)
    for function in model.functions:
        yield from (function.name, function.domain, function.overload)
        yield from (*function.input, *function.output, *function.attribute)
        yield from (o.domain for o in function.opset_import)
        for node in function.node:
            yield from _node_texts(node)


def _graph_texts(graph: onnx.GraphProto) -> Iterator[str | bytes]:
    yield graph.name
    for named in (*graph.input, *graph.output, *graph.initializer):
        yield named.name
    for info in graph.input:
        yield from (d.dim_param for d in info.type.tensor_type.shape.dim)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from _node_texts(node)


def _node_texts(node: onnx.NodeProto) -> Iterator[str | bytes]:
    yield from (node.name, node.op_type, node.domain, node.overload, *node.input, *node.output)
    for attribute in node.attribute:
        yield from (attribute.name, attribute.ref_attr_name)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_texts(graph)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from _graph_tensors(graph)


def _bring_in(tensor: TensorProto, folder: Path | None) -> None:
    array = tensor_array(tensor, folder)
    packed = onnx.numpy_helper.from_array(
        array.astype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False)
    )
    tensor.raw_data = packed.raw_data
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
