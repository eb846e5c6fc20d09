"""What a model demands of its symbolic dimensions beyond what its inputs declare.

``table[:length]`` of a table of 512 positions has ``min(length, 512)`` elements. Where that is then
added to something of `length` elements, the model is valid only up to a length of 512. So a model
is imported as it stands first; if its shapes do not fit, it is imported again under the assumption
that no slice is cut short, and the ranges of its dimensions say so.
"""

from __future__ import annotations

from planish.frontends.onnx.inputs import MAX_DIMENSION
from planish.graph import Dim, DimLike, DimRange, symbol
from planish.graph.dims import bounds, symbols


class Limits:
    """The ranges of a graph's dimensions, and upper limits for them that shapes imply.

    Parameters
    ----------
    ranges : dict of str to DimRange
        The ranges of the graph, which are narrowed in place.
    assume : bool
        Whether `at_most` may narrow the range of a dimension that the user did not bound.
    """

    def __init__(self, ranges: dict[str, DimRange], assume: bool) -> None:
        self._ranges, self._assume = ranges, assume
        self.refused = False
        """Whether `at_most` could have been true with `assume`."""

    def bounds(self, dim: DimLike) -> tuple[int, int]:
        """The least and greatest value of a dimension."""
        return bounds(dim, {s: self._of(s) for s in symbols(dim)})

    def at_most(self, dim: DimLike, limit: int) -> bool:
        """Whether a dimension never exceeds a limit, or may be assumed not to."""
        if self.bounds(dim)[1] <= limit:
            return True
        names = symbols(dim)
        if not isinstance(dim, Dim) or len(names) != 1:
            return False
        (name,) = names
        rest = dim - symbol(name)
        known = self._ranges.get(name, DimRange(1, 1, MAX_DIMENSION))
        if not isinstance(rest, int) or known.max != MAX_DIMENSION or limit - rest < known.min:
            return False
        if not self._assume:
            self.refused = True
            return False
        self._ranges[name] = DimRange(known.min, min(known.opt, limit - rest), limit - rest)
        return True

    def _of(self, name: str) -> tuple[int, int]:
        known = self._ranges.get(name)
        return (known.min, known.max) if known else (1, MAX_DIMENSION)
