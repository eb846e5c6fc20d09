"""Bytes on a GPU and on the host, as `planish.targets.cuda.driver.Gpu` allocates them."""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from planish.targets.cuda.driver import Gpu


class DeviceMemory:
    """Bytes of device memory; freed when the object is.

    `users` are streams that may still use it then: what gets the memory next waits for them.
    """

    def __init__(self, gpu: Gpu, size: int, buffer: Any) -> None:
        self.address = int(buffer.handle)
        self.nbytes = size
        self.gpu = gpu
        self.users: dict[int, Any] = {}
        self._buffer = buffer
        weakref.finalize(self, gpu.give_back, size, self.users)

    def used_on(self, stream: Any) -> None:
        """Notes a stream that uses it: one of cuda.core, or a handle."""
        self.users[-stream if isinstance(stream, int) else id(stream)] = stream


class HostMemory:
    """Bytes of pinned host memory: copies to and from the device run beside other work."""

    def __init__(self, gpu: Gpu, size: int, buffer: Any) -> None:
        self.address = int(buffer.handle)
        self.nbytes = size
        self._buffer = buffer
        self.bytes = np.ctypeslib.as_array(
            (ctypes.c_uint8 * max(size, 1)).from_address(self.address)
        )
