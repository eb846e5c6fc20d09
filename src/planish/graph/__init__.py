"""The network: graph, values, types, symbolic dimensions, verifier and text dump."""

from planish.graph.dims import Dim, DimLike, symbol
from planish.graph.graph import DimRange, Graph, Node, Value
from planish.graph.types import DType, TensorType

__all__ = ["DType", "Dim", "DimLike", "DimRange", "Graph", "Node", "TensorType", "Value", "symbol"]
