"""From Triton text to a cubin with what its launch needs. Triton is imported here only.

What is stored (kernel cache, plans) is one line of JSON, then the cubin.
"""

from __future__ import annotations

import hashlib
import json
import linecache
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import DeviceError, TuningError
from planish.graph.types import DType
from planish.targets.cuda.codegen.tensor_map import BoxedArgument
from planish.targets.cuda.machine import CudaMachine

if TYPE_CHECKING:
    from planish.targets.cuda.kernel import Pointer, PtxKernel, TritonKernel

TYPES = {
    DType.FLOAT64: "fp64",
    DType.FLOAT32: "fp32",
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
    DType.INT64: "i64",
    DType.INT32: "i32",
    DType.INT16: "i16",
    DType.INT8: "i8",
    DType.UINT64: "u64",
    DType.UINT32: "u32",
    DType.UINT16: "u16",
    DType.UINT8: "u8",
    DType.BOOL: "i1",
}
"""Triton's short names of element types in signatures."""
ELF = b"\x7fELF"
"""What a cubin begins with."""

TENSOR_CORES = re.compile(r"\b(wgmma|mma|wmma|tcgen05)\.")
"""Instructions in PTX that tensor cores execute."""


@dataclass(frozen=True)
class DeviceCode:
    """A compiled kernel: its cubin, and what launching it takes.

    Attributes
    ----------
    symbol : str
        The function's name in the cubin.
    warps, shared : int
        Warps of a block, and bytes of its shared memory.
    arch : str
    overlaps : bool
        Whether it waits by itself for the kernel before it, and asks for what a later one reads:
        then its last two arguments say of what.
    tensor_cores : bool
        Whether it has instructions of tensor cores.
    cubin : bytes
    maps : tuple of BoxedArgument
        The arguments that are tensor maps.
    """

    symbol: str
    warps: int
    shared: int
    arch: str
    overlaps: bool
    tensor_cores: bool
    cubin: bytes
    maps: tuple[BoxedArgument, ...] = ()

    @cached_property
    def digest(self) -> str:
        """A name of exactly this code."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """As it is stored."""
        about = {k: v for k, v in asdict(self).items() if k != "cubin"}
        if not self.maps:
            del about["maps"]
        return json.dumps(about, sort_keys=True).encode() + b"\n" + self.cubin

    @staticmethod
    def from_bytes(data: bytes) -> DeviceCode:
        """What `to_bytes` gave.

        Raises
        ------
        ValueError
            The data is something else.
        """
        head, newline, cubin = data.partition(b"\n")
        try:
            about = json.loads(head)
        except RecursionError as error:
            raise ValueError("no description of device code") from error
        if not newline or not isinstance(about, dict):
            raise ValueError("no description of device code")
        try:
            maps = tuple(BoxedArgument.of(m) for m in about.pop("maps", ()))
            code = DeviceCode(cubin=cubin, maps=maps, **about)
        except TypeError as error:
            raise ValueError(f"it is described by {', '.join(about) or 'nothing'}") from error
        if not (isinstance(code.symbol, str) and isinstance(code.arch, str)):
            raise ValueError("symbol and arch must be text")
        if not (type(code.warps) is int and 1 <= code.warps <= 32):
            raise ValueError(f"warps cannot be {code.warps!r}")
        if not (type(code.shared) is int and 0 <= code.shared <= 1 << 20):
            raise ValueError(f"shared cannot be {code.shared!r}")
        for name in ("overlaps", "tensor_cores"):
            if type(getattr(code, name)) is not bool:
                raise ValueError(f"{name} cannot be {getattr(code, name)!r}")
        if cubin[:4] != ELF:
            raise ValueError("no device code")
        return code


def triton() -> Any:
    """The module.

    Raises
    ------
    DeviceError
        It is not installed.
    """
    try:
        import triton as module
    except ImportError as error:
        raise DeviceError(
            "Triton is not installed",
            where="kernels for GPUs",
            why=str(error),
            cure="pip install 'planish[cuda]'",
        ) from error
    return module


def load_function(source: str, symbol: str) -> Callable[..., Any]:
    """The Triton function of a module's text; its lines are kept for Triton, which reads them."""
    path = f"<planish {symbol}>"
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)
    names: dict[str, Any] = {"__name__": f"planish_generated.{symbol}"}
    exec(compile(source, path, "exec"), names)  # text that a kernel generator of ours wrote
    return names[symbol]


def compiled_by_triton(kernel: TritonKernel, machine: CudaMachine) -> Any:
    """A kernel as Triton compiles it, with the text of every stage; errors are Triton's."""
    module = triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers, params = kernel.pointers, kernel.params
    signature = {f"p{i}": _type(p) for i, p in enumerate(pointers)}
    signature |= {f"n{i}": "i32" for i in range(len(params))}
    divisible = [p.aligned and p.map is None for p in pointers] + list(params)
    if machine.overlaps:
        signature |= {"_ahead": "*i8", "_lines": "i32"}
        divisible += [True, False]
    attributes = {(i,): [["tt.divisibility", 16]] for i, known in enumerate(divisible) if known}
    major, minor = machine.capability
    function = load_function(kernel.source(machine.overlaps), kernel.symbol)
    return module.compile(
        ASTSource(function, signature, {}, attributes),
        target=GPUTarget("cuda", 10 * major + minor, 32),
        options={"num_warps": kernel.warps, "num_stages": kernel.stages},
    )


def compile_kernel(kernel: TritonKernel, machine: CudaMachine) -> bytes:
    """A kernel's `DeviceCode` as bytes.

    Raises
    ------
    TuningError
        It does not compile for the machine: too much shared memory, or a bug of a generator.
    DeviceError
        Triton is not installed.
    """
    pointers = kernel.pointers
    try:
        made = compiled_by_triton(kernel, machine)
    except Exception as error:  # Triton raises errors of many kinds
        raise TuningError(
            "A generated kernel does not compile",
            where=f"{kernel.family} on {machine.name}",
            why=f"{type(error).__name__}: {str(error)[:2000]}",
            cure="another tactic is taken; please report this with the model's op",
        ) from error
    if made.metadata.shared > machine.shared:
        raise TuningError(
            "A generated kernel needs too much shared memory",
            where=f"{kernel.family} on {machine.name}",
            why=f"{made.metadata.shared:,} bytes of {machine.shared:,}",
            cure="another tactic is taken",
        )
    if made.metadata.global_scratch_size or made.metadata.num_ctas != 1:
        raise TuningError("A generated kernel needs scratch memory", where=kernel.family)
    code = DeviceCode(
        made.metadata.name,
        kernel.warps,
        made.metadata.shared,
        machine.arch,
        machine.overlaps,
        TENSOR_CORES.search(made.asm["ptx"]) is not None,
        made.asm["cubin"],
        _boxed(pointers, made.metadata),
    )
    return code.to_bytes()


def assemble_kernel(kernel: PtxKernel, machine: CudaMachine) -> bytes:
    """The `DeviceCode` of a kernel in PTX as bytes, made by the assembler that comes with Triton.

    Raises
    ------
    TuningError
        It does not compile.
    DeviceError
        Triton is not installed.
    """
    tool = triton().knobs.nvidia.ptxas.path
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(kernel.text())
        command = [tool, f"--gpu-name={machine.arch}a", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TuningError(
                "A generated kernel does not compile",
                where=f"{kernel.family} on {machine.name}",
                why=done.stderr[:2000],
                cure="another tactic is taken; please report this with the model's op",
            )
        cubin = target.read_bytes()
    boxed = [
        BoxedArgument(
            number,
            TYPES[pointer.dtype],
            pointer.map.shape,
            pointer.map.strides,
            pointer.map.each,
            pointer.map.block,
            _exchange(pointer.map.block[-1] * pointer.dtype.size),
        )
        for number, pointer in enumerate(kernel.pointers)
        if pointer.map is not None
    ]
    code = DeviceCode(
        kernel.symbol,
        kernel.warps,
        kernel.shared,
        machine.arch,
        machine.overlaps,
        True,
        cubin,
        tuple(boxed),
    )
    return code.to_bytes()


def _exchange(line: int) -> int:
    """How places of boxes in kernels in PTX are exchanged; see `BoxedArgument.swizzle`."""
    return {128: 3, 64: 2}[line]


def _type(pointer: Pointer) -> str:
    """An argument in a signature."""
    if pointer.map is not None:
        return f"tensordesc<{TYPES[pointer.dtype]}{list(pointer.map.block)}>"
    return "*" + TYPES[pointer.dtype]


def _boxed(pointers: Sequence[Pointer], metadata: Any) -> tuple[BoxedArgument, ...]:
    """The tensor maps of a kernel; how boxes lie in shared memory was the compiler's choice."""
    mapped = [(i, p.dtype, p.map) for i, p in enumerate(pointers) if p.map is not None]
    if not mapped:
        return ()
    return tuple(
        BoxedArgument(
            number,
            TYPES[dtype],
            wanted.shape,
            wanted.strides,
            wanted.each,
            tuple(how["block_size"]),
            how["swizzle"],
        )
        for (number, dtype, wanted), how in zip(mapped, metadata.tensordesc_meta, strict=True)
    )
