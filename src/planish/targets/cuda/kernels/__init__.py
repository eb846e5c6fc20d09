"""The kernel families of GPUs, one a file. The order is that in which tactics are offered."""

from planish.targets.base import Family
from planish.targets.cuda.kernels import (
    attention,
    contraction,
    cublaslt,
    cudnn,
    cudnn_attention,
    depthwise,
    depthwise_product,
    fold,
    gather,
    matrix,
    movement,
    nonzero,
    pointwise,
    pool,
    pool_indices,
    product_pair,
    recurrent,
    reduction,
    resize,
    rows,
    sampling,
    suppression,
    top_k,
    unique,
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
    *pool_indices.FAMILIES,
    *fold.FAMILIES,
    *resize.FAMILIES,
    *sampling.FAMILIES,
    *recurrent.FAMILIES,
    *top_k.FAMILIES,
    *suppression.FAMILIES,
    *nonzero.FAMILIES,
    *unique.FAMILIES,
    *_PRODUCTS,
    *matrix.IMAGE_FAMILIES,
    *attention.FAMILIES,
    *cudnn_attention.FAMILIES,
    *depthwise_product.FAMILIES,
    *product_pair.FAMILIES,
    *cudnn.FAMILIES,
    *cublaslt.FAMILIES,
    *contraction.fallback(_PRODUCTS),
)
