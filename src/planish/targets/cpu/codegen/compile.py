"""From LLVM assembly to machine code, and from machine code to callable addresses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from planish import native
from planish.errors import DeviceError, TuningError
from planish.targets.cpu.machine import Machine


@cache
def binding() -> Any:
    """LLVM. A fork waits for the call that another thread is in, or LLVM's lock would be held in
    the child for good.
    """
    import llvmlite.binding as llvm
    from llvmlite.binding import ffi

    native.hold_over_forks(ffi.lib._lock)
    return llvm


def compile_assembly(assembly: str, machine: Machine) -> bytes:
    """Optimises a module and gives its object file.

    Vectorising and unrolling are off: kernels come vectorised and unrolled as they are meant.

    Raises
    ------
    TuningError
        The assembly is invalid: a bug of a kernel generator.
    """
    llvm = binding()

    target = _target_machine(machine)
    try:
        module = llvm.parse_assembly(assembly)
        module.verify()
    except RuntimeError as error:
        raise TuningError(
            "A generated kernel is not valid LLVM assembly",
            why=str(error)[:2000],
            cure="please report this with the model's op",
        ) from error
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return target.emit_object(module)


def emit_text(assembly: str, machine: Machine) -> str:
    """The machine's assembly text of a module, for people."""
    llvm = binding()

    target = _target_machine(machine)
    module = llvm.parse_assembly(assembly)
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    return target.emit_assembly(module)


class Library:
    """Machine code in memory. The addresses are valid as long as this object lives.

    Raises
    ------
    DeviceError
        The code is for another architecture.
    """

    def __init__(self, objects: Mapping[str, bytes], machine: Machine) -> None:
        llvm = binding()

        if not is_native(machine):
            raise DeviceError(
                f"Code for {machine.architecture} cannot run here",
                why=f"this process runs on {llvm.get_process_triple()}",
                cure="run it on such a machine",
            )
        # the engine owns its target machine, so it cannot be the cached one
        self._engine: Any = llvm.create_mcjit_compiler(
            llvm.parse_assembly(f'target triple = "{machine.triple}"'), _new_target(machine)
        )
        for code in objects.values():
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        self.addresses: dict[str, int] = {
            name: self._engine.get_function_address(name) for name in objects
        }


def is_native(machine: Machine) -> bool:
    """Whether this process can run code for the machine, as far as its architecture goes."""
    llvm = binding()

    return llvm.get_process_triple().split("-")[0] == machine.architecture


_targets: dict[str, Any] = {}


def _target_machine(machine: Machine) -> Any:
    if machine.code_key not in _targets:
        _targets[machine.code_key] = _new_target(machine)
    return _targets[machine.code_key]


def _new_target(machine: Machine) -> Any:
    llvm = binding()

    if is_native(machine):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        llvm.initialize_native_asmparser()  # kernels have instructions of their own
    else:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    # LLVM would split 512-bit vectors on CPUs whose scheduling model prefers 256 bits
    extra = ["-prefer-256-bit"] if machine.isa == "avx512" else []
    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu="", features=",".join([*machine.features, *extra]), opt=3, codemodel="jitdefault"
    )
