"""Sums of products of bytes in 16 bits, as ``vpmaddubsw`` makes them: which weights share one, and
how large they may be together.
"""

from __future__ import annotations

import numpy as np

LARGEST_SUM = 128
"""Weights of one sign, multiplied by any unsigned bytes, fit 16 bits up to this sum."""

EIGHTS = 8
"""Four products are those of two pairs in two neighbouring groups of four in depth, so that they
are added up only where the depth is whole eights.
"""


def largest_sums(weights: np.ndarray, count: int) -> np.ndarray:
    """By channel, the largest sum of magnitudes of weights whose products are added in 16 bits.

    Weights of different signs do not add up: there, those of one sign count.

    Parameters
    ----------
    weights : array, ``[..., channels]`` or ``[..., depth, channels]``
    count : int
        2: products of weights side by side in depth are added up; at an odd depth any two
        neighbours may be, those of two taps included. 4: of each eight in depth those of the first
        and third pair, and those of the second and fourth; only for whole `EIGHTS`.

    Returns
    -------
    array, ``[channels]``
    """
    depth = weights.shape[-2] if weights.ndim > 1 else 1
    flat = weights.reshape(-1, weights.shape[-1])
    if count == 4:
        if depth % EIGHTS:
            raise ValueError(f"four products are added up in whole eights of depth, not in {depth}")
        eights = flat.reshape(-1, 2, 2, 2, flat.shape[-1])
        together = [eights[:, i, :, j] for i in range(2) for j in range(2)]
    elif depth % 2:
        together = [flat[:-1], flat[1:]]
    else:
        together = [flat[::2], flat[1::2]]
    sums = [sum(np.maximum(sign * w, 0) for w in together) for sign in (1, -1)]
    axes = tuple(range(np.ndim(sums) - 1))
    return np.max(sums, axis=axes, initial=0)
