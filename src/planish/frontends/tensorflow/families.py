"""The list of converter families; a new file of converters is added here."""

from __future__ import annotations

from importlib import import_module

FAMILIES = (
    "passing",
    "arithmetic",
    "nn",
    "pooling",
    "normalization",
    "array",
    "indexing",
    "reduction",
    "linalg",
    "image",
    "resampling",
    "detection",
    "data_dependent",
    "quantization",
)


def load() -> None:
    """Registers all converters."""
    for family in FAMILIES:
        import_module(f"planish.frontends.tensorflow.{family}")
