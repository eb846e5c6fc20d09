"""Machines that tests generate kernels for besides the one they run on."""

from __future__ import annotations

import pytest

from planish.errors import DeviceError
from planish.targets.cpu.machine import Machine, host


def restricted(isa: str) -> Machine:
    """This machine with an instruction set only; the test is skipped where it lacks that."""
    try:
        return host().restricted(isa)
    except DeviceError as error:
        pytest.skip(error.what)
