"""What calibration yields: the dynamic range of each tensor.

Ranges, not scales: a scale follows from a range and from the integers that a target quantizes to,
so that the same ranges serve every target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

VERSION = 1
"""What ranges mean: which values they are named after. Caches of another version are refused."""


@dataclass(frozen=True)
class Ranges:
    """Dynamic ranges of a network's tensors: what calibration yields.

    Attributes
    ----------
    tensors : mapping of str to (float, float)
        By the name of a value in the optimised graph the least and greatest number that
        quantization shall hold; finite, least <= 0 <= greatest. Both are 0 where the data gave
        nothing but zeros.
    network : str
        The fingerprint of the optimised float32 graph (`planish.quantization.fingerprint`); empty
        where ranges were not collected from one.
    calibrator : str
        How they were found, in words: "entropy", "percentile 99.99", "given".
    version : int
        `VERSION` of the release that found them.
    dummy : frozenset of str
        The tensors whose ranges were made up, for trials of speed: results are worthless.
    means : mapping of str to tuple of float
        By the name of a tensor that products read, the mean of each channel (the last axis); with
        few digits. Rounding weights shifts results by multiples of them.
    extremes : mapping of str to tuple of (float, float)
        By the name of such a tensor the least and the greatest number of each channel.
    """

    tensors: Mapping[str, tuple[float, float]]
    network: str = ""
    calibrator: str = ""
    version: int = VERSION
    dummy: frozenset[str] = frozenset()
    means: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    extremes: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
