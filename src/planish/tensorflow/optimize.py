"""TensorFlow's own graph optimizer (Grappler), with the passes that help a partitioner.

Folding, pruning and common subexpressions shrink the graph; nothing that fuses ops or changes
layouts is run, because that is what engines do. Weights stand beside the graph meanwhile, so that
its size is no matter.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from planish.frontends.tensorflow.weights import Weights, take_out
from planish.tensorflow.fold import fold_weights

log = logging.getLogger("planish")

PASSES = ("pruning", "constfold", "dependency", "common_subgraph_elimination", "constfold")


def optimize_graph_def(
    graph_def: Any, ends: Iterable[str], weights: Weights | None = None
) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph, folded and pruned, and its weights; where TensorFlow cannot, the graph as it is.

    Parameters
    ----------
    graph_def : GraphDef
    ends : iterable of str
        Names of the nodes that must stay: inputs and outputs.
    weights : Weights, optional
        The arrays of nodes that only stand for them. Large constants of the graph join them.
    """
    ends = list(dict.fromkeys(ends))
    light, found = take_out(graph_def, weights)
    return fold_weights(_optimized(light, ends), found, ends)


def _optimized(graph_def: Any, ends: Iterable[str]) -> Any:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
    from tensorflow.python.grappler import tf_optimizer

    import tensorflow as tf

    meta = MetaGraphDef()
    meta.graph_def.CopyFrom(graph_def)
    for node in meta.graph_def.node:
        node.ClearField("device")
    meta.collection_def["train_op"].node_list.value.extend(ends)
    config = ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers.extend(PASSES)
    options.meta_optimizer_iterations = RewriterConfig.ONE
    options.min_graph_nodes = -1
    options.experimental_disable_folding_quantization_emulation = True
    try:
        return tf_optimizer.OptimizeGraph(config, meta, graph_id=b"planish")
    except (tf.errors.OpError, ValueError):
        log.debug("Grappler refused the graph", exc_info=True)
        return meta.graph_def
