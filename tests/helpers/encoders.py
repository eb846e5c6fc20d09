"""Transformer encoders with random weights, as ONNX and as Keras models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from helpers.onnx_graph import model, node


@dataclass(frozen=True)
class EncoderSize:
    """The sizes of an encoder of BERT's kind."""

    width: int = 32
    heads: int = 4
    depth: int = 2
    inner: int = 128
    words: int = 100
    longest: int = 64


MINILM = EncoderSize(width=384, heads=12, depth=6, inner=1536, words=2000, longest=512)
"""The sizes of all-MiniLM-L6-v2, with fewer words."""

EPSILON = 1e-12


def bert(size: EncoderSize) -> onnx.ModelProto:
    """BERT without its pooling: token ids, mask and token types ``[batch, sequence]`` to
    ``last_hidden_state`` and the pooled, tanh-activated first token.
    """
    return _Bert(size).build()


class _Bert:
    """Writes nodes and weights the way PyTorch's exporter does for opset 17."""

    def __init__(self, size: EncoderSize) -> None:
        self._size = size
        self._rng = np.random.default_rng(11)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def build(self) -> onnx.ModelProto:
        size = self._size
        mask = self._mask()
        x = self._embeddings()
        for layer in range(size.depth):
            at = f"/encoder/layer.{layer}"
            x = self._norm(self._op("Add", self._attention(x, mask, at), x), f"{at}/norm1")
            inner = self._gelu(self._linear(x, size.width, size.inner, f"{at}/up"))
            down = self._linear(inner, size.inner, size.width, f"{at}/down")
            x = self._norm(self._op("Add", down, x), f"{at}/norm2")
        first = self._op("Gather", x, self._constant(0), axis=1)
        weight = self._weight(size.width, size.width)
        pooled = self._op("Gemm", first, weight, self._weight(size.width), transB=1)
        self._op("Identity", x, called="last_hidden_state")
        self._op("Tanh", pooled, called="pooled")
        shape = ["batch", "sequence"]
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs: dict[str, tuple[Any, Any]] = dict.fromkeys(names, (np.int64, shape))
        outputs = ["last_hidden_state", "pooled"]
        return model(self._nodes, inputs, outputs, self._constants, 17)

    def _op(self, op_type: str, *inputs: str, called: str = "", **attributes: Any) -> str:
        name = called or f"{op_type.lower()}_{len(self._nodes)}"
        self._nodes.append(node(op_type, " ".join(inputs), name, name, **attributes))
        return name

    def _constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def _weight(self, *shape: int) -> str:
        scale = shape[0] ** -0.5
        return self._constant(self._rng.standard_normal(shape) * scale, np.float32)

    def _linear(self, x: str, inner: int, outer: int, name: str) -> str:
        product = self._op("MatMul", x, self._weight(inner, outer), called=f"{name}/MatMul")
        return self._op("Add", self._weight(outer), product, called=f"{name}/Add")

    def _norm(self, x: str, name: str) -> str:
        near_one = self._constant(self._rng.uniform(0.5, 1.5, self._size.width), np.float32)
        offset = self._weight(self._size.width)
        return self._op(
            "LayerNormalization", x, near_one, offset, called=name, axis=-1, epsilon=EPSILON
        )

    def _dimension(self, x: str, axis: int) -> str:
        size = self._op("Gather", self._op("Shape", x), self._constant(axis), axis=0)
        return self._op("Unsqueeze", size, self._constant([0]))

    def _embeddings(self) -> str:
        size = self._size
        words = self._op("Gather", self._weight(size.words, size.width), "input_ids")
        types = self._op("Gather", self._weight(2, size.width), "token_type_ids")
        every = self._constant(np.arange(size.longest)[None])
        zero, one = self._constant([0]), self._constant([1])
        length = self._dimension("input_ids", 1)
        own = self._op("Slice", every, zero, length, one, one)
        positions = self._op("Gather", self._weight(size.longest, size.width), own)
        both = self._op("Add", words, types)
        return self._norm(self._op("Add", both, positions), "/embeddings/norm")

    def _mask(self) -> str:
        """0 where attention is wanted, the least float elsewhere: [batch, 1, 1, sequence]."""
        rows = self._op("Unsqueeze", "attention_mask", self._constant([1, 2]))
        off = self._op("Sub", self._constant(1, np.float32), self._op("Cast", rows, to=1))
        return self._op("Mul", off, self._constant(np.finfo(np.float32).min, np.float32))

    def _heads(self, x: str, perm: list[int]) -> str:
        size = self._size
        parts = [self._dimension(x, 0), self._dimension(x, 1)]
        parts += [self._constant([size.heads]), self._constant([size.width // size.heads])]
        split = self._op("Reshape", x, self._op("Concat", *parts, axis=0))
        return self._op("Transpose", split, perm=perm)

    def _attention(self, x: str, mask: str, at: str) -> str:
        width = self._size.width
        q, k, v = (self._linear(x, width, width, f"{at}/{name}") for name in "qkv")
        q, v = self._heads(q, [0, 2, 1, 3]), self._heads(v, [0, 2, 1, 3])
        scores = self._op("MatMul", q, self._heads(k, [0, 2, 3, 1]), called=f"{at}/scores")
        root = np.sqrt(width // self._size.heads)
        scores = self._op("Div", scores, self._constant(root, np.float32))
        weights = self._op(
            "Softmax", self._op("Add", scores, mask), axis=-1, called=f"{at}/weights"
        )
        mixed = self._op("MatMul", weights, v, called=f"{at}/mixed")
        joined = self._op("Transpose", mixed, perm=[0, 2, 1, 3])
        parts = [self._dimension(joined, 0), self._dimension(joined, 1), self._constant([width])]
        merged = self._op("Reshape", joined, self._op("Concat", *parts, axis=0))
        return self._linear(merged, width, width, f"{at}/out")

    def _gelu(self, x: str) -> str:
        erf = self._op("Erf", self._op("Div", x, self._constant(np.sqrt(2), np.float32)))
        half = self._op("Mul", x, self._op("Add", erf, self._constant(1, np.float32)))
        return self._op("Mul", half, self._constant(0.5, np.float32))


def keras_encoder(size: EncoderSize) -> Any:
    """Token ids and mask ``[batch, sequence]`` to hidden states, of Keras' own layers."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(5)
    layers = tf.keras.layers
    ids = layers.Input((None,), dtype="int32", name="ids")
    mask = layers.Input((None,), dtype="int32", name="mask")
    x = layers.Embedding(size.words, size.width, embeddings_initializer="normal")(ids)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    for _ in range(size.depth):
        attention = layers.MultiHeadAttention(size.heads, size.width // size.heads)
        attended = attention(x, x, attention_mask=mask[:, None, :])
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attended]))
        inner = layers.Dense(size.inner, activation="gelu")(x)
        x = layers.Add()([x, layers.Dense(size.width)(inner)])
        x = layers.LayerNormalization(epsilon=1e-6)(x)
    return tf.keras.Model([ids, mask], x)


def tokens(size: EncoderSize, batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and a mask that keeps the first of each sequence, one whole; int64."""
    rng = np.random.default_rng(batch * 1000 + length)
    kept = rng.integers(1, length + 1, (batch, 1))
    kept[0] = length
    ids = rng.integers(0, size.words, (batch, length))
    return ids, (np.arange(length) < kept).astype(np.int64)
