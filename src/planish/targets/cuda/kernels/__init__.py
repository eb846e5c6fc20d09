"""The kernel families of GPUs, one a file. The order is that in which tactics are offered."""

from planish.targets.base import Family
from planish.targets.cuda.kernels import (
    attention,
    contraction,
    cublaslt,
    cudnn,
    depthwise,
    depthwise_product,
    gather,
    matrix,
    movement,
    pointwise,
    pool,
    product_pair,
    reduction,
    resize,
    rows,
)

_PRODUCTS: tuple[Family, ...] = (*matrix.FAMILIES, *depthwise.FAMILIES)
"""The fast families of products and convolutions; `contraction` takes what they decline."""

FAMILIES: tuple[Family, ...] = (
    *pointwise.FAMILIES,
    *reduction.FAMILIES,
    *rows.FAMILIES,
    *movement.FAMILIES,
    *gather.FAMILIES,
    *pool.FAMILIES,
    *resize.FAMILIES,
    *_PRODUCTS,
    *attention.FAMILIES,
    *depthwise_product.FAMILIES,
    *product_pair.FAMILIES,
    *cudnn.FAMILIES,
    *cublaslt.FAMILIES,
    *contraction.fallback(_PRODUCTS),
)
