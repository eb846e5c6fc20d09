"""Ready metrics for ``evaluate=``: functions from an engine to its scores, larger is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from planish.errors import InputError
from planish.quantization.scores import Scores

if TYPE_CHECKING:
    from planish.runtime.engine import Engine

ROWS = 8
"""Images that are run together, where the engine takes any number."""


def top1(
    images: Any,
    labels: Sequence[int] | np.ndarray,
    *,
    output: str | None = None,
    classes_before: int = 0,
) -> Callable[[Engine], Scores]:
    """Top-1 accuracy in percent, as a metric for ``evaluate=``.

    Parameters
    ----------
    images : array
        All images, prepared as the engine's only input takes them; or an iterable of batches that
        can be iterated over again, such as a list or a `planish.quantization.ImageFolder`.
    labels : sequence of int
        The class of each image, in the same order.
    output : str, optional
        The output that holds the scores, ``[N, classes]``; None: the only one.
    classes_before : int
        How many classes the model has before the first label; 1 for models with a background class.

    Returns
    -------
    callable
        From an engine to a number between 0 and 100, which knows the images that are right (100)
        and wrong (0): budgets are in percentage points.

    Raises
    ------
    InputError
        The arguments are wrong; or, when it is called, images, labels and the engine do not fit.
    """
    wanted = whole_numbers(labels, "top1(labels=)")
    if iter(images) is images:
        raise InputError(
            "images= can be read only once",
            where="top1(images=)",
            why="the metric is computed again for every engine that is tried",
            cure="pass an array, a list of batches, or an ImageFolder",
        )
    wanted = wanted + classes_before

    def evaluate(engine: Engine) -> Scores:
        right, seen = [], 0
        for batch in _batches(images, engine):
            found = _scores(engine(batch), output).argmax(-1)
            known = wanted[seen : seen + len(found)]
            right.append(found[: len(known)] == known)
            seen += len(found)
            if seen > len(wanted):
                break
        if seen != len(wanted):
            count = "more" if seen > len(wanted) else seen
            raise InputError(
                f"There are {len(wanted)} labels, and {count} images",
                where="top1()",
                why="each image has one label",
                cure="pass as many labels as images, in the same order",
            )
        return Scores(100.0 * np.concatenate(right))

    return evaluate


def whole_numbers(labels: Sequence[int] | np.ndarray, where: str) -> np.ndarray:
    """Labels as an array.

    Raises
    ------
    InputError
        They are no whole numbers.
    """
    wanted = np.asarray(labels)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or not wanted.size:
        raise InputError(
            "labels= must be whole numbers, one for each image",
            where=where,
            why=f"it has shape {wanted.shape} and dtype {wanted.dtype}",
            cure="pass the classes' numbers; for one-hot labels, labels.argmax(1)",
        )
    return wanted


def _batches(images: Any, engine: Engine) -> Any:
    if not isinstance(images, np.ndarray):
        return images
    first = engine.inputs[0].shape[0]
    rows = first if isinstance(first, int) else ROWS
    return (images[at : at + rows] for at in range(0, len(images), rows))


def _scores(result: Any, output: str | None) -> np.ndarray:
    if isinstance(result, dict):
        if output not in result:
            raise InputError(
                f"The engine has {len(result)} outputs"
                if output is None
                else f"The engine has no output {output!r}",
                where="top1(output=)",
                why=f"its outputs are {', '.join(result)}",
                cure="name the one with the scores",
            )
        result = result[output]
    scores = np.asarray(result)
    scores = scores.reshape(len(scores), -1) if scores.ndim > 2 else scores
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InputError(
            f"An output of shape {scores.shape} holds no scores of classes",
            where="top1(output=)",
            why="scores have the shape [N, classes]",
            cure="name another output",
        )
    return scores
