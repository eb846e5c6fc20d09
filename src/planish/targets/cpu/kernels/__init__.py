"""The kernel families of the CPU, one a file. The order is that in which tactics are offered."""

from planish.targets.base import Family
from planish.targets.cpu.kernels import (
    depthwise,
    detection,
    elementwise,
    matrix,
    movement,
    ordering,
    pool,
    reduction,
    resize,
    rows,
)

FAMILIES: tuple[Family, ...] = (
    *matrix.FAMILIES,
    *depthwise.FAMILIES,
    *pool.FAMILIES,
    *reduction.FAMILIES,
    *rows.FAMILIES,
    *resize.FAMILIES,
    *elementwise.FAMILIES,
    *movement.FAMILIES,
    *ordering.FAMILIES,
    *detection.FAMILIES,
)
