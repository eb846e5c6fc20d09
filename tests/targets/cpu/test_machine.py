"""The machine description: detected, restricted, refused."""

from __future__ import annotations

import pytest

from planish.errors import DeviceError
from planish.targets.cpu.machine import host


def test_host_is_plausible() -> None:
    machine = host()
    assert machine.isa in ("avx512", "avx2", "neon")
    assert machine.lanes in (4, 8, 16)
    assert machine.cores >= 1
    assert 8 << 10 <= machine.l1 <= 1 << 20
    assert machine.l2 >= 128 << 10
    assert all(f.startswith("+") for f in machine.features)


def test_restricted_to_avx2() -> None:
    machine = host()
    if machine.isa != "avx512":
        pytest.skip("needs a CPU with AVX-512")
    small = machine.restricted("avx2")
    assert (small.lanes, small.registers) == (8, 16)
    assert not [f for f in small.features if "avx512" in f or "amx" in f]
    assert small.code_key != machine.code_key


def test_cannot_become_more_than_it_is() -> None:
    with pytest.raises(DeviceError, match="cannot run code"):
        host().restricted("sve")
