"""The converters, one family of operators a file. Importing this package registers all of them."""

from planish.frontends.onnx.converters import (
    convolution,
    elementwise,
    generators,
    image,
    indexing,
    linear,
    normalization,
    pooling,
    quantization,
    reduction,
    shape,
    slicing,
    structure,
)

__all__ = [
    "convolution",
    "elementwise",
    "generators",
    "image",
    "indexing",
    "linear",
    "normalization",
    "pooling",
    "quantization",
    "reduction",
    "shape",
    "slicing",
    "structure",
]
