"""Keras Applications with random weights, and the number of layers that fusion makes of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph
from planish.graph.verify import verify
from planish.passes import optimize
from planish.plan.views import insert_copies, place
from planish.tuning.selection import Choice, select


def application(name: str, size: int, activation: str | None = None) -> Any:
    """A network of `keras.applications` for square images; every weight is random.

    Batch norms too, which else would start as identities and hide how they are folded, and the
    scales of ConvNeXt's blocks, which would start at 1e-6 and hide the blocks.
    """
    import tensorflow as tf

    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(7)
    make = getattr(tf.keras.applications, name)
    model = make(weights=None, input_shape=(size, size, 3), classifier_activation=activation)
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.set_weights([_near(w, rng) for w in layer.get_weights()])
        elif type(layer).__name__ == "LayerScale":
            layer.set_weights([rng.uniform(0.2, 0.6, w.shape) for w in layer.get_weights()])
    return model


def settle(model: Any, images: np.ndarray) -> None:
    """Gives the batch norms of a model the statistics of these images.

    Deep networks of random weights may be chaotic: rounding the input already changes their
    results by percents. With activations of unit variance they are not.
    """
    import tensorflow as tf

    norms = [n for n in model.layers if isinstance(n, tf.keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _near(weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random values around a batch norm's initial ones: 1 for scales, 0 for offsets."""
    return (weight + rng.uniform(-0.2, 0.2, weight.shape)).astype(np.float32)


def random_images(batch: int, size: int) -> np.ndarray:
    """Smooth enough that pooling keeps something: float32 [batch, size, size, 3] in -1..1."""
    rng = np.random.default_rng(batch)
    coarse = rng.uniform(-1, 1, (batch, -(-size // 8), -(-size // 8), 3))
    images = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :size, :size]
    return (0.7 * images + 0.3 * rng.uniform(-1, 1, images.shape)).astype(np.float32)


def fused_layers(graph: Graph) -> list[Task]:
    """The fewest tasks that cover a graph, after all passes; changes the graph."""
    optimize(graph)
    insert_copies(graph)
    verify(graph)
    tasks = propose(graph, place(graph).free)
    chosen = select([Choice(frozenset(t.nodes), 1_000_000) for t in tasks], lambda *_: 0)
    return [tasks[i] for i in chosen]
