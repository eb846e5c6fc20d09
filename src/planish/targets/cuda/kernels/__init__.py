"""The kernel families of GPUs, one a file. The order is that in which tactics are offered."""

from planish.targets.base import Family
from planish.targets.cuda.kernels import pointwise

FAMILIES: tuple[Family, ...] = (*pointwise.FAMILIES,)
