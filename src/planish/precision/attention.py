"""The nodes of an attention whose products multiply levels: they go together."""

from __future__ import annotations

from planish.graph.graph import Node, Value
from planish.ops import Dequantize, Elementwise, MatMul, QuantizedSoftmax, Transpose


def levelled_attention(softmax: Node) -> set[Node]:
    """A quantized softmax with both products, what lies between them, and what they read up to the
    levels of it; see `planish.fusion.attention`.
    """
    assert isinstance(softmax.op, QuantizedSoftmax)
    found = {softmax}
    stack = [softmax.inputs[0]]
    while stack:
        node = stack.pop().producer
        if node is None or node in found:
            continue
        if isinstance(node.op, MatMul):
            found |= {node, *_up_to_levels(node.inputs[0]), *_up_to_levels(node.inputs[1])}
        elif isinstance(node.op, Elementwise):
            found.add(node)
            stack += [v for v in node.inputs if v.shape == softmax.output.shape]
    value = softmax.output
    while len(value.users) == 1:
        (node,) = value.users
        found.add(node)
        if isinstance(node.op, MatMul):
            for other in node.inputs:
                found |= _up_to_levels(other) if other is not value else set()
            break
        value = node.output
    return found


def _up_to_levels(value: Value) -> set[Node]:
    """Transposes and factors between levels and a product; nothing where there are no levels."""
    found: set[Node] = set()
    while (node := value.producer) is not None:
        if isinstance(node.op, Dequantize):
            return found
        if not isinstance(node.op, Transpose | Elementwise):
            break
        found.add(node)
        value = next((v for v in node.inputs if not v.is_constant), node.inputs[0])
    return set()
