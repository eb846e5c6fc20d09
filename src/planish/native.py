"""The Python face of the C runtime: programs and arenas, through ctypes.

Everything here is thin: it lays out tables for ``native/planish.h`` and keeps alive what they
point to. What a plan means is decided above (``Engine`` binds a plan to shapes and its target makes
a ``Program`` of it); what happens in an inference is decided below, in C. Engines for callers in C
stand in ``planish.runtime.native_engine``.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple, Protocol

import numpy as np

from planish.errors import DeviceError, InputError, PlanishError

_log = logging.getLogger(__name__)

ABSOLUTE, ARENA, FIRST_INPUT = 0, 1, 2
"""Bases of a pointer: an address, the arena, the first input (outputs follow the inputs)."""

HOST, SERIAL = 1, 2
"""Flags of a step: calls Python (see ``HostKernel``); runs as one call on the calling thread."""

MAX_POINTERS, MAX_THREADS = 32, 128

OK, INVALID, FAILED, NO_MEMORY = range(4)
"""The values of ``planish_status``."""

ERROR_SIZE = 4096

_STEP = np.dtype(
    [
        ("kernel", np.uint64),
        ("tasks", np.int64),
        ("grain", np.int64),
        ("first_pointer", np.int64),
        ("first_param", np.int64),
        ("pointer_count", np.int32),
        ("flags", np.int32),
    ]
)
_POINTER = np.dtype([("base", np.int32), ("reserved", np.int32), ("offset", np.int64)])


# ---- the library and its prototypes ----


class _Description(ctypes.Structure):
    _fields_ = [
        ("steps", c_void_p),
        ("step_count", c_int64),
        ("pointers", c_void_p),
        ("pointer_count", c_int64),
        ("params", c_void_p),
        ("param_count", c_int64),
        ("input_count", c_int64),
        ("output_count", c_int64),
        ("arena_bytes", c_int64),
        ("scratch_bytes", c_int64),
        ("owner", c_int64),
    ]


_RELEASED = ctypes.CFUNCTYPE(None, c_int64)
_KERNEL = ctypes.CFUNCTYPE(None, POINTER(c_void_p), POINTER(c_int64), c_int64, c_int64, c_void_p)


# fmt: off
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "planish_program_create": (c_void_p, [POINTER(_Description), c_void_p, c_size_t]),
    "planish_program_release": (None, [c_void_p]),
    "planish_execute":
        (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_void_p]),
    "planish_measure":
        (c_int, [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int, c_void_p, c_int, c_void_p]),
    "planish_abort": (None, [c_char_p]),
    "planish_last_error": (c_char_p, []),
    "planish_aligned_alloc": (c_void_p, [c_size_t]),
    "planish_aligned_free": (None, [c_void_p, c_size_t]),
    "planish_on_released": (None, [_RELEASED]),
}
# fmt: on


@functools.cache
def library() -> ctypes.CDLL:
    """The C runtime, loaded on first use.

    Raises
    ------
    DeviceError
        The package was put in place without building its C part.
    """
    try:
        from planish import _native  # type: ignore[attr-defined]
    except ImportError as error:
        raise DeviceError(
            "The C runtime of Planish is missing.",
            where="planish._native",
            why=str(error),
            cure="Install the package with pip (a source tree: pip install -e .), which builds it.",
        ) from error
    loaded = ctypes.CDLL(_native.__file__)
    declare(loaded, _PROTOTYPES)
    loaded.planish_on_released(_on_released)
    # Threads of a host program may outlive the interpreter; they must not call into it then.
    atexit.register(loaded.planish_on_released, _RELEASED())
    return loaded


def declare(loaded: ctypes.CDLL, prototypes: dict[str, tuple[Any, list[Any]]]) -> None:
    """Set result and argument types of a library's functions."""
    for name, (result, arguments) in prototypes.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments


@_RELEASED
def _on_released(owner: int) -> None:
    _kept.pop(owner, None)


def write_error(buffer: int | None, size: int, text: str) -> None:
    """Write a message into the ``error`` buffer that C handed to a callback."""
    if buffer and size:
        data = text.encode("utf-8", "replace")[: size - 1] + b"\0"
        ctypes.memmove(buffer, data, len(data))


def raise_status(status: int, what: str, why: str) -> None:
    """Raise the exception that a ``planish_status`` other than OK stands for."""
    kind = {INVALID: InputError, NO_MEMORY: DeviceError}.get(status, PlanishError)
    raise kind(what, why=why)


# ---- forks ----


class Renewable(Protocol):
    """Something with locks that another thread may hold while this one forks."""

    def renew_locks(self) -> None:
        """Makes the locks anew: this is a forked child, where their holders do not exist."""


_renewables: weakref.WeakSet[Any] = weakref.WeakSet()


def renew_after_fork(owner: Renewable) -> None:
    """Has the locks of an object renewed in every forked child, for as long as it lives.

    Only for what is whole whenever the interpreter may switch threads: a child gets it as it is.
    """
    _renewables.add(owner)


def _renew_all() -> None:
    for owner in list(_renewables):
        owner.renew_locks()


def hold_over_forks(lock: Any) -> None:
    """Has a fork wait for whoever holds a lock: what it guards is whole in the child, and free.

    Only for reentrant locks that are held for moments.
    """
    os.register_at_fork(
        before=lock.__enter__,
        after_in_parent=lambda: lock.__exit__(None, None, None),
        after_in_child=lambda: lock.__exit__(None, None, None),
    )


os.register_at_fork(after_in_child=_renew_all)


# ---- memory ----


class _Buffer:
    """Owner of aligned memory; the base of the NumPy array that shows it."""

    def __init__(self, nbytes: int) -> None:
        native = library()
        address = native.planish_aligned_alloc(nbytes)
        if not address:
            raise DeviceError(
                f"There is no memory for a buffer of {nbytes:,} bytes",
                where="host memory",
                why="the system refused it",
                cure="use a smaller batch, fewer execution contexts, or more memory",
            )
        self.address, self.nbytes = address, nbytes
        self.__array_interface__ = {
            "version": 3,
            "data": (address, False),
            "shape": (nbytes,),
            "typestr": "|u1",
        }
        self._free = native.planish_aligned_free

    def __del__(self) -> None:
        if hasattr(self, "_free"):
            self._free(self.address, self.nbytes)


def aligned_empty(nbytes: int) -> np.ndarray:
    """Uninitialised memory as a uint8 array, aligned to 64 bytes (huge pages from 4 MiB on)."""
    return np.asarray(_Buffer(nbytes))


Memory = tuple[int, int]
"""An address, and how many bytes there are."""


class Arena:
    """The working memory of one execution at a time: all intermediate tensors of a program.

    Parameters
    ----------
    nbytes : int
        At least ``arena_bytes`` of every program that runs in it.
    """

    __slots__ = ("_buffer", "address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        self._buffer = _Buffer(nbytes)
        self.address, self.nbytes = self._buffer.address, nbytes

    @property
    def bytes(self) -> np.ndarray:
        """The whole arena as a uint8 array."""
        return np.asarray(self._buffer)


# ---- programs ----


class Step(NamedTuple):
    """One row of a program.

    ``pointers`` are (base, offset) pairs, at most 32; the kernel finds them and ``params`` as its
    first two arguments. ``grain`` is how many of the ``tasks`` a thread takes at once.
    """

    kernel: int
    tasks: int
    grain: int = 1
    pointers: Sequence[tuple[int, int]] = ()
    params: Sequence[int] = ()
    flags: int = 0


class _HostErrors(threading.local):
    """The exception of a host step, for the ``execute`` that runs on the same thread."""

    depth = 0
    pending: BaseException | None = None


_host_errors = _HostErrors()


class HostKernel:
    """A kernel written in Python, for a step with the flag ``HOST``.

    Parameters
    ----------
    function : callable
        Called with (pointers, params, begin, end): ctypes pointers to addresses and to int64. An
        exception ends the execution; ``Program.execute`` raises it again.

    The program must keep this object alive (``keep=``).
    """

    def __init__(self, function: Callable[[Any, Any, int, int], None]) -> None:
        abort = library().planish_abort

        def kernel(pointers: Any, params: Any, begin: int, end: int, _scratch: Any) -> None:
            try:
                function(pointers, params, begin, end)
            except BaseException as error:
                if _host_errors.depth:
                    _host_errors.pending = error
                abort(f"{type(error).__name__}: {error}".encode("utf-8", "replace"))

        self._thunk = _KERNEL(kernel)
        self.address: int = ctypes.cast(self._thunk, c_void_p).value or 0


# What each program keeps alive, until C has dropped its last reference of it.
_kept: dict[int, object] = {}
_owners = itertools.count(1)


class Program:
    """An immutable table of steps, ready to run; safe to execute on several threads at once.

    Parameters
    ----------
    steps : sequence of Step
    input_count, output_count : int
        Outputs have the pointer bases ``FIRST_INPUT + input_count`` and up.
    arena_bytes, scratch_bytes : int
        Size of the arena; of the private memory that each thread hands to kernels.
    keep : object
        Whatever owns the kernels and the memory behind absolute pointers.

    Raises
    ------
    InputError
        The tables contradict themselves.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        input_count: int,
        output_count: int,
        arena_bytes: int = 0,
        scratch_bytes: int = 0,
        keep: object = None,
    ) -> None:
        native = library()
        table, pointers, params = _tables(steps)
        self._owner = next(_owners)
        description = _Description(
            table.ctypes.data,
            len(table),
            pointers.ctypes.data,
            len(pointers),
            params.ctypes.data,
            len(params),
            input_count,
            output_count,
            arena_bytes,
            scratch_bytes,
            self._owner,
        )
        error = ctypes.create_string_buffer(ERROR_SIZE)
        handle = native.planish_program_create(ctypes.byref(description), error, ERROR_SIZE)
        if not handle:
            raise_status(
                INVALID, "A program cannot be made.", error.value.decode("utf-8", "replace")
            )
        _kept[self._owner] = keep
        self.handle: int = handle
        self.step_count, self.arena_bytes = len(steps), arena_bytes
        self.input_count, self.output_count = input_count, output_count
        self._input_array = c_void_p * input_count
        self._output_array = c_void_p * output_count
        self._has_host_steps = any(step.flags & HOST for step in steps)
        self._execute, self._release = native.planish_execute, native.planish_program_release

    def __del__(self) -> None:
        if hasattr(self, "_release"):
            self._release(self.handle)

    def execute(
        self,
        arena: Arena,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int = 1,
        profile: np.ndarray | None = None,
    ) -> None:
        """Run all steps; the interpreter lock is released meanwhile.

        Parameters
        ----------
        arena : Arena
            Of at least ``arena_bytes``; no other execution may use it at the same time.
        inputs, outputs : sequence of int
            Addresses of the tensors.
        threads : int
            How many threads may work, this one included; fewer do where others are busy.
        profile : numpy.ndarray, optional
            int64 [step_count, 2]; receives start and end of each step in nanoseconds.

        Raises
        ------
        InputError
            Too small an arena, or another number of tensors than the program has.
        Exception
            Whatever a host step raised.
        """
        address = None if profile is None else self._profile_address(profile)
        self._run(self._execute, arena, inputs, outputs, threads, address)

    def _run(self, function, arena, inputs, outputs, threads, *rest) -> None:
        if (
            len(inputs) != self.input_count
            or len(outputs) != self.output_count
            or arena.nbytes < self.arena_bytes
        ):
            raise InputError(
                f"A program of {self.input_count} inputs, {self.output_count} outputs and an arena "
                f"of {self.arena_bytes} bytes was given {len(inputs)} inputs, {len(outputs)} "
                f"outputs and an arena of {arena.nbytes} bytes."
            )
        arguments = (
            self.handle,
            arena.address,
            self._input_array(*inputs),
            self._output_array(*outputs),
            threads,
            *rest,
        )
        if not self._has_host_steps:
            status = function(*arguments)
        else:
            status = _call_catching(function, arguments)
        if status:
            raise_status(status, "An execution failed.", _last_error())

    def _profile_address(self, profile: np.ndarray) -> int:
        if profile.dtype != np.int64 or profile.shape != (self.step_count, 2):
            raise InputError(f"profile must be int64 of shape ({self.step_count}, 2).")
        if not (profile.flags.c_contiguous and profile.flags.writeable):
            raise InputError("profile must be writeable and contiguous.")
        return profile.ctypes.data

    def measure(
        self,
        arena: Arena,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int = 1,
        repeats: int = 1,
        touched: Sequence[Memory] = (),
    ) -> np.ndarray:
        """Execute ``repeats`` times; the seconds each took, float64 [repeats].

        Before each one the threads read `touched`, so that the caches hold it, and not what they
        held before.
        """
        seconds = np.zeros(repeats)
        ranges = np.array(touched, np.int64).reshape(-1, 2)
        rest = (ranges.ctypes.data, len(ranges), seconds.ctypes.data)
        self._run(library().planish_measure, arena, inputs, outputs, threads, repeats, *rest)
        return seconds


def _call_catching(function: Callable[..., int], arguments: tuple[Any, ...]) -> int:
    """Call C; where a host step failed, raise its exception."""
    _host_errors.depth += 1
    try:
        status = function(*arguments)
    finally:
        _host_errors.depth -= 1
        error, _host_errors.pending = _host_errors.pending, None
    if status == FAILED and error is not None:
        raise error
    return status


def _last_error() -> str:
    return library().planish_last_error().decode("utf-8", "replace")


def _tables(steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pointers: list[tuple[int, int, int]] = []
    params: list[int] = []
    rows = []
    for step in steps:
        rows.append(
            (
                step.kernel,
                step.tasks,
                step.grain,
                len(pointers),
                len(params),
                len(step.pointers),
                step.flags,
            )
        )
        pointers.extend((base, 0, offset) for base, offset in step.pointers)
        params.extend(step.params)
    try:
        return (
            np.array(rows, _STEP),
            np.array(pointers, _POINTER),
            np.array(params, np.int64),
        )
    except OverflowError as error:
        raise DeviceError(
            "A size, stride or offset of a kernel does not fit in 64 bits",
            why=str(error),
            cure="look for absurd numbers among the attributes of the model's ops",
        ) from error


assert _STEP.itemsize == 48  # the layout of planish_step
assert _POINTER.itemsize == ctypes.sizeof(c_int32) * 2 + ctypes.sizeof(c_int64)
