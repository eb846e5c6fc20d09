"""The machine description: detected, restricted, refused."""

from __future__ import annotations

import pytest

from planish.errors import DeviceError
from planish.targets.cpu.machine import _model_name, generic, host


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


@pytest.mark.parametrize(
    ("isa", "architecture", "lanes", "registers"),
    [("neon", "aarch64", 4, 32), ("avx2", "x86_64", 8, 16), ("avx512", "x86_64", 16, 32)],
)
def test_generic_machines(isa: str, architecture: str, lanes: int, registers: int) -> None:
    machine = generic(isa)
    assert (machine.architecture, machine.lanes) == (architecture, lanes)
    assert machine.registers == registers
    assert machine == generic(isa)


def test_unknown_generic_machine() -> None:
    with pytest.raises(DeviceError, match="sve"):
        generic("sve")


def test_model_of_an_arm_core(tmp_path) -> None:
    """Its kernel gives no name, but numbers that tell cores apart."""
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n")
    assert _model_name(str(info)) == "Arm 0x41 0xd0c"
    info.write_text("processor : 0\nmodel name : Some CPU\n")
    assert _model_name(str(info)) == "Some CPU"
    assert _model_name(str(tmp_path / "missing"))
