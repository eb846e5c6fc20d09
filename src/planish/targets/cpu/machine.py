"""What this machine's CPU can do: found out, never assumed."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from planish.errors import DeviceError

log = logging.getLogger("planish")

_LANES = {"avx512": 16, "avx2": 8, "neon": 4}
_ARCHITECTURES = {"avx512": "x86_64", "avx2": "x86_64", "neon": "aarch64"}
_BASE_FEATURES = {
    "avx512": ("+avx512bw", "+avx512cd", "+avx512dq", "+avx512f", "+avx512vl"),
    "avx2": ("+avx", "+avx2", "+bmi", "+bmi2", "+f16c", "+fma", "+lzcnt", "+movbe", "+popcnt"),
    "neon": ("+fp-armv8", "+neon"),
}
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AVX2 = {"avx2", "fma"}


@dataclass(frozen=True)
class Machine:
    """A CPU as the code generator sees it.

    Attributes
    ----------
    triple : str
        LLVM's target triple.
    isa : str
        "avx512", "avx2" or "neon": decides the vector width.
    features : tuple of str
        LLVM feature flags (``+avx2``), sorted.
    cores : int
        Cores this process may use.
    l1, l2 : int
        Bytes of data cache per core.
    l3 : int
        Bytes of the cache that cores share; 0 where there is none.
    model : str
        The CPU's own name, for people and for the timing cache.
    """

    triple: str
    isa: str
    features: tuple[str, ...]
    cores: int
    l1: int
    l2: int
    model: str
    l3: int = 0

    @property
    def lanes(self) -> int:
        """32-bit elements per vector register."""
        return _LANES[self.isa]

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 16 if self.isa == "avx2" else 32

    @property
    def has_vnni(self) -> bool:
        """Whether it multiplies bytes four at a time (``vpdpbusd``) in registers of full width."""
        wanted = {"avx512": "+avx512vnni", "avx2": "+avxvnni"}.get(self.isa)
        return wanted in self.features

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies pairs of bfloat16 (``vdpbf16ps``) in registers of full width."""
        return self.isa == "avx512" and "+avx512bf16" in self.features

    @property
    def has_bf16_tiles(self) -> bool:
        """Whether it multiplies tiles of bfloat16 (``tdpbf16ps``)."""
        return self.isa == "avx512" and {"+amx-tile", "+amx-bf16"} <= set(self.features)

    @property
    def has_byte_tiles(self) -> bool:
        """Whether it multiplies tiles of bytes (``tdpbusd``)."""
        return self.isa == "avx512" and {"+amx-tile", "+amx-int8"} <= set(self.features)

    @property
    def architecture(self) -> str:
        """The first part of the triple: "x86_64" or "aarch64"."""
        return self.triple.split("-")[0]

    @property
    def code_key(self) -> str:
        """What generated code depends on."""
        return f"{self.triple} {self.isa} {' '.join(self.features)}"

    @property
    def timing_key(self) -> str:
        """What measured times depend on."""
        tiles = " amx" if self.has_bf16_tiles or self.has_byte_tiles else ""
        return f"{self.model} {self.isa}{tiles} {self.cores} cores"

    def without_tiles(self) -> Machine:
        """The same machine as if it had no tiles (AMX)."""
        kept = tuple(f for f in self.features if not f.startswith("+amx"))
        return replace(self, features=kept)

    def restricted(self, isa: str) -> Machine:
        """The same machine as if it had only the given instruction set: "avx2", or "avx512", which
        is its own without tiles.
        """
        if isa == self.isa:
            return self.without_tiles()
        if self.isa != "avx512" or isa != "avx2":
            raise DeviceError(
                f"This machine cannot run code for {isa}",
                why=f"it has {self.isa}",
                cure="choose avx2 on a machine with AVX-512, or nothing",
            )
        wide = ("+avx512", "+avx10", "+amx", "+evex")
        kept = tuple(f for f in self.features if not f.startswith(wide))
        return replace(self, isa=isa, features=kept)


def generic(isa: str) -> Machine:
    """A plain CPU of an instruction set, to generate code for that runs elsewhere.

    "neon" is ARMv8.0: no arithmetic in float16, no dot products; "avx2" and "avx512" are the third
    and the fourth level of x86-64.

    Raises
    ------
    DeviceError
        There is no such instruction set.
    """
    if isa not in _LANES:
        raise DeviceError(
            f"There are no kernels for the instruction set {isa!r}",
            cure=f"choose one of {', '.join(_LANES)}",
        )
    features = _BASE_FEATURES[isa] + (_BASE_FEATURES["avx2"] if isa == "avx512" else ())
    return Machine(
        triple=f"{_ARCHITECTURES[isa]}-unknown-linux-gnu",
        isa=isa,
        features=tuple(sorted(features)),
        cores=4,
        l1=32 << 10,
        l2=512 << 10,
        model=f"generic {isa}",
    )


@cache
def host() -> Machine:
    """The machine this process runs on; ``PLANISH_CPU_ISA=avx2`` restricts it, and so does
    ``=avx512`` where there are tiles.

    Linux gives tiles (AMX) only to processes that ask for them; where it refuses, the machine is
    described without.

    Raises
    ------
    DeviceError
        The CPU has neither AVX2 with FMA, nor AVX-512, nor NEON.
    """
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    flags = dict(llvm.get_host_cpu_features())
    present = {name for name, on in flags.items() if on}
    triple = llvm.get_process_triple()
    if triple.startswith("aarch64"):
        isa = "neon"
    elif present >= _AVX512 | _AVX2:
        isa = "avx512"
    elif present >= _AVX2:
        isa = "avx2"
    else:
        raise DeviceError(
            "This CPU lacks the vector instructions Planish needs",
            why="it has neither AVX2 with FMA nor AVX-512",
            cure="use an x86-64 CPU of 2013 or later, or a 64-bit Arm CPU",
        )
    machine = Machine(
        triple=triple,
        isa=isa,
        features=tuple(sorted("+" + name for name in present)),
        cores=len(os.sched_getaffinity(0)),
        l1=_cache_bytes(1, 32 << 10),
        l2=_cache_bytes(2, 512 << 10),
        model=_model_name(),
        l3=_cache_bytes(3, 0),
    )
    wanted = os.environ.get("PLANISH_CPU_ISA")
    machine = machine.restricted(wanted) if wanted else machine
    if "+amx-tile" in machine.features and not may_use_tiles():
        return machine.without_tiles()
    return machine


_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""Of Linux on x86-64 (Documentation/arch/x86/xstate.rst)."""


def may_use_tiles() -> bool:
    """Asks Linux to let all threads of this process use tiles; where it refuses, the log says so.

    Children inherit the answer; a signal stack that is too small for tiles is a reason to refuse.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0:
        return True
    why = os.strerror(ctypes.get_errno())
    log.info("AMX is not used: the system does not let this process use tiles (%s)", why)
    return False


def _cache_bytes(level: int, default: int) -> int:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind = (index / "type").read_text().strip()
            if kind != "Instruction" and int((index / "level").read_text()) == level:
                text = (index / "size").read_text().strip()
                return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
        except (OSError, ValueError, KeyError):
            continue
    return default


def _model_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    try:
        lines = Path(cpuinfo).read_text().splitlines()
    except OSError:
        lines = []
    said = {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}
    if "model name" in said:
        return said["model name"]
    if "CPU part" in said:  # Arm's kernels name the core by numbers
        return f"Arm {said.get('CPU implementer', '')} {said['CPU part']}"
    import platform

    return platform.processor() or platform.machine()
