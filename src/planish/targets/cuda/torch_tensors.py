"""PyTorch's tensors, recognised: one that was read before and has not moved is not read again.

Through DLPack that takes longer than all the rest of an `enqueue`. Nothing of the protocol is left
out: where the stream that PyTorch queues work on is the one that will read, no stream has to wait.
Anywhere else a tensor is read as any other array is.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from planish.targets.cuda.driver import LEGACY_STREAM
from planish.targets.cuda.memory import DeviceArray

if TYPE_CHECKING:
    from planish.targets.cuda.driver import Gpu

MOST = 64
"""So many tensors are remembered."""


class _Seen(NamedTuple):
    tensor: weakref.ref[Any]
    shape: Any
    array: DeviceArray


class Tensors:
    """Those of one GPU. They are not kept alive."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._seen: dict[int, _Seen] = {}

    def find(self, given: Any, stream: Any) -> DeviceArray | None:
        """A tensor as it was read before; None if it must be read."""
        seen = self._seen.get(id(given))
        if seen is None or stream is None:
            return None
        tensor: Any = seen.tensor()
        if tensor is not given:
            return None
        same = tensor.data_ptr() == seen.array.address and tensor.shape == seen.shape
        if not (same and tensor.is_contiguous()):
            return None
        current = sys.modules["torch"]._C._cuda_getCurrentRawStream(self.gpu.ordinal)
        # PyTorch's name of the legacy stream is 0
        here = (current or LEGACY_STREAM) == int(self.gpu.handle(stream))
        return seen.array if here else None

    def remember(self, given: Any, array: DeviceArray) -> None:
        """Notes what was read of an object, if that is a tensor."""
        torch = sys.modules.get("torch")
        if torch is None or not isinstance(given, torch.Tensor):
            return
        if not hasattr(torch._C, "_cuda_getCurrentRawStream"):
            return
        number = id(given)
        tensor = weakref.ref(given, lambda _: self._seen.pop(number, None))
        own = DeviceArray(self.gpu, array.shape, array.dtype, array.address, None, array.writeable)
        if len(self._seen) >= MOST:
            self._seen.pop(next(iter(self._seen)), None)
        self._seen[number] = _Seen(tensor, given.shape, own)
