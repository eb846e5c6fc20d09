"""Every operator on every element type that ONNX lets it have, against ONNX Runtime.

Where ONNX Runtime lacks a type, ONNX's own reference is asked; where both do, nothing is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from helpers.onnx_graph import model, node, runtime
from planish.frontends.onnx import import_model
from planish.graph import DType
from planish.graph.interpret import interpret

OPSET = 22
Arrays = list["np.ndarray | None"]
RNG = np.random.default_rng(0)

# fmt: off
UNARY = (
    "Abs", "Neg", "Sign", "Reciprocal", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin", "Acos",
    "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh", "Erf", "Relu", "Sigmoid",
    "HardSwish", "Mish", "Softplus", "Softsign", "Floor", "Ceil", "Round", "IsNaN", "IsInf", "Not",
    "BitwiseNot", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "Gelu", "ThresholdedRelu",
    "Shrink", "Softmax", "LogSoftmax", "Hardmax", "Identity", "Flatten", "Shape", "Size",
    "Transpose", "GlobalAveragePool", "GlobalMaxPool", "ArgMax", "ArgMin", "Trilu", "EyeLike",
)
BINARY = (
    "Add", "Sub", "Mul", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or",
    "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu", "Max", "Min", "Sum", "Mean", "MatMul",
)
REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)
# fmt: on


def some(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    """Random elements of both signs; integers of up to 100."""
    if dtype is DType.BOOL:
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype.is_float:
        return (RNG.standard_normal(shape) * 3).astype(dtype.numpy)
    low = max(np.iinfo(dtype.numpy).min, -100)
    return RNG.integers(low, 101, shape).astype(dtype.numpy)


def positive(shape: tuple[int, ...], dtype: DType, most: int = 9) -> np.ndarray:
    return RNG.integers(1, most + 1, shape).astype(dtype.numpy)


def cases(d: DType) -> Iterator[tuple[str, Arrays, tuple[int, ...], dict[str, Any]]]:
    """Operator, inputs, which of them are constants, attributes."""
    box, rows = some((2, 3, 4), d), some((4, 5), d)
    for op in UNARY:
        yield op, [rows if op in ("Trilu", "EyeLike") else some((2, 3, 4, 4), d)], (), {}
    for op in BINARY:
        yield op, [some((3, 4, 4), d), some((4, 4), d)], (), {}
    yield "Div", [box, positive((4,), d)], (), {}
    yield "Pow", [positive((3, 4), d, 4), positive((4,), d, 4)], (), {}
    yield "Gemm", [some((3, 4), d), rows, some((5,), d)], (), {}
    for direction in ("LEFT", "RIGHT"):
        yield "BitShift", [rows, positive((4, 5), d, 7)], (), {"direction": direction}
    for fmod in (0, 1):
        yield "Mod", [box, positive((2, 3, 4), d)], (), {"fmod": fmod}
    for op in REDUCTIONS:
        if (op, d) == ("ReduceSumSquare", DType.UINT32):
            continue  # only the reference has it, with a result of uint64
        x = positive((2, 3, 4), d) if "Log" in op else box
        yield op, [x, np.array([1])], (1,), {"keepdims": 0}
    yield "CumSum", [box, np.array(1)], (1,), {}
    yield "TopK", [some((2, 9), d), np.array([3])], (1,), {}
    yield "Clip", [rows, np.array(1, d.numpy), np.array(50, d.numpy)], (1, 2), {}
    yield "Where", [some((4, 5), DType.BOOL), rows, some((4, 5), d)], (), {}
    yield "Concat", [rows, some((4, 5), d)], (), {"axis": 1}
    yield "Split", [rows], (), {"axis": 0, "num_outputs": 2}
    bounds = [np.array(n) for n in ([1, 0], [3, 5], [0, 1], [1, 2])]
    yield "Slice", [rows, *bounds], (1, 2, 3, 4), {}
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield "Pad", [rows, np.array([1, 1, 0, 2])], (1,), {"mode": mode}
    yield "Gather", [rows, np.array([1, 3, -1])], (), {"axis": 1}
    yield "GatherElements", [rows, RNG.integers(0, 4, (3, 5))], (), {}
    yield "GatherND", [rows, RNG.integers(0, 4, (3, 2))], (), {}
    for reduction in ("none", "add", "mul", "max", "min"):
        options = {} if reduction == "none" else {"reduction": reduction}
        index, updates = np.array([[1], [3]]), some((2, 5), d)
        yield "ScatterElements", [rows, index.repeat(5, 1), updates], (), options
        yield "ScatterND", [rows, index, updates], (), options
    yield "OneHot", [np.array([1, 3, 0]), np.array(4), some((2,), d)], (1,), {}
    yield "Reshape", [rows, np.array([2, -1])], (1,), {}
    yield "Expand", [some((4, 1), d), np.array([2, 4, 3])], (1,), {}
    yield "Tile", [rows, np.array([2, 3])], (1,), {}
    yield "Squeeze", [some((4, 1), d)], (), {}
    yield "Unsqueeze", [rows, np.array([0])], (1,), {}
    yield "DepthToSpace", [some((1, 8, 2, 2), d)], (), {"blocksize": 2}
    yield "SpaceToDepth", [some((1, 2, 4, 4), d)], (), {"blocksize": 2}
    image, scales = some((1, 2, 4, 4), d), np.float32([1, 1, 2, 2])
    yield "Resize", [image, None, scales], (2,), {"mode": "nearest"}
    if d not in (DType.INT64, DType.INT16, DType.UINT16, DType.UINT32, DType.UINT64):
        # only the reference has those, and it rounds where ONNX Runtime truncates
        yield "Resize", [image, None, scales], (2,), {"mode": "linear"}
    for op in ("MaxPool", "AveragePool"):
        yield op, [image], (), {"kernel_shape": [2, 2]}
    yield "Conv", [image, some((3, 2, 3, 3), d), some((3,), d)], (1, 2), {}
    channel = [positive((3,), d) for _ in range(4)]
    yield "BatchNormalization", [box, *channel], (1, 2, 3, 4), {}
    yield "InstanceNormalization", [box, *channel[:2]], (1, 2), {}
    yield "LayerNormalization", [box, some((4,), d), some((4,), d)], (1, 2), {}
    yield "Einsum", [some((3, 4), d), rows], (), {"equation": "ij,jk->ik"}
    yield "Range", [np.array(n, d.numpy) for n in (1, 9, 2)], (0, 1, 2), {}
    yield "ReverseSequence", [some((4, 3), d), np.array([4, 2, 1])], (1,), {}
    for to in DType:
        x = positive((3, 5), d) if to.value[0] == "u" else rows
        yield "Cast", [x], (), {"to": onnx.helper.np_dtype_to_tensor_dtype(to.numpy)}


def allowed(op: str, dtype: DType) -> bool:
    """Whether the schema lets the operator's main input have that type."""
    schema = onnx.defs.get_schema(op, OPSET)
    place = {"OneHot": 2, "Where": 1}.get(op, 0)
    main = schema.inputs[place].type_str
    types = next(
        (c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == main), [main]
    )
    code = onnx.helper.np_dtype_to_tensor_dtype(dtype.numpy)
    name = onnx.TensorProto.DataType.Name(code).lower()
    return f"tensor({name})" in types


def expected_of(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray] | None:
    """The outputs by ONNX Runtime, or else by the reference, or None."""
    oracles: tuple[Callable[[], list[np.ndarray]], ...] = (
        lambda: runtime(proto, feeds),
        lambda: ReferenceEvaluator(proto).run(None, feeds),
    )
    for oracle in oracles:
        try:
            with np.errstate(all="ignore"):
                return oracle()
        except Exception:  # each has errors of its own for types that it lacks
            continue
    return None


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_operators_take_the_types_that_onnx_lets_them_have(dtype):
    tolerance = 1e-5
    if dtype in (DType.FLOAT16, DType.BFLOAT16):
        tolerance = 2e-3 if dtype is DType.FLOAT16 else 1.6e-2
    compared = 0
    for op, inputs, constant, attributes in cases(dtype):
        if not allowed(op, dtype):
            continue
        names = [f"x{i}" if a is not None else "_" for i, a in enumerate(inputs)]
        arrays = {n: a for n, a in zip(names, inputs, strict=True) if a is not None}
        fixed = {f"x{i}": arrays[f"x{i}"] for i in constant}
        feeds = {n: a for n, a in arrays.items() if n not in fixed}
        outputs = ["y", "z"] if op in ("TopK", "Split") else ["y"]
        declared = {n: (a.dtype, a.shape) for n, a in feeds.items()}
        one = node(op, " ".join(names), " ".join(outputs), **attributes)
        proto = model([one], declared, outputs, fixed, OPSET)
        expected = expected_of(proto, feeds)
        if expected is None:
            continue
        results = interpret(import_model(proto, allow_fallback=False), feeds)
        for result, other in zip(results, expected, strict=True):
            message = f"{op} of {dtype.value} {attributes}"
            assert result.dtype == other.dtype, message
            exact = not DType.of(other.dtype).is_float
            a, b = (v if exact else v.astype(np.float64) for v in (result, np.asarray(other)))
            scale = 0 if exact else np.abs(b[np.isfinite(b)]).max(initial=0.0)
            np.testing.assert_allclose(
                a, b, rtol=0 if exact else tolerance, atol=tolerance * scale, err_msg=message
            )
        compared += 1
    assert compared > 25
