"""`OnnxFallback`: an ONNX operator that nobody converts, run by ONNX's own reference evaluator.

The ONNX frontend makes it; it stands among the ops because plans hold it, which are loaded without
any frontend. `onnx` is imported where such an op is at work, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import UnsupportedOpError
from planish.graph.dims import DimLike, parse, symbols
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op

if TYPE_CHECKING:
    import onnx

_VECTOR_LIMIT = 1 << 16
"""Integer vectors with more elements than this are no shapes. ONNX's inference, looking for shapes,
would give each element an object: gigabytes for a length that only a damaged file has."""

_DATA_LIMIT = 1 << 16
"""Constant inputs of at most this many elements are shown to ONNX's shape inference."""


@dataclass(frozen=True)
class OnnxFallback(Op):
    """One ONNX node as an op.

    Parameters
    ----------
    op_type, domain : str
        The operator; the domain is "" for ONNX's own.
    version : int
        The version of the operator set, as the model imports it.
    node : bytes
        The serialised ``NodeProto``. Its inputs are called ``%0``, ``%1``, … in the order of the
        op's inputs ("" where an optional one is left out), its outputs ``=0``, ``=1``, ….
    captured : tuple of str
        What its subgraphs take from the graph around them: further inputs, under these names.
    shapes : tuple of tuple of dimensions
        The shapes of its outputs where ONNX's inference does not find them, as of a loop whose
        states keep their shapes or grow by the same in every round; empty where it does.
    """

    op_type: str
    domain: str
    version: int
    node: bytes
    captured: tuple[str, ...] = ()
    shapes: tuple[tuple[DimLike, ...], ...] = ()

    def infer(self, *inputs: Value) -> list[TensorType]:
        onnx = _onnx(self)
        node = _node(self)
        model = _model(self)
        for info, value in zip(list(model.graph.input), inputs, strict=True):
            if (array := _known(value)) is not None:
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
                model.graph.input.remove(info)
            else:
                info.CopyFrom(_described(info.name, value))
        try:
            inferred = onnx.shape_inference.infer_shapes(
                model, strict_mode=True, data_prop=not any(map(_is_endless, inputs))
            )
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise self._refused(str(error)) from error
        outputs = {info.name: info.type for info in inferred.graph.output}
        own = {name for value in inputs for dim in value.shape for name in symbols(dim)}
        return [self._output_type(name, outputs.get(name), own) for name in _present(node.output)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        results = run_reference(self, inputs)
        for name, result in zip(_present(_node(self).output), results, strict=True):
            shape = self.shapes[int(name[1:])] if self.shapes else result.shape
            if result.shape != shape and all(isinstance(d, int) for d in shape):
                raise self._refused(
                    f"its output {name[1:]} has the shape {result.shape}, where its first rounds "
                    f"let {shape} be expected"
                )
        return results

    def _output_type(self, name: str, proto: onnx.TypeProto | None, own: set[str]) -> TensorType:
        onnx = _onnx(self)
        if proto is None or proto.WhichOneof("value") != "tensor_type":
            raise self._refused(f"its output {name[1:]} is not a tensor of a known type")
        known = self.shapes[int(name[1:])] if self.shapes else None
        if known is None and not proto.tensor_type.HasField("shape"):
            raise self._refused(f"the shape of its output {name[1:]} is not known")
        try:
            dtype = DType.of(onnx.helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type))
        except (TypeError, KeyError) as error:
            raise self._refused(f"its output {name[1:]} holds no numbers") from error
        if known is not None:
            return TensorType(known, dtype)
        return TensorType(
            tuple(self._output_dim(name, axis, d, own) for axis, d in enumerate(_dims(proto))),
            dtype,
        )

    def _output_dim(
        self, name: str, axis: int, dim: onnx.TensorShapeProto.Dimension, own: set[str]
    ) -> DimLike:
        """A dimension; `own` are the symbols of the inputs, as inference invents others."""
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        try:
            parsed = parse(dim.dim_param)
            if symbols(parsed) <= own:
                return parsed
        except ValueError:
            pass
        raise self._refused(
            f"the shape of its output {name[1:]} is not known: dimension {axis} depends on the "
            "data, or ONNX's shape inference cannot compute it"
        )

    def _refused(self, why: str) -> UnsupportedOpError:
        domain = self.domain or "ai.onnx"
        return UnsupportedOpError(
            f"{self.op_type} (domain {domain}, opset {self.version}) cannot be converted, nor run "
            "by ONNX's reference",
            why=why,
            cure="cut the model before this operator with outputs=, or export it without it",
        )


def checked(op: OnnxFallback) -> OnnxFallback:
    """The op itself.

    Raises
    ------
    UnsupportedOpError
        ONNX's reference does not implement the operator.
    """
    _evaluator(op)
    return op


def run_reference(op: OnnxFallback, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a fallback op by ONNX's reference evaluator.

    Raises
    ------
    UnsupportedOpError
        The reference fails on these inputs, or its outputs are not tensors.
    """
    names = _input_names(op)
    try:
        with np.errstate(all="ignore"):
            outputs = _evaluator(op).run(None, dict(zip(names, inputs, strict=True)))
    except UnsupportedOpError:
        raise
    except Exception as error:  # whatever the reference raises, the user must know the operator
        raise op._refused(f"its reference failed: {type(error).__name__}: {error}") from error
    if not all(isinstance(o, np.ndarray | np.generic) for o in outputs):
        raise op._refused("its outputs are not tensors")
    if any(np.asarray(o).dtype.kind not in "biufV" for o in outputs):
        raise op._refused("its outputs are not tensors of numbers")
    return [np.asarray(o) for o in outputs]


@lru_cache(maxsize=128)
def _evaluator(op: OnnxFallback) -> Any:
    model = _model(op)
    if _scans_too_many(model.graph):
        raise op._refused("a Scan is said to read more inputs than it has")
    try:
        return _onnx(op).reference.ReferenceEvaluator(model)
    except Exception as error:  # NotImplementedError and kin, of a kind that differs by version
        raise op._refused(f"ONNX's reference does not know it: {error}") from error


def _onnx(op: OnnxFallback) -> Any:
    try:
        import onnx
        import onnx.reference
        import onnx.shape_inference
    except ImportError as error:
        raise UnsupportedOpError(
            f"{op.op_type} is run by ONNX's reference, and the package onnx is not installed",
            why=str(error),
            cure="install it: pip install onnx",
        ) from error
    return onnx


def _node(op: OnnxFallback) -> onnx.NodeProto:
    onnx = _onnx(op)
    from google.protobuf.message import DecodeError

    try:
        return onnx.NodeProto.FromString(op.node)
    except DecodeError as error:
        raise op._refused(f"what is stored of it is no node: {error}") from error


def _model(op: OnnxFallback) -> onnx.ModelProto:
    """A model of that node alone, with inputs and outputs that have names but no types."""
    onnx = _onnx(op)
    node = _node(op)
    graph = onnx.GraphProto(
        name="fallback",
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in _input_names(op)],
        output=[onnx.ValueInfoProto(name=name) for name in _present(node.output)],
    )
    return onnx.ModelProto(
        ir_version=onnx.IR_VERSION,
        graph=graph,
        opset_import=[onnx.OperatorSetIdProto(domain=op.domain, version=op.version)],
    )


def _scans_too_many(graph: onnx.GraphProto) -> bool:
    """Whether a scan has fewer inputs than it says: ONNX's reference lists as many as it says."""
    return any(
        (a.name == "num_scan_inputs" and a.i > len(node.input))
        or any(_scans_too_many(inner) for inner in (a.g, *a.graphs))
        for node in graph.node
        for a in node.attribute
    )


def _described(name: str, value: Value) -> onnx.ValueInfoProto:
    import onnx

    return onnx.helper.make_tensor_value_info(
        name,
        onnx.helper.np_dtype_to_tensor_dtype(value.dtype.numpy),
        [d if isinstance(d, int) else str(d) for d in value.shape],
    )


def _input_names(op: OnnxFallback) -> list[str]:
    return [*_present(_node(op).input), *op.captured]


def _present(names: Sequence[str]) -> list[str]:
    return [name for name in names if name]


def _dims(proto: onnx.TypeProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return proto.tensor_type.shape.dim


def _is_endless(value: Value) -> bool:
    size = value.shape[0] if value.type.rank == 1 else 0
    return isinstance(size, int) and size > _VECTOR_LIMIT


def _known(value: Value) -> np.ndarray | None:
    if value.data is not None:
        return value.data if value.data.size <= _DATA_LIMIT else None
    if value.content is not None and all(isinstance(d, int) for d in value.content.flat):
        return value.content.astype(value.dtype.numpy)
    return None
