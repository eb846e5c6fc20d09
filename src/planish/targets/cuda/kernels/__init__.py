"""The kernel families of GPUs, one a file, those written in PTX in a folder of their own. The order
is that in which tactics are offered.
"""

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
    mapped,
    mapped_pool,
    matrix,
    matrix_sum,
    movement,
    nonzero,
    opening,
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
from planish.targets.cuda.kernels.ptx.attention import tactics as short_attention
from planish.targets.cuda.kernels.ptx.first_conv import tactics as first_conv
from planish.targets.cuda.kernels.ptx.prompt import tactics as prompt
from planish.targets.cuda.kernels.ptx.specialized import tactics as specialized
from planish.targets.cuda.kernels.ptx.specialized_norm import tactics as specialized_norm
from planish.targets.cuda.kernels.ptx.specialized_pair import tactics as specialized_pair

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
    *mapped.FAMILIES,
    *mapped_pool.FAMILIES,
    *specialized.FAMILIES,
    *specialized_norm.FAMILIES,
    *prompt.FAMILIES,
    *matrix.IMAGE_FAMILIES,
    *specialized.IMAGE_FAMILIES,
    *matrix_sum.FAMILIES,
    *attention.FAMILIES,
    *short_attention.FAMILIES,
    *cudnn_attention.FAMILIES,
    *depthwise_product.FAMILIES,
    *product_pair.FAMILIES,
    *specialized_pair.FAMILIES,
    *opening.FAMILIES,
    *first_conv.FAMILIES,
    *cudnn.FAMILIES,
    *cublaslt.FAMILIES,
    *contraction.fallback(_PRODUCTS),
)
