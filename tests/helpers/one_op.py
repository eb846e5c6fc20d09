"""Run one op by its NumPy reference, always checking that `infer` agrees with the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planish.graph import DType, Graph, TensorType
from planish.graph.dims import DimLike, symbol
from planish.ops.base import Op


def infer(op: Op, *types: TensorType) -> list[TensorType]:
    """The output types of `op` in a graph of that one op."""
    graph = Graph()
    inputs = [graph.input(f"x{i}", type) for i, type in enumerate(types)]
    return [v.type for v in graph.add_node(op, inputs).outputs]


def tensor(dtype: DType | str, *shape: DimLike | str) -> TensorType:
    """A tensor type; strings stand for symbols: ``tensor("f32", "N", 3)``."""
    dims = tuple(symbol(d) if isinstance(d, str) else d for d in shape)
    return TensorType(dims, DType(dtype) if isinstance(dtype, str) else dtype)


def type_of(array: np.ndarray) -> TensorType:
    return TensorType(array.shape, DType.of(array.dtype))


def run(op: Op, *arrays: np.ndarray) -> list[np.ndarray]:
    """The outputs by the reference, after checking their shapes and dtypes against `infer`."""
    arrays = tuple(np.asarray(a) for a in arrays)
    before = [a.copy() for a in arrays]
    types = infer(op, *(type_of(a) for a in arrays))
    outputs = op.reference(*arrays)
    assert len(outputs) == len(types)
    for output, type in zip(outputs, types, strict=True):
        assert isinstance(output, np.ndarray)
        assert type_of(output) == type, f"{op} inferred {type}, computed {type_of(output)}"
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy, err_msg=f"{op} changed its input")
    return outputs


def check(
    op: Op,
    arrays: Sequence[np.ndarray],
    expected: object,
    *,
    rtol: float = 0,
    atol: float = 0,
) -> None:
    """Compares the reference with expected outputs: exactly, unless tolerances are given."""
    wanted = list(expected) if isinstance(expected, list | tuple) else [expected]
    outputs = run(op, *arrays)
    for output, other in zip(outputs, wanted, strict=True):
        other = np.asarray(other)
        assert output.shape == other.shape, f"{op}: {output.shape}, expected {other.shape}"
        assert output.dtype == other.dtype, f"{op}: {output.dtype}, expected {other.dtype}"
        if output.dtype.kind not in "biu":
            output, other = output.astype(np.float64), other.astype(np.float64)
        np.testing.assert_allclose(output, other, rtol=rtol, atol=atol, err_msg=str(op))


def check_symbolic(
    op: Op, types: Sequence[TensorType], bindings: Mapping[str, int], bound_op: Op | None = None
) -> None:
    """Inference with symbols, evaluated, equals inference with the symbols' values.

    `bound_op` is the op with integers in place of symbolic attributes, where it has any.
    """
    symbolic = infer(op, *types)
    concrete = infer(bound_op or op, *(TensorType(t.bind(bindings), t.dtype) for t in types))
    assert [t.bind(bindings) for t in symbolic] == [t.shape for t in concrete]
    assert [t.dtype for t in symbolic] == [t.dtype for t in concrete]
