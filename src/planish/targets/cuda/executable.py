"""A schedule on a GPU: captured into CUDA graphs, one for each run of launches between host steps.

    inputs on the host ─▶ pinned ─▶ device ┐
    inputs on the device ──────────────────┴▶ graph ─▶ (host step) ─▶ graph ─▶ outputs, likewise

A graph knows the addresses it was captured for. Those of staged inputs and outputs never change;
for arrays that users own on the device the last few sets of addresses are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from planish import native
from planish.targets.base import Kernel
from planish.targets.cuda.codegen.source import LINE
from planish.targets.cuda.driver import CapturedGraph, Gpu
from planish.targets.cuda.kernel import GeneratedKernel, LibraryKernel
from planish.targets.cuda.memory import CudaArena
from planish.targets.cuda.ranges import layer_range
from planish.targets.cuda.staging import Transfer
from planish.targets.cuda.streams import place
from planish.targets.execution import (
    ABSOLUTE,
    ARENA,
    FIRST_INPUT,
    Executable,
    Schedule,
    ScheduledLaunch,
    host_program,
)

GRAPHS = 4
"""Sets of addresses for which an arena keeps the graphs of a schedule."""

COPIES = 20
"""How often a short schedule stands in the graph by which it is timed."""

SHORT = 4
"""Launches of a short schedule."""

MOST_SECONDS = 60.0
"""Runs that are measured together and take longer are taken for a kernel that does not end."""

FURTHEST = 2
"""A launch asks for what one so many behind it reads, at most."""

LEAST, MOST = 1 << 14, 1 << 24
"""Bytes of what is asked for: less comes soon enough, more would push out what else is needed."""


class Staged(NamedTuple):
    """An input or output that kernels do not touch where the caller has it: the address that was
    given, whether that is on the device, and where its copy is.
    """

    given: int
    on_device: bool
    device: int
    size: int


class CudaExecutable(Executable):
    """See the module. Immutable and thread-safe; what changes is in the arenas."""

    def __init__(self, schedule: Schedule, gpu: Gpu, load: Callable[[Kernel], Any]) -> None:
        self.arena_bytes = schedule.arena_bytes
        self._gpu = gpu
        self._schedule = schedule
        launches = schedule.launches
        self._loaded: list[Any] = [
            load(s.launch.kernel) if isinstance(s.launch.kernel, Kernel) else None for s in launches
        ]
        self._parts: list[tuple[bool, list[tuple[int, ScheduledLaunch]]]] = []
        for host, part in groupby(enumerate(launches), key=lambda n: _is_host(n[1])):
            members = list(part)  # every host step is a part of its own
            self._parts += [(True, [m]) for m in members] if host else [(False, members)]
        self._whole = not any(host for host, _ in self._parts)
        self._ahead = _ahead(launches)
        self._placed = [
            None if host else place([s.touches for _, s in part]) for host, part in self._parts
        ]

    # ---- running --------------------------------------------------------------------------

    def run(
        self,
        arena: CudaArena,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        profile: np.ndarray | None = None,
        stream: Any = None,
        local: bool = False,
    ) -> None:
        gpu = self._gpu
        gpu.enter()
        queue = arena.stream if stream is None else stream
        arena.begin(queue)
        if local and profile is None and self._replayed(arena, (*inputs, *outputs), queue):
            arena.end(queue)
            if stream is None:
                gpu.wait(queue)
            return
        sources, taken = self._stage(arena, "input", inputs, self._schedule.input_bytes)
        targets, given = self._stage(arena, "output", outputs, self._schedule.output_bytes)
        self._take(arena, taken, queue)
        if profile is not None:
            self._run_timed(arena, sources, targets, queue, profile)
        else:
            for (host, part), graph in zip(
                self._parts, self._graphs(arena, sources, targets), strict=True
            ):
                if host:
                    self._host_step(part[0][1], arena, sources, targets, queue)
                elif graph is not None:
                    graph.launch(queue)
        for staged in given:
            if staged.on_device:
                gpu.copy(staged.given, staged.device, staged.size, queue)
        arena.ring.fetch(_transfers(given), queue)
        arena.end(queue)
        if stream is None or _transfers(taken):
            gpu.wait(queue)

    def _replayed(self, arena: CudaArena, addresses: tuple[int, ...], queue: Any) -> bool:
        """Queues the graphs of addresses on the device, if they are known and there is nothing else
        to do: addresses that are not aligned never are in a graph.
        """
        known = arena.graphs(self)
        graphs = known.get(addresses)
        if graphs is None or not self._whole:
            return False
        known.move_to_end(addresses)
        for graph in graphs:
            graph.launch(queue)
        return True

    def _stage(
        self, arena: CudaArena, kind: str, given: Sequence[int], sizes: Sequence[int]
    ) -> tuple[list[int], list[Staged]]:
        """Device addresses for inputs or outputs, and those of them that are not what was given:
        arrays on the host, and those on the device that are not aligned as kernels need it.
        """
        addresses: list[int] = []
        staged: list[Staged] = []
        for number, (address, size) in enumerate(zip(given, sizes, strict=True)):
            if address == 0 or size == 0:
                addresses.append(address)
                continue
            on_device = self._gpu.is_device_address(address)
            if on_device and address % 16 == 0:
                addresses.append(address)
                continue
            device = arena.staged(kind, number, size)
            addresses.append(device)
            staged.append(Staged(address, on_device, device, size))
        return addresses, staged

    def _take(self, arena: CudaArena, inputs: Sequence[Staged], queue: Any) -> None:
        """Copies inputs to where kernels read them."""
        for staged in inputs:
            if staged.on_device:
                self._gpu.copy(staged.device, staged.given, staged.size, queue)
        arena.ring.send(_transfers(inputs), queue)

    def _graphs(
        self, arena: CudaArena, sources: Sequence[int], targets: Sequence[int]
    ) -> list[CapturedGraph | None]:
        """For each part its graph, captured now if need be; None for host steps."""
        known = arena.graphs(self)
        key = (*sources, *targets)
        if key in known:
            known.move_to_end(key)
            return known[key]
        made: list[CapturedGraph | None] = []
        for index, (host, _) in enumerate(self._parts):
            if host:
                made.append(None)
                continue
            with self._gpu.capture(arena.stream) as graph:
                self._queue_part(index, arena, sources, targets)
            made.append(graph[0])
        known[key] = made
        if len(known) > GRAPHS:
            known.popitem(last=False)
        return made

    def _queue_part(
        self, index: int, arena: CudaArena, sources: Sequence[int], targets: Sequence[int]
    ) -> None:
        """Queues a run of launches on the arena's stream and beside it."""
        _, part = self._parts[index]
        placed = self._placed[index]
        assert placed is not None
        count = 1 + max(p.stream for p in placed)
        streams = [arena.stream, *arena.side_streams(count - 1)]
        if count > 1:
            start = self._gpu.event()
            arena.stream.record(start)
            for side in streams[1:]:
                side.wait(start)
        ended: dict[int, Any] = {}
        begun: set[int] = set()  # streams on which a launch came before
        for position, ((number, scheduled), where) in enumerate(zip(part, placed, strict=True)):
            stream = streams[where.stream]
            for other in where.waits:
                stream.wait(ended[other])
            overlap = where.stream in begun and not where.waits
            self._queue(number, scheduled, arena, sources, targets, stream, overlap)
            begun.add(where.stream)
            if where.awaited:
                ended[position] = self._gpu.event()
                stream.record(ended[position])
        for side in streams[1:]:
            end = self._gpu.event()
            side.record(end)
            arena.stream.wait(end)

    def _queue(
        self,
        number: int,
        scheduled: ScheduledLaunch,
        arena: CudaArena,
        sources: Sequence[int],
        targets: Sequence[int],
        stream: Any,
        overlap: bool = False,
    ) -> None:
        launch = scheduled.launch
        addresses = self._addresses(scheduled, arena, sources, targets)
        if isinstance(launch.kernel, LibraryKernel):
            self._loaded[number].queue(addresses, launch.params, stream)
        else:
            loaded, params, ahead = self._loaded[number], launch.params, self._ahead[number]
            self._gpu.launch(loaded, launch.tasks, addresses, params, stream, overlap, ahead)

    def _addresses(
        self,
        scheduled: ScheduledLaunch,
        arena: CudaArena,
        sources: Sequence[int],
        targets: Sequence[int],
    ) -> list[int]:
        bases = {ABSOLUTE: 0, ARENA: arena.address}
        for number, address in enumerate((*sources, *targets)):
            bases[FIRST_INPUT + number] = address
        return [bases[a.base] + a.offset for a in scheduled.addresses]

    def _host_step(
        self,
        scheduled: ScheduledLaunch,
        arena: CudaArena,
        sources: Sequence[int],
        targets: Sequence[int],
        queue: Any,
    ) -> None:
        """Runs a host step on copies of the memory behind its pointers."""
        self._gpu.wait(queue)
        function = scheduled.launch.kernel
        assert not isinstance(function, Kernel)
        views: list[np.ndarray] = []
        raws: list[np.ndarray | None] = []
        addresses = self._addresses(scheduled, arena, sources, targets)
        for described, address in zip(scheduled.layouts, addresses, strict=True):
            assert described is not None
            layout, dtype = described
            if 0 in layout.shape:
                views.append(np.empty(layout.shape, dtype))
                raws.append(None)
                continue
            reach = 1 + sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True))
            raw = np.empty(reach * dtype.itemsize, np.uint8)
            self._gpu.download(raw, address)
            steps = tuple(s * dtype.itemsize for s in layout.strides)
            views.append(np.ndarray(layout.shape, dtype, raw.data, 0, steps))
            raws.append(raw)
        function(*views)
        for changed, address, touched in zip(raws, addresses, scheduled.touches, strict=True):
            if changed is not None and touched.written:
                self._gpu.upload(address, changed)

    @property
    def program(self) -> native.Program:
        return host_program(self, self._schedule, lambda: CudaArena(self._gpu, self.arena_bytes))

    # ---- timing ---------------------------------------------------------------------------

    def _run_timed(
        self,
        arena: CudaArena,
        sources: Sequence[int],
        targets: Sequence[int],
        queue: Any,
        profile: np.ndarray,
    ) -> None:
        """Runs launch by launch, an event before and after each."""
        gpu = self._gpu
        first = gpu.event(timing=True)
        queue.record(first)
        events: dict[int, tuple[Any, Any]] = {}
        for host, part in self._parts:
            for number, scheduled in part:
                start, end = gpu.event(timing=True), gpu.event(timing=True)
                queue.record(start)
                with layer_range(scheduled.label):
                    if host:
                        self._host_step(scheduled, arena, sources, targets, queue)
                    else:
                        self._queue(number, scheduled, arena, sources, targets, queue)
                queue.record(end)
                events[number] = start, end
        gpu.wait(queue)
        for number, (start, end) in events.items():
            profile[number] = gpu.seconds(first, start) * 1e9, gpu.seconds(first, end) * 1e9

    def measure(
        self,
        arena: CudaArena,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        repeats: int,
        touched: Sequence[native.Memory] = (),
    ) -> np.ndarray:
        gpu = self._gpu
        gpu.enter()
        queue = arena.stream
        if any(host for host, _ in self._parts):
            times = []
            for _ in range(repeats):
                start = time.perf_counter()
                self.run(arena, inputs, outputs, threads)
                times.append(time.perf_counter() - start)
            return np.array(times)
        sources, taken = self._stage(arena, "input", inputs, self._schedule.input_bytes)
        targets, _ = self._stage(arena, "output", outputs, self._schedule.output_bytes)
        self._take(arena, taken, queue)
        # also a single run is a graph's: libraries take longer to queue a kernel than it may run
        short = repeats > 1 and len(self._schedule.launches) <= SHORT
        copies = COPIES if short else 1
        with gpu.capture(queue) as made:
            for _ in range(copies):
                for index in range(len(self._parts)):
                    self._queue_part(index, arena, sources, targets)
        graph = made[0]
        replays = max(3 if repeats > 1 else 1, -(-repeats // copies))
        events = [(gpu.event(timing=True), gpu.event(timing=True)) for _ in range(replays)]
        graph.launch(queue)
        for start, end in events:
            queue.record(start)
            graph.launch(queue)
            queue.record(end)
        gpu.wait(queue, MOST_SECONDS)
        return np.array([gpu.seconds(start, end) / copies for start, end in events])


def _transfers(tensors: Sequence[Staged]) -> list[Transfer]:
    """What is on the host of them."""
    return [Transfer(s.given, s.device, s.size) for s in tensors if not s.on_device]


def _ahead(launches: Sequence[ScheduledLaunch]) -> list[tuple[int, int]]:
    """For each launch what a later one reads of constants that no other asks for: an address and
    bytes. Kernels of libraries ask for nothing.
    """
    largest = [
        max(
            ((r.end - r.begin, r.begin) for r in s.touches if r.base == ABSOLUTE and not r.written),
            default=(0, 0),
        )
        for s in launches
    ]
    asked = {r for r in largest if not LEAST <= r[0] <= MOST}
    found = []
    for number, scheduled in enumerate(launches):
        size, begin = 0, 0
        if isinstance(scheduled.launch.kernel, GeneratedKernel):
            later = largest[number + 1 : number + 1 + FURTHEST]
            size, begin = next((r for r in later if r not in asked), (0, 0))
            asked.add((size, begin))
        start = -(-begin // LINE) * LINE
        found.append((start, max(0, begin + size - start)))
    return found


def _is_host(scheduled: ScheduledLaunch) -> bool:
    return not isinstance(scheduled.launch.kernel, Kernel)
