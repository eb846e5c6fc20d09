"""The base of all kernels generated for GPUs: a program's text as a frozen dataclass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from planish.graph.types import DType
from planish.targets.base import Kernel
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.machine import CudaMachine


@dataclass(frozen=True)
class Pointer:
    """What a pointer argument points to.

    `aligned` promises that it is a multiple of 16 bytes, which wide loads need.
    """

    dtype: DType
    aligned: bool = True

    @property
    def map(self) -> TensorMap | None:
        """How boxes of the tensor are loaded, if they are: then it is no pointer to the kernel."""
        return None


@dataclass(frozen=True)
class MappedPointer(Pointer):
    """A pointer to a tensor of which a kernel loads boxes: ``p0.load([row, column])``."""

    tensor: TensorMap = field(kw_only=True)

    @property
    def map(self) -> TensorMap:
        return self.tensor


@dataclass(frozen=True)
class GeneratedKernel(Kernel):
    """A kernel whose text is generated. Subclasses are frozen dataclasses of what it depends on."""

    @property
    @abstractmethod
    def pointers(self) -> tuple[Pointer, ...]:
        """The pointer arguments `p0`, `p1`, …, as launches pass them."""

    @property
    def params(self) -> tuple[bool, ...]:
        """For each integer argument `n0`, `n1`, … whether it is always a multiple of 16."""
        return ()


@dataclass(frozen=True)
class TritonKernel(GeneratedKernel):
    """A kernel written as Triton text.

    Attributes
    ----------
    warps : int
        Warps of a program (block).
    stages : int
        Depth of the software pipeline of its loops.
    """

    warps: int
    stages: int

    @abstractmethod
    def write(self, k: Source) -> None:
        """Writes the kernel's body. A launch of `tasks` runs that many programs along axis 0."""

    def source(self, overlaps: bool = False) -> str:
        """The kernel as Triton text; see `Source.finish`."""
        k = Source()
        self.write(k)
        threads = 32 * self.warps if overlaps else 0
        return k.finish(self.symbol, len(self.pointers), len(self.params), threads)

    def compile(self, machine: CudaMachine) -> bytes:
        from planish.targets.cuda.codegen.compile import compile_kernel

        return compile_kernel(self, machine)


@dataclass(frozen=True)
class PtxKernel(GeneratedKernel):
    """A kernel written as PTX, for Hopper: what Triton's language cannot express."""

    warps: ClassVar[int]
    """Of a program (block)."""

    cluster: int
    """Neighbouring blocks that reach one another's shared memory; launches have multiples of it."""

    @property
    @abstractmethod
    def shared(self) -> int:
        """Bytes of shared memory."""

    @abstractmethod
    def text(self) -> str:
        """The kernel as PTX. Its arguments are those that Triton's kernels have."""

    def compile(self, machine: CudaMachine) -> bytes:
        from planish.targets.cuda.codegen.compile import assemble_kernel

        return assemble_kernel(self, machine)


class LibraryCall(Protocol):
    """A vendor library's kernel, ready to be queued."""

    def queue(self, addresses: Sequence[int], params: Sequence[int], stream: Any) -> None:
        """Queues it on a stream, also on one that is captured; allocates nothing."""


LIBRARY_SECONDS = 0.65e-6
"""What a kernel of a library costs a network beside its own time: it starts when the one before it
has ended, while generated ones overlap. Measured with ResNet-50 at batch 1 and 8 on an H200, where
the sum of all layers' times and the network's were compared with and without libraries.
"""


class LibraryKernel(Kernel):
    """A kernel of a vendor library, as a frozen dataclass of what it takes to make it again."""

    is_planned: ClassVar[bool] = False
    """Whether the library plans, and perhaps compiles, for so long, holding Python's lock, that
    other processes do it: `compile` is called there, and `keep` here is given what it returns.
    """

    @abstractmethod
    def load(self, gpu: Any) -> LibraryCall:
        """Makes it ready on a `planish.targets.cuda.driver.Gpu`.

        Raises
        ------
        TuningError
            The library does not have it.
        """

    def stored(self, gpu: Any) -> bytes | None:
        """What makes `load` quick in another process, if the library has such a thing."""
        return None

    def keep(self, gpu: Any, code: bytes) -> None:
        """Keeps what `stored` is to find."""

    def compile(self, machine: CudaMachine) -> bytes:
        raise NotImplementedError("the library holds its code")
