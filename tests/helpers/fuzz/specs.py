"""How to apply each op at random: the one table that a new op needs a row in.

Elementwise ops without attributes need none. The rows stand in the modules imported here.
"""

from __future__ import annotations

from dataclasses import fields

import helpers.fuzz.movement_specs
import helpers.fuzz.region_specs  # noqa: F401
from helpers.fuzz.compute_specs import elementwise
from helpers.fuzz.table import SPECS, Spec
from planish.ops.base import Op
from planish.ops.elementwise import Elementwise


def spec_of(kind: type[Op]) -> Spec:
    """The spec of an op: its row, or that of all elementwise ops without attributes.

    Raises
    ------
    KeyError
        The op has attributes, or is not elementwise, and has no row.
    """
    if kind.name in SPECS:
        return SPECS[kind.name]
    if issubclass(kind, Elementwise) and not fields(kind):
        return elementwise(kind)
    raise KeyError(f"the op {kind.name} needs a row in tests/helpers/fuzz")


def has_spec(kind: type[Op]) -> bool:
    """Whether an op can be drawn."""
    return kind.name in SPECS or (issubclass(kind, Elementwise) and not fields(kind))
