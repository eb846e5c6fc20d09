"""`OnnxFallback`: an ONNX operator that nobody converts, run by ONNX's own reference evaluator.

It keeps a model whole where one operator is missing. It is slow, and the build report names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx

from planish.errors import UnsupportedOpError
from planish.frontends.onnx.order import subgraph_names
from planish.graph import DimLike, DType, TensorType, Value
from planish.graph.dims import parse, symbols
from planish.ops.base import Op

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
        op's inputs ("" where an optional one is left out), its outputs ``=0``, ``=1``, …. What its
        subgraphs take from the graph around them are further inputs, under the model's names.
    """

    op_type: str
    domain: str
    version: int
    node: bytes

    def infer(self, *inputs: Value) -> list[TensorType]:
        node = onnx.NodeProto.FromString(self.node)
        model = _model(self, node)
        for info, value in zip(list(model.graph.input), inputs, strict=True):
            if (array := _known(value)) is not None:
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
                model.graph.input.remove(info)
            else:
                info.CopyFrom(_described(info.name, value))
        try:
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
            raise self._refused(str(error)) from error
        outputs = {info.name: info.type for info in inferred.graph.output}
        own = {name for value in inputs for dim in value.shape for name in symbols(dim)}
        return [self._output_type(name, outputs.get(name), own) for name in _present(node.output)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return run_reference(self, inputs)

    def _output_type(self, name: str, proto: onnx.TypeProto | None, own: set[str]) -> TensorType:
        if proto is None or proto.WhichOneof("value") != "tensor_type":
            raise self._refused(f"its output {name[1:]} is not a tensor of a known type")
        if not proto.tensor_type.HasField("shape"):
            raise self._refused(f"the shape of its output {name[1:]} is not known")
        try:
            dtype = DType.of(onnx.helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type))
        except (TypeError, KeyError) as error:
            raise self._refused(f"its output {name[1:]} holds no numbers") from error
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


def fallback_op(
    node: onnx.NodeProto, domain: str, version: int, inputs: Sequence[Value | None]
) -> OnnxFallback:
    """The fallback for a node of the model.

    Raises
    ------
    UnsupportedOpError
        ONNX's reference does not implement the operator.
    """
    canonical = onnx.NodeProto()
    canonical.CopyFrom(node)
    canonical.name = canonical.doc_string = ""
    del canonical.metadata_props[:]
    positions = iter(range(len(inputs)))
    names = ["" if value is None else f"%{next(positions)}" for value in inputs]
    canonical.input[:] = names
    canonical.output[:] = [f"={i}" if name else "" for i, name in enumerate(node.output)]
    op = OnnxFallback(
        node.op_type, domain, version, canonical.SerializeToString(deterministic=True)
    )
    _evaluator(op)
    return op


def run_reference(op: OnnxFallback, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a fallback op by ONNX's reference evaluator.

    Raises
    ------
    UnsupportedOpError
        The reference fails on these inputs, or its outputs are not tensors.
    """
    names = _input_names(onnx.NodeProto.FromString(op.node))
    try:
        with np.errstate(all="ignore"):
            outputs = _evaluator(op).run(None, dict(zip(names, inputs, strict=True)))
    except UnsupportedOpError:
        raise
    except Exception as error:  # whatever the reference raises, the user must know the operator
        raise op._refused(f"its reference failed: {type(error).__name__}: {error}") from error
    if not all(isinstance(o, np.ndarray | np.generic) for o in outputs):
        raise op._refused("its outputs are not tensors")
    return [np.asarray(o) for o in outputs]


@lru_cache(maxsize=128)
def _evaluator(op: OnnxFallback):
    from onnx.reference import ReferenceEvaluator

    try:
        return ReferenceEvaluator(_model(op, onnx.NodeProto.FromString(op.node)))
    except Exception as error:  # NotImplementedError and kin, of a kind that differs by version
        raise op._refused(f"ONNX's reference does not know it: {error}") from error


def _model(op: OnnxFallback, node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of that node alone, with inputs and outputs that have names but no types."""
    graph = onnx.GraphProto(
        name="fallback",
        node=[node],
        input=[onnx.ValueInfoProto(name=name) for name in _input_names(node)],
        output=[onnx.ValueInfoProto(name=name) for name in _present(node.output)],
    )
    return onnx.ModelProto(
        ir_version=onnx.IR_VERSION,
        graph=graph,
        opset_import=[onnx.OperatorSetIdProto(domain=op.domain, version=op.version)],
    )


def _described(name: str, value: Value) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        name,
        onnx.helper.np_dtype_to_tensor_dtype(value.dtype.numpy),
        [d if isinstance(d, int) else str(d) for d in value.shape],
    )


def _input_names(node: onnx.NodeProto) -> list[str]:
    return _present(node.input) + subgraph_names(node)


def _present(names: Sequence[str]) -> list[str]:
    return [name for name in names if name]


def _dims(proto: onnx.TypeProto) -> Sequence[onnx.TensorShapeProto.Dimension]:
    return proto.tensor_type.shape.dim


def _known(value: Value) -> np.ndarray | None:
    if value.data is not None:
        return value.data if value.data.size <= _DATA_LIMIT else None
    if value.content is not None and all(isinstance(d, int) for d in value.content.flat):
        return value.content.astype(value.dtype.numpy)
    return None
