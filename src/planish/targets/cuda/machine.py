"""What a GPU can do: read from the driver, or described, so that all but running needs no GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

PRECISIONS = frozenset({"fp32", "tf32", "fp16", "bf16", "int8"})
"""What there are kernels for on every GPU."""


@dataclass(frozen=True)
class CudaMachine:
    """A GPU as the kernel generators see it.

    Attributes
    ----------
    name : str
        The GPU's own name, for people and for the timing cache.
    capability : tuple of int
        Compute capability, (9, 0) for Hopper.
    multiprocessors : int
    l2 : int
        Bytes of second-level cache.
    shared : int
        Bytes of shared memory a block may have.
    shared_per_multiprocessor : int
    registers : int
        32-bit registers of a multiprocessor.
    memory : int
        Bytes of device memory.
    ordinal : int or None
        Its number in this process; None where it is only described, so that nothing runs on it.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    l2: int
    shared: int
    shared_per_multiprocessor: int
    registers: int
    memory: int
    ordinal: int | None = field(default=None, compare=False)

    @property
    def arch(self) -> str:
        """The architecture's short name: "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def overlaps(self) -> bool:
        """Whether a kernel's start may overlap the end of the one before it."""
        return self.capability >= (9, 0)

    @property
    def precisions(self) -> frozenset[str]:
        """What there are kernels for; tensor cores take FP8 from Hopper on, as used here."""
        return PRECISIONS | {"fp8"} if self.capability >= (9, 0) else PRECISIONS

    @property
    def code_key(self) -> str:
        """What generated code depends on."""
        return f"cuda {self.arch}"

    @property
    def timing_key(self) -> str:
        """What measured times depend on."""
        return f"{self.name} {self.arch} {self.multiprocessors} multiprocessors"


H200 = CudaMachine(
    name="NVIDIA H200",
    capability=(9, 0),
    multiprocessors=132,
    l2=60 << 20,
    shared=232448,
    shared_per_multiprocessor=233472,
    registers=65536,
    memory=143771 << 20,
)
"""A described H200: for tests, and to look at kernels where there is no GPU."""
