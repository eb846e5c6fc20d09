"""A sentence encoder as PyTorch exports it: shape arithmetic on symbolic batch and length."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import compare, model, node
from planish.errors import ShapeError
from planish.frontends.onnx import import_model

WIDTH, HEADS, DEPTH, WORDS, LONGEST = 16, 4, 2, 30, 32


class _Exporter:
    """Writes nodes and constants under running names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(3)

    def __call__(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(node(op_type, " ".join(inputs), name, name, **attributes))
        return name

    def constant(self, value: object, dtype: type = np.int64) -> str:
        name = f"const_{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self._rng.standard_normal(shape) / 4, np.float32)

    def dim(self, x: str, axis: int) -> str:
        """Shape → Gather → Unsqueeze, as tracing writes ``x.size(axis)``."""
        size = self("Gather", self("Shape", x), self.constant(axis), axis=0)
        return self("Unsqueeze", size, self.constant([0]))

    def linear(self, x: str, inner: int, outer: int) -> str:
        return self("Add", self.weight(outer), self("MatMul", x, self.weight(inner, outer)))

    def layer_norm(self, x: str) -> str:
        centered = self("Sub", x, self("ReduceMean", x, axes=[-1]))
        squares = self("Pow", centered, self.constant(2, np.float32))
        variance = self("ReduceMean", squares, axes=[-1])
        deviation = self("Sqrt", self("Add", variance, self.constant(1e-12, np.float32)))
        scaled = self("Mul", self("Div", centered, deviation), self.weight(WIDTH))
        return self("Add", scaled, self.weight(WIDTH))

    def heads(self, x: str) -> str:
        parts = [self.dim(x, 0), self.dim(x, 1)]
        parts += [self.constant([HEADS]), self.constant([WIDTH // HEADS])]
        split = self("Reshape", x, self("Concat", *parts, axis=0))
        return self("Transpose", split, perm=[0, 2, 1, 3])

    def attention(self, x: str, mask: str) -> str:
        q, k, v = (self.heads(self.linear(x, WIDTH, WIDTH)) for _ in range(3))
        scores = self("MatMul", q, self("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self("Div", scores, self.constant(np.sqrt(WIDTH // HEADS), np.float32))
        weights = self("Softmax", self("Add", scores, mask), axis=-1)
        joined = self("Transpose", self("MatMul", weights, v), perm=[0, 2, 1, 3])
        shape = [self.dim(joined, 0), self.dim(joined, 1), self.constant([WIDTH])]
        merged = self("Reshape", joined, self("Concat", *shape, axis=0))
        return self.linear(merged, WIDTH, WIDTH)

    def gelu(self, x: str) -> str:
        erf = self("Erf", self("Div", x, self.constant(np.sqrt(2), np.float32)))
        half = self("Mul", x, self("Add", erf, self.constant(1, np.float32)))
        return self("Mul", half, self.constant(0.5, np.float32))

    def expanded_mask(self, mask: str) -> str:
        """``mask[:, None, None, :].expand(batch, 1, length, length)``, -1 and Where included."""
        rows = self("Unsqueeze", self("Unsqueeze", mask, self.constant([1])), self.constant([2]))
        length = self.dim(mask, 1)
        parts = [self.dim(mask, 0), self.constant([1]), length, length]
        wanted = self("Concat", *parts, axis=0)
        ones = self("ConstantOfShape", self("Shape", wanted), value=_tensor([1]))
        minus = self("Mul", ones, self.constant(-1))
        shape = self("Where", self("Equal", wanted, minus), ones, wanted)
        off = self("Sub", self.constant(1, np.float32), self("Cast", rows, to=1))
        return self("Mul", self("Expand", off, shape), self.constant(-10000, np.float32))


def _tensor(values: list[int]) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, np.int64))


def sentence_encoder() -> onnx.ModelProto:
    """Token ids and mask ``[batch, length]`` to unit vectors ``[batch, WIDTH]``."""
    e = _Exporter()
    words = e("Gather", e.weight(WORDS, WIDTH), "ids")
    positions = e.constant(np.arange(LONGEST)[None])
    length = e.dim("ids", 1)
    own = e("Slice", positions, e.constant([0]), length, e.constant([1]), e.constant([1]))
    x = e.layer_norm(e("Add", words, e("Gather", e.weight(LONGEST, WIDTH), own)))
    mask = e.expanded_mask("mask")
    for _ in range(DEPTH):
        x = e.layer_norm(e("Add", e.attention(x, mask), x))
        inner = e.gelu(e.linear(x, WIDTH, 4 * WIDTH))
        x = e.layer_norm(e("Add", e.linear(inner, 4 * WIDTH, WIDTH), x))
    # mean over the tokens that the mask keeps, then to unit length
    kept = e("Expand", e("Unsqueeze", "mask", e.constant([-1])), e("Shape", x))
    kept = e("Cast", kept, to=1)
    total = e("ReduceSum", e("Mul", x, kept), e.constant([1]), keepdims=0)
    count = e("ReduceSum", kept, e.constant([1]), keepdims=0)
    mean = e("Div", total, e("Clip", count, e.constant(1e-9, np.float32)))
    norm = e("ReduceL2", mean, axes=[1], keepdims=1)
    norm = e("Clip", norm, e.constant(1e-12, np.float32))
    vector = e("Div", mean, e("Expand", norm, e("Shape", mean)))
    shape = ["batch", "length"]
    inputs = {"ids": (np.int64, shape), "mask": (np.int64, shape)}
    return model(e.nodes, inputs, [vector], e.constants, 13)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 7), (3, 32)])
def test_sentence_encoder(batch: int, length: int) -> None:
    rng = np.random.default_rng(batch)
    ids = rng.integers(0, WORDS, (batch, length))
    mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
    graph = compare(sentence_encoder(), {"ids": ids, "mask": mask}, tolerance=1e-4)
    left = {n.op.name for n in graph.nodes}
    assert not left & {"shape_of", "dims", "concat"}, "shape arithmetic is left in the graph"
    (vector,) = graph.outputs
    assert [str(d) for d in vector.shape] == ["batch", str(WIDTH)]


def test_the_table_of_positions_bounds_the_length() -> None:
    ranges = import_model(sentence_encoder()).ranges
    assert ranges["length"].max == LONGEST
    assert ranges["batch"].max > 1000


def test_a_profile_beyond_the_table_is_refused() -> None:
    profile = SimpleNamespace(min=(1, 1), opt=(1, 8), max=(4, 2 * LONGEST))
    with pytest.raises(ShapeError, match="do not broadcast"):
        import_model(sentence_encoder(), inputs={"ids": profile, "mask": profile})
