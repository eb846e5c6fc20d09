"""The names of layers in NVIDIA's profilers: NVTX ranges, where the package `nvtx` is installed.

Only what is launched layer by layer has them, that is with a profiler: a graph is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

DOMAIN = "planish"
"""What the ranges are filed under."""


def layer_range(label: str) -> AbstractContextManager[Any]:
    """A range of that name for as long as it is entered."""
    annotate = _annotate()
    return nullcontext() if annotate is None else annotate(label, domain=DOMAIN)


@cache
def _annotate() -> Callable[..., AbstractContextManager[Any]] | None:
    try:
        import nvtx
    except ImportError:
        return None
    return nvtx.annotate
