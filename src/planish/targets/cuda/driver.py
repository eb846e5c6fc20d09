"""The CUDA driver, as far as Planish needs it, through `cuda.core`. Imported where a GPU is used.

A `Gpu` is one device of this process: memory, streams, kernels, graphs. Errors of the driver become
`DeviceError`s that say what was wanted. CUDA does not survive a fork: a child is told so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np

from planish.errors import DeviceError, DeviceLostError, TuningError
from planish.targets.cuda.buffers import DeviceMemory, HostMemory
from planish.targets.cuda.codegen.compile import DeviceCode
from planish.targets.cuda.codegen.source import LINE
from planish.targets.cuda.codegen.tensor_map import MAPPED, BoxedArgument
from planish.targets.cuda.machine import CudaMachine

log = logging.getLogger("planish")

FRACTION = "PLANISH_GPU_MEMORY_FRACTION"
"""The environment variable that limits what engines take of a GPU's memory: 0.5 is half of it."""

LARGE_SHARED = 48 << 10
"""Blocks with more shared memory than this must ask for it."""


LEGACY_STREAM = 1
"""The handle by which protocols name the stream that waits for all others, and they for it."""

STREAMS = 16
"""So many streams are kept at hand."""

NOT_READY = 600
"""What the driver says of a stream (`CUDA_ERROR_NOT_READY`) on which something runs yet."""

POLL_SECONDS = 2e-4
"""Between two looks at a stream that is not waited for without end."""


class Gpu:
    """A device of this process; see `gpu`."""

    def __init__(self, ordinal: int) -> None:
        self.ordinal = ordinal
        self._core, self._driver = _modules()
        self._pid = os.getpid()
        self._device = _device(self._core, ordinal)
        self._entered = threading.local()
        self.enter()
        self._memory = self._device.memory_resource
        self._pinned = self._core.LegacyPinnedMemoryResource()
        self._kernels: dict[str, Any] = {}
        self._streams: dict[int, tuple[Any, Any]] = {}
        self._handles: dict[int, tuple[Any, Any]] = {}
        self._lock = threading.RLock()  # memory may be freed while it is held
        self.stream = self._device.create_stream()
        """For allocations, and for copies that are waited for."""
        self.library_code: dict[str, bytes] = {}
        """Kernels as libraries wrote them, from plans whose code may be used; by symbol."""
        self._taken = 0
        self._fraction = _fraction(os.environ.get(FRACTION, "1"))

    def enter(self) -> None:
        """Makes the device that of this thread.

        Raises
        ------
        DeviceError
            The process was forked after the device was first used.
        """
        if self._pid != os.getpid():
            raise DeviceError(
                "A GPU that the parent process uses cannot be used in a forked child",
                where=f"cuda:{self.ordinal}",
                why="the CUDA driver does not survive a fork",
                cure='start processes with the method "spawn", or load the plan in the child only',
            )
        if not getattr(self._entered, "done", False):
            self._device.set_current()
            self._entered.done = True

    def machine(self) -> CudaMachine:
        """What the device is."""
        p = self._device.properties
        _, total = self.memory_info()
        return CudaMachine(
            name=str(self._device.name),
            capability=(int(p.compute_capability_major), int(p.compute_capability_minor)),
            multiprocessors=int(p.multiprocessor_count),
            l2=int(p.l2_cache_size),
            shared=int(p.max_shared_memory_per_block_optin),
            shared_per_multiprocessor=int(p.max_shared_memory_per_multiprocessor),
            registers=int(p.max_registers_per_multiprocessor),
            memory=total,
            ordinal=self.ordinal,
        )

    # ---- memory ---------------------------------------------------------------------------

    def memory_info(self) -> tuple[int, int]:
        """Free and all bytes of device memory."""
        free, total = self._call(self._driver.cuMemGetInfo)
        return int(free), int(total)

    def allocate(self, size: int, what: str) -> DeviceMemory:
        """Device memory for something, named in the error if there is too little.

        Raises
        ------
        DeviceError
            There is too little memory.
        """
        self.enter()
        self._take(size, what)
        try:
            buffer = self._memory.allocate(max(size, 256), stream=self.stream)
            self.stream.sync()
        except Exception as error:  # a class of cuda.core's own
            self.give_back(size, {})
            free, total = self.memory_info()
            raise DeviceError(
                f"There is no device memory for {what}",
                where=f"cuda:{self.ordinal}",
                why=f"{size:,} bytes are needed, {free:,} of {total:,} are free ({error})",
                cure="use smaller inputs, a smaller batch, or end other users of the GPU",
            ) from error
        return DeviceMemory(self, size, buffer)

    def _take(self, size: int, what: str) -> None:
        with self._lock:
            self._taken += size
            taken = self._taken
        if self._fraction == 1:
            return
        limit = int(self._fraction * self.memory_info()[1])
        if taken > limit:
            self.give_back(size, {})
            raise DeviceError(
                f"There is no device memory for {what}",
                where=f"cuda:{self.ordinal}",
                why=f"{size:,} bytes are needed, {taken - size:,} of the {limit:,} that "
                f"{FRACTION}={self._fraction:g} leaves to engines are taken",
                cure="raise the limit, or use smaller inputs or a smaller batch",
            )

    def give_back(self, size: int, users: Mapping[int, Any]) -> None:
        """Notes that memory is about to be freed, which streams of others may use."""
        with self._lock:
            self._taken -= size
        if not users or self._pid != os.getpid():
            return
        self.enter()
        for user in users.values():
            try:
                other = self._core.Stream.from_handle(user) if isinstance(user, int) else user
                self.stream.wait(other)
            except Exception as error:  # the stream is gone, and its work done
                log.debug("stream %s is not waited for: %s", user, error)

    def allocate_host(self, size: int) -> HostMemory:
        """Pinned host memory.

        Raises
        ------
        DeviceError
            There is too little memory.
        """
        self.enter()
        try:
            buffer = self._pinned.allocate(max(size, 1), stream=self.stream)
        except Exception as error:  # a class of cuda.core's own
            raise DeviceError(
                "There is no pinned memory for copies to and from the GPU",
                where="host memory",
                why=f"{size:,} bytes are needed ({error})",
                cure="use smaller inputs or a smaller batch, or pass arrays on the GPU",
            ) from error
        return HostMemory(self, size, buffer)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        """Queues a copy between any two addresses, of the device or the host."""
        if size:
            self._call(self._driver.cuMemcpyAsync, target, source, size, self.handle(stream))

    def fill(self, target: int, byte: int, size: int, stream: Any) -> None:
        """Queues setting bytes."""
        if size:
            self._call(self._driver.cuMemsetD8Async, target, byte, size, self.handle(stream))

    def upload(self, target: int, array: np.ndarray) -> None:
        """Copies a contiguous array to the device and waits."""
        self.enter()
        self.copy(target, array.ctypes.data, array.nbytes, self.stream)
        self.stream.sync()

    def download(self, array: np.ndarray, source: int) -> None:
        """Copies from the device into a contiguous array and waits."""
        self.enter()
        self.copy(array.ctypes.data, source, array.nbytes, self.stream)
        self.stream.sync()

    def device_of(self, address: int) -> int:
        """The number of the device whose memory an address is; this one's where nobody knows."""
        kind = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        status, value = self._driver.cuPointerGetAttribute(kind, address)
        return self.ordinal if int(status) != 0 else int(value)

    def is_device_address(self, address: int) -> bool:
        """Whether an address is memory of a device."""
        kind = self._driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_MEMORY_TYPE
        status, value = self._driver.cuPointerGetAttribute(kind, address)
        if int(status) != 0:  # memory that the driver has never seen
            return False
        return int(value) == int(self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE)

    # ---- kernels --------------------------------------------------------------------------

    def load(self, symbol: str, code: Callable[[], DeviceCode]) -> Any:
        """The function of a kernel, from its code when it is first asked for."""
        with self._lock:
            if symbol not in self._kernels:
                self.enter()
                self._kernels[symbol] = self._loaded(code())
            return self._kernels[symbol]

    def _loaded(self, code: DeviceCode) -> tuple[Any, DeviceCode]:
        try:
            kernel = self._core.ObjectCode.from_cubin(code.cubin).get_kernel(code.symbol)
        except Exception as error:
            raise DeviceError(
                "Machine code of a kernel cannot be loaded",
                where=f"cuda:{self.ordinal}, {code.symbol}",
                why=str(error),
                cure="clear the kernel cache, or update the NVIDIA driver",
            ) from error
        if code.shared > LARGE_SHARED:
            attribute = (
                self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            )
            self._call(
                self._driver.cuKernelSetAttribute,
                attribute,
                code.shared,
                kernel.handle,
                self._driver.CUdevice(self.ordinal),
            )
        return kernel, code

    def launch(
        self,
        loaded: tuple[Any, DeviceCode],
        programs: int,
        addresses: Sequence[int],
        params: Sequence[int],
        stream: Any,
        overlap: bool = False,
        ahead: tuple[int, int] = (0, 0),
    ) -> None:
        """Queues a kernel; with `overlap` right behind another one that may still run.

        It has the second-level cache fetch what lies `ahead`: an address, and bytes.
        """
        kernel, code = loaded
        more = (ahead[0], c_int32(ahead[1] // LINE)) if code.overlaps else ()
        overlap = overlap and code.overlaps
        if code.maps:
            self._launch_mapped(kernel, code, programs, addresses, params, more, stream, overlap)
            return
        config = self._core.LaunchConfig(
            grid=programs,
            block=32 * code.warps,
            shmem_size=code.shared,
            programmatic_stream_serialization=overlap,
        )
        # the last two are memory that Triton's kernels may ask for; ours do not
        numbers = (c_int32(n) for n in params)
        self._core.launch(stream, config, kernel, *addresses, *numbers, *more, 0, 0)

    def _launch_mapped(
        self,
        kernel: Any,
        code: DeviceCode,
        programs: int,
        addresses: Sequence[int],
        params: Sequence[int],
        more: Sequence[Any],
        stream: Any,
        overlap: bool,
    ) -> None:
        """Queues a kernel with tensor maps among its arguments, which `cuda.core` makes only of
        arrays: each is a map, then the tensor's shape and strides.
        """
        driver = self._driver
        maps = {m.argument: m for m in code.maps}
        given: list[tuple[Any, Any]] = []
        for number, address in enumerate(addresses):
            if number not in maps:
                given.append((address, c_void_p))
                continue
            mapped = maps[number]
            shape = mapped.extents(params)
            given.append((self._tensor_map(address, mapped, shape), None))
            given += [(n, c_int32) for n in shape] + [(n, c_int64) for n in mapped.strides]
        given += [(n, c_int32) for n in params]
        given += [(n, c_void_p if isinstance(n, int) else c_int32) for n in (*more, 0, 0)]
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = programs, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = 32 * code.warps, 1, 1
        config.sharedMemBytes = code.shared
        config.hStream = self.handle(stream)
        if overlap:
            attribute = driver.CUlaunchAttribute()
            attribute.id = (
                driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            )
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        values, kinds = zip(*given, strict=True)
        function = driver.CUfunction(int(kernel.handle))
        self._call(driver.cuLaunchKernelEx, config, function, (values, kinds), 0)

    def _tensor_map(self, address: int, mapped: BoxedArgument, shape: Sequence[int]) -> Any:
        """The driver's tensor map of memory at an address."""
        driver = self._driver
        kinds, bits64, bits32 = driver.CUtensorMapDataType, driver.cuuint64_t, driver.cuuint32_t
        kind = {
            "fp16": kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            "bf16": kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            "fp32": kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            "i32": kinds.CU_TENSOR_MAP_DATA_TYPE_INT32,
        }.get(mapped.dtype, kinds.CU_TENSOR_MAP_DATA_TYPE_UINT8)
        status, made = driver.cuTensorMapEncodeTiled(
            kind,
            len(shape),
            address,
            [bits64(n) for n in reversed(shape)],
            [bits64(MAPPED[mapped.dtype] * n) for n in reversed(mapped.strides[:-1])],
            [bits32(n) for n in reversed(mapped.box)],
            [bits32(1)] * len(shape),
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            driver.CUtensorMapSwizzle(mapped.swizzle),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        if int(status) != 0:
            raise TuningError(
                "The CUDA driver makes no tensor map",
                where=f"cuda:{self.ordinal}, {mapped}",
                why=f"of shape {tuple(shape)}: {status}",
                cure="another tactic is taken; please report this with the model's op",
            )
        return made

    # ---- streams, graphs, time ------------------------------------------------------------

    def handle(self, stream: Any) -> Any:
        """The driver's name of a stream, kept at hand: cuda.core makes one each time it is asked,
        which takes longer than a launch.
        """
        known = self._handles.get(id(stream))
        if known is None or known[0] is not stream:
            known = stream, stream.handle
            with self._lock:
                self._handles[id(stream)] = known
                if len(self._handles) > STREAMS:
                    self._handles.pop(next(iter(self._handles)))
        return known[1]

    def create_stream(self) -> Any:
        """A stream that waits for no other."""
        self.enter()
        return self._device.create_stream()

    def wrap_stream(self, stream: Any) -> Any:
        """A stream of the user's: an object of `cuda.core`, of PyTorch, CuPy, …, or its address.

        Raises
        ------
        DeviceError
            It is no stream.
        """
        known = self._streams.get(id(stream))
        if known is not None and known[0] is stream:
            return known[1]
        self.enter()
        try:
            if isinstance(stream, int):
                # 0 is the legacy stream, too, and no handle; not kept: whose it is may change
                return self._core.Stream.from_handle(stream or LEGACY_STREAM)
            for name in ("cuda_stream", "ptr"):  # PyTorch, CuPy
                if isinstance(getattr(stream, name, None), int):
                    handle = getattr(stream, name) or LEGACY_STREAM
                    wrapped = self._core.Stream.from_handle(handle)
                    break
            else:
                wrapped = self._device.create_stream(stream)
            with self._lock:  # the user's object lives as long, and so does its handle
                self._streams[id(stream)] = stream, wrapped
                if len(self._streams) > STREAMS:
                    self._streams.pop(next(iter(self._streams)))
            return wrapped
        except Exception as error:
            raise DeviceError(
                f"A {type(stream).__name__} is no CUDA stream",
                where="stream=",
                why=f"it follows no protocol of streams ({error})",
                cure="pass a stream of cuda.core, PyTorch or CuPy, or its address",
            ) from error

    def wait(self, stream: Any, seconds: float | None = None) -> None:
        """Waits for everything that is queued on a stream, no longer than `seconds` if given.

        Raises
        ------
        DeviceLostError
            A kernel failed, or does not end.
        """
        if seconds is not None:
            self._poll(stream, seconds)
        try:
            stream.sync()
        except Exception as error:  # a class of cuda.core's own
            raise DeviceLostError(
                "A kernel failed on the GPU",
                where=f"cuda:{self.ordinal}",
                why=str(error),
                cure="start the process again: CUDA runs nothing more in this one; "
                "please report it with the model",
            ) from error

    def _poll(self, stream: Any, seconds: float) -> None:
        """Returns when nothing runs on a stream, or something failed."""
        deadline = time.monotonic() + seconds
        while int(self._driver.cuStreamQuery(self.handle(stream))[0]) == NOT_READY:
            if time.monotonic() > deadline:
                raise DeviceLostError(
                    "A kernel does not end on the GPU",
                    where=f"cuda:{self.ordinal}",
                    why=f"it has been running for {seconds:g} seconds",
                    cure="end this process (kill -9, if it does not end by itself): the GPU is "
                    "occupied until then; please report it with the model",
                )
            time.sleep(POLL_SECONDS)

    def event(self, timing: bool = False) -> Any:
        """An event."""
        return self._device.create_event(self._core.EventOptions(timing_enabled=timing))

    def seconds(self, start: Any, end: Any) -> float:
        """The time between two events that have happened."""
        return float(end - start) / 1e3

    @contextmanager
    def capture(self, stream: Any) -> Iterator[list[Any]]:
        """Captures what is queued on a stream; the list then holds the graph, ready to launch."""
        # relaxed: whatever Python's garbage collector frees meanwhile would end a stricter one
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        self._call(self._driver.cuStreamBeginCapture, stream.handle, mode)
        made: list[Any] = []
        try:
            yield made
        except BaseException:
            self._driver.cuStreamEndCapture(stream.handle)
            raise
        graph = self._call(self._driver.cuStreamEndCapture, stream.handle)
        try:
            made.append(CapturedGraph(self, self._call(self._driver.cuGraphInstantiate, graph, 0)))
        finally:
            self._driver.cuGraphDestroy(graph)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function of the driver and gives its results, without the status."""
        status, *results = function(*args)
        self._check(status, function.__name__)
        return results[0] if len(results) == 1 else results

    def _check(self, status: Any, name: str) -> None:
        if int(status) != 0:
            _, text = self._driver.cuGetErrorString(status)
            raise DeviceError(
                "The CUDA driver refuses a call",
                where=f"cuda:{self.ordinal}, {name}",
                why=text.decode() if isinstance(text, bytes) else str(text),
                cure="if kernels ran before, one of them failed: please report it with the model",
            )


class CapturedGraph:
    """Work that was captured, to be queued as a whole."""

    def __init__(self, gpu: Gpu, handle: Any) -> None:
        self._gpu, self._handle = gpu, handle
        self._driver = gpu._driver

    def launch(self, stream: Any) -> None:
        """Queues it."""
        (status,) = self._driver.cuGraphLaunch(self._handle, self._gpu.handle(stream))
        if status != 0:
            self._gpu._check(status, "cuGraphLaunch")

    def __del__(self) -> None:
        if os.getpid() == self._gpu._pid:
            self._gpu._driver.cuGraphExecDestroy(self._handle)


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = -1.0
    if not 0 < fraction <= 1:
        raise DeviceError(
            f"{FRACTION} is {text!r}",
            where="environment variable",
            why="it is the share of a GPU's memory that engines may take",
            cure="set it to a number above 0 and up to 1, or unset it",
        )
    return fraction


@cache
def gpu(ordinal: int) -> Gpu:
    """The device of that number in this process.

    Raises
    ------
    DeviceError
        There is no such GPU, no driver, or `cuda.core` is not installed.
    """
    return Gpu(ordinal)


def _modules() -> tuple[Any, Any]:
    try:
        import cuda.core as core
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(
            "cuda.core is not installed",
            where='device="cuda:…"',
            why=f"it cannot be imported ({error})",
            cure="pip install 'planish[cuda]'",
        ) from error
    return core, driver


def _device(core: Any, ordinal: int) -> Any:
    try:
        devices = core.Device.get_all_devices()
    except Exception as error:  # of several kinds: no library, no driver, an old one, no GPU
        if "NO_DEVICE" not in str(error):
            raise DeviceError(
                "There is no NVIDIA driver",
                where=f'device="cuda:{ordinal}"',
                why=f"none can be used ({error})",
                cure='install NVIDIA\'s driver, or pass device="cpu"',
            ) from error
        devices = ()
    if not devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f", and CUDA_VISIBLE_DEVICES is {visible!r}"
        raise DeviceError(
            "There is no NVIDIA GPU",
            where=f'device="cuda:{ordinal}"',
            why=f"the driver finds none{hidden}",
            cure='make one visible, or pass device="cpu"',
        )
    if ordinal >= len(devices):
        names = ", ".join(f"cuda:{i} ({d.name})" for i, d in enumerate(devices))
        raise DeviceError(
            f"There is no GPU number {ordinal}",
            where=f'device="cuda:{ordinal}"',
            why=f"the GPUs of this machine are: {names}",
            cure="pass one of them (CUDA_VISIBLE_DEVICES hides others)",
        )
    return devices[ordinal]
