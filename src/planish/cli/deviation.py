"""How far arrays are from what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planish.errors import InputError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Deviation:
    """One output against its reference.

    Attributes
    ----------
    name : str
    largest : float
        The largest absolute difference; infinite where one is nan or infinite and the other not.
    relative : float
        `largest` by the largest finite magnitude of the reference (1 if that is zero).
    cosine : float
        Of the angle between the two as vectors; 1 for two vectors of zeros.
    top1 : float or None
        For 2-D outputs of several columns: in what share of the rows the largest is the same.
    """

    name: str
    largest: float
    relative: float
    cosine: float
    top1: float | None


def deviation(name: str, reference: np.ndarray, actual: np.ndarray) -> Deviation:
    """Compares an output with its reference, in float64.

    Raises
    ------
    InputError
        Their shapes differ.
    """
    import numpy as np

    if reference.shape != actual.shape:
        raise InputError(
            f"Output {name!r} has another shape than its reference",
            why=f"{actual.shape} instead of {reference.shape}",
        )
    a, b = (np.asarray(x).astype(np.float64) for x in (reference, actual))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    difference = np.where(np.isnan(difference), np.inf, difference)
    finite = np.abs(a[np.isfinite(a)])
    scale = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    largest = float(difference.max()) if difference.size else 0.0
    top1 = None
    if a.ndim == 2 and a.shape[1] > 1 and a.shape[0]:
        top1 = float((a.argmax(1) == b.argmax(1)).mean())
    return Deviation(name, largest, largest / scale, _cosine(a, b), top1)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Over the elements where both are finite."""
    import numpy as np

    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        return 1.0 if not (a.any() or b.any()) else 0.0
    return float(a @ b / lengths)


def deviations(
    names: Sequence[str], references: Sequence[np.ndarray], actual: Sequence[np.ndarray]
) -> list[Deviation]:
    """Each output against its reference."""
    return [deviation(n, r, a) for n, r, a in zip(names, references, actual, strict=True)]
