"""What became of a graph: the result of a conversion, which its makers and its reports share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.weights import Weights
from planish.quantization.ranges import Ranges
from planish.runtime.engine import Engine
from planish.tensorflow.counted import Edge
from planish.tensorflow.rewrite import EngineNode


@dataclass
class Converted:
    """What became of a graph.

    Attributes
    ----------
    graph_def : GraphDef
        The new graph; it has a node for the plan of each engine.
    source : GraphDef
        The graph before.
    weights : Weights
        The arrays of nodes of both graphs that only stand for them.
    engines : list of EngineNode
    built : dict of str to Engine
        By the name of the engine's node.
    reasons : dict of str to str
        Why each other node stayed in TensorFlow.
    cuts : frozenset of pairs of str
        The edges at which the graph was cut because the reader needs to know how large a result
        is, which the data decide.
    ranges : dict of str to Ranges
        By the name of the engine's node, where ranges were calibrated.
    moved : mapping of Tensor to Tensor
        Where tensors are now that segments made.
    """

    graph_def: Any
    source: Any
    weights: Weights = field(default_factory=dict)
    engines: list[EngineNode] = field(default_factory=list)
    built: dict[str, Engine] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    cuts: frozenset[Edge] = frozenset()
    ranges: dict[str, Ranges] = field(default_factory=dict)
    moved: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> str:
        """The present name of a tensor of the source."""
        found = graphdef.tensor_name(name)
        node, index = self.moved.get(found, found)
        return f"{node}:{index}"

    def operations(self, engine: str) -> Counter[str]:
        """The op types in an engine, constants included, with their numbers."""
        (node,) = (e for e in self.engines if e.name == engine)
        nodes = graphdef.nodes_by_name(self.source)
        names = (*node.segment.nodes, *node.segment.constants)
        return Counter("Const" if n in self.weights else nodes[n].op for n in names)

    def native_weights(self) -> Weights:
        """The weights that nodes outside of engines read."""
        read = {graphdef.tensor_name(t)[0] for n in self.graph_def.node for t in n.input}
        return {name: array for name, array in self.weights.items() if name in read}
