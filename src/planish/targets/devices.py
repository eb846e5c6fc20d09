"""Devices by name."""

from __future__ import annotations

from planish.errors import DeviceError
from planish.targets.target import Target


def find_target(device: str) -> Target:
    """The target of a device name.

    Raises
    ------
    DeviceError
        There is no such device.
    """
    if device == "cpu":
        from planish.targets.cpu.target import cpu

        return cpu()
    if str(device).startswith("cuda"):
        from planish.targets.cuda.target import cuda

        return cuda(device)
    raise DeviceError(
        f"There is no device {device!r}",
        where="device=",
        why='devices are "cpu", and NVIDIA GPUs: "cuda:0"',
        cure="pass one of these names",
    )
