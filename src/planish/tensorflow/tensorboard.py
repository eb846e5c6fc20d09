"""Pictures of a graph before and after its conversion, for TensorBoard."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from planish.errors import InputError
from planish.frontends.tensorflow.model import tensorflow

_SHOWN_BYTES = 1024
"""Constants above this size are shown without their elements."""


def write_graphs(folder: str | os.PathLike[str], converter: Any) -> tuple[Path, Path]:
    """Writes event files with the graphs before and after a conversion.

    ``tensorboard --logdir folder`` shows them as the runs "before" and "after".

    Parameters
    ----------
    folder : path
    converter : TrtGraphConverterV2, TrtGraphConverter or Converted
        After ``convert()``.

    Returns
    -------
    (Path, Path)
        The two folders of event files.

    Raises
    ------
    OrderError
        The model is not converted yet.
    InputError
        The folder cannot be written.
    """
    tf = tensorflow()
    converted = getattr(converter, "converted", converter)
    graphs = {"before": converted.source, "after": converted.graph_def}
    paths = {run: Path(folder) / run for run in graphs}
    try:
        for run, graph_def in graphs.items():
            with tf.init_scope():
                writer = tf.summary.create_file_writer(str(paths[run]))
                with writer.as_default():
                    tf.summary.graph(_without_weights(graph_def))
                writer.close()
    except (OSError, tf.errors.OpError) as error:
        raise InputError(
            "The graphs cannot be written", where=str(folder), why=str(error)
        ) from error
    return paths["before"], paths["after"]


def _without_weights(graph_def: Any) -> Any:
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    bodies = [copy.node, *(f.node_def for f in copy.library.function)]
    for node in (n for body in bodies for n in body):
        if node.op == "Const" and node.attr["value"].ByteSize() > _SHOWN_BYTES:
            tensor = node.attr["value"].tensor
            shown = type(tensor)(dtype=tensor.dtype, tensor_shape=tensor.tensor_shape)
            tensor.CopyFrom(shown)
    return copy
