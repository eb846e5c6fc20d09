"""TensorFlow's own graph optimizer (Grappler), with the passes that help a partitioner.

Folding, pruning and common subexpressions shrink the graph; nothing that fuses ops or changes
layouts is run, because that is what engines do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PASSES = ("pruning", "constfold", "dependency", "common_subgraph_elimination", "constfold")


def optimize_graph_def(graph_def: Any, ends: Iterable[str]) -> Any:
    """The graph, folded and pruned; where TensorFlow cannot do so, the graph as it is.

    Parameters
    ----------
    graph_def : GraphDef
    ends : iterable of str
        Names of the nodes that must stay: inputs and outputs.
    """
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
    from tensorflow.python.grappler import tf_optimizer

    import tensorflow as tf

    meta = MetaGraphDef()
    meta.graph_def.CopyFrom(graph_def)
    for node in meta.graph_def.node:
        node.ClearField("device")
    meta.collection_def["train_op"].node_list.value.extend(dict.fromkeys(ends))
    config = ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers.extend(PASSES)
    options.meta_optimizer_iterations = RewriterConfig.ONE
    options.min_graph_nodes = -1
    options.experimental_disable_folding_quantization_emulation = True
    try:
        return tf_optimizer.OptimizeGraph(config, meta, graph_id=b"planish")
    except (tf.errors.OpError, ValueError):
        import logging

        logging.getLogger("planish").debug("Grappler refused the graph", exc_info=True)
        return meta.graph_def
