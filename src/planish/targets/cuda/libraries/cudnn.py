"""cuDNN on a GPU: graphs handed to it, and the plans that it makes of them.

A plan is an engine with its knobs set, and cuDNN's name for it says all of that ("eng4_k24=25").
Plan files hold the name: cuDNN makes the same plan of it again without its heuristics. What it made
it can also write down, which is kept in the user's kernel cache.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

from planish.errors import TuningError
from planish.graph.types import DType
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.driver import gpu as open_gpu
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.cuda.libraries.cudnn_graph import AttentionGraph, ConvGraph, Tensor
from planish.targets.cuda.libraries.session import Session, aligned
from planish.targets.cuda.machine import CudaMachine

log = logging.getLogger("planish")

OFFERED = 6
"""At most so many plans of a graph are offered."""

WORKSPACE = 256 << 20
"""Most bytes of workspace that a plan may ask for: some convert whole images."""

NAME = re.compile(r"eng\d{1,9}(_k\d{1,9}=-?\d{1,9}){0,40}")
"""Names of plans: an engine, and knobs by their numbers."""

KNOBS = {
    1: "SWIZZLE",
    2: "TILE_SIZE",
    4: "EDGE",
    11: "MULTIPLY",
    12: "SPLIT_K_BUF",
    13: "TILEK",
    14: "STAGES",
    15: "REDUCTION_MODE",
    17: "SPLIT_K_SLC",
    18: "IDX_MODE",
    23: "SPECFILT",
    24: "KERNEL_CFG",
    25: "WORKSPACE",
    27: "TILE_CGA_M",
    28: "TILE_CGA_N",
    29: "BLOCK_SIZE",
    30: "OCCUPANCY",
    31: "ARRAY_SIZE_PER_THREAD",
    33: "SPLIT_COLS",
    34: "TILE_ROWS",
    35: "TILE_COLS",
    36: "LOAD_SIZE",
    37: "CTA_COUNT",
    38: "STREAM_K",
    39: "SPLIT_P_SLC",
    40: "TILE_M",
    41: "TILE_N",
    42: "WARP_SPEC_CFG",
}
"""What cuDNN's frontend calls knobs, by their numbers (cudnnBackendKnobType_t of cuDNN 9)."""


@dataclass(frozen=True)
class PlannedKernel(LibraryKernel):
    """A plan of cuDNN's for a graph.

    Attributes
    ----------
    graph : ConvGraph or AttentionGraph
    version : int
        Of cuDNN.
    plan : str
        Its name, see `NAME`.
    """

    family = "cudnn"
    is_planned = True

    graph: ConvGraph | AttentionGraph
    version: int
    plan: str

    def load(self, gpu: Gpu) -> PlannedCall:
        own = session(gpu.ordinal)
        if own is None or own.version != self.version:
            raise TuningError(
                f"A kernel of cuDNN {_text(self.version)} is missing",
                where=f"cuda:{gpu.ordinal}",
                why=f"cuDNN {_text(own.version)} is here" if own else "cuDNN is not installed",
                cure="install that version, or tune again (retune=True)",
            )
        return own.call(self, lambda: own.make(self))

    def stored(self, gpu: Gpu) -> bytes | None:
        own = session(gpu.ordinal)
        return own.code(self.symbol) if own else None

    def keep(self, gpu: Gpu, code: bytes) -> None:
        own = session(gpu.ordinal)
        if own and code:
            own.keep(self.symbol, code)

    def compile(self, machine: CudaMachine) -> bytes:
        assert machine.ordinal is not None, "kernels are planned where they run"
        device = open_gpu(machine.ordinal)
        self.load(device)
        return self.stored(device) or b""


@dataclass(frozen=True)
class ConvKernel(PlannedKernel):
    """A convolution. Its pointers: the image, the filters, the graph's operands, its results,
    workspace.
    """


@dataclass(frozen=True)
class SdpaKernel(PlannedKernel):
    """Attention. Its pointers: queries, keys, values, the result, workspace."""

    family = "cudnn_attention"


K = TypeVar("K", bound=PlannedKernel)


class PlannedCall:
    """A plan that is ready."""

    def __init__(self, own: CudnnSession, graph: Any, uids: Sequence[int], workspace: int) -> None:
        self.workspace = workspace
        self._session, self._graph, self._uids = own, graph, tuple(uids)

    def queue(self, addresses: Sequence[int], params: Sequence[int], stream: Any) -> None:
        """Queues it; see `LibraryCall`."""
        *tensors, workspace = addresses
        own = self._session
        pack = dict(zip(self._uids, tensors, strict=True))
        with own.calling(), own.on(stream):
            self._graph.execute(pack, aligned(workspace), handle=own.handle)


class CudnnSession(Session):
    """cuDNN on a GPU; see `session`."""

    def __init__(self, gpu: Gpu, cudnn: Any) -> None:
        super().__init__("cuDNN", int(cudnn.backend_version()), gpu)
        gpu.enter()
        self.cudnn = cudnn
        self.handle = cudnn.create_handle()
        self._stream = gpu.create_stream()
        self._use(self._stream)

    def _use(self, stream: Any) -> None:
        self.cudnn.set_stream(handle=self.handle, stream=int(stream.handle))

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        """Has cuDNN queue on a stream. Afterwards it is back on the session's own: reading a plan
        runs it once on the handle's stream, and that of a caller may be gone by then.
        """
        self._use(stream)
        try:
            yield
        finally:
            self._use(self._stream)

    def kernels(self, graph: ConvGraph) -> list[ConvKernel]:
        """The kernels that cuDNN's heuristics recommend for a graph, the likely best first."""
        return self._kernels(ConvKernel(graph, self.version, ""))

    def attentions(self, graph: AttentionGraph) -> list[SdpaKernel]:
        """The same for attention."""
        return self._kernels(SdpaKernel(graph, self.version, ""))

    def _kernels(self, unnamed: K) -> list[K]:
        return self.recommended(
            unnamed.symbol,
            lambda: self._ask(unnamed.graph),
            lambda name: replace(unnamed, plan=name),
        )

    def _ask(self, graph: ConvGraph | AttentionGraph) -> list[str]:
        """Names of plans by cuDNN's heuristics."""
        made, _ = self._lower(graph)
        made.create_execution_plans(self._modes)
        # only building tells which plans are barred, and most for float32 are: they round to TF32
        tried = (
            isinstance(graph, ConvGraph) and graph.image.dtype is DType.FLOAT32 and not graph.tf32
        )
        found: list[str] = []
        places: dict[str, int] = {}
        for index, name in enumerate(_names(made)):
            if NAME.fullmatch(name):
                places.setdefault(name, index)
        for name in varied(list(places)):
            try:
                if tried:
                    made.build_plan_at_index(places[name])
            except Exception as error:  # of several classes
                log.debug("cuDNN does not build %s: %s", name, error)
                continue
            found.append(name)
            if len(found) == OFFERED:
                break
        return found

    @property
    def _modes(self) -> list[Any]:
        modes = self.cudnn.heur_mode
        return [modes.A, modes.B, modes.FALLBACK]

    def make(self, kernel: PlannedKernel) -> PlannedCall:
        """A kernel made ready: as cuDNN wrote it before, or planned now."""
        graph = written = self._read(kernel)
        uids = range(1, 1 + kernel.graph.pointers)
        if graph is None:
            graph, uids = self._lower(kernel.graph)
            graph.build_plan_at_index(self._planned(graph, kernel.plan))
        workspace = int(graph.get_workspace_size())
        if workspace > WORKSPACE:
            raise ValueError(f"it needs {workspace:,} bytes of workspace")
        if written is None:
            self.keep(kernel.symbol, graph.serialize(as_bytes=True))
        return PlannedCall(self, graph, uids, workspace)

    def _read(self, kernel: PlannedKernel) -> Any:
        """A kernel as cuDNN wrote it before; None if it never did, or does not read it here."""
        code = self.code(kernel.symbol)
        if code is None:
            return None
        graph = self.cudnn.pygraph(handle=self.handle)
        try:
            graph.deserialize(self.handle, code)
        except Exception as error:  # of several classes
            log.debug("cuDNN does not read what it wrote of %s: %s", kernel.symbol, error)
            return None
        return graph

    def _planned(self, graph: Any, plan: str) -> int:
        """Adds the plan of a name to a graph; its index."""
        engine, *settings = re.findall(r"-?\d+", plan)
        pairs = zip(map(int, settings[::2]), map(int, settings[1::2]), strict=True)
        knobs = {KNOBS.get(number, ""): value for number, value in pairs}
        if "" not in knobs:
            kinds = self.cudnn.knob_type
            named = {getattr(kinds, name): value for name, value in knobs.items()}
            graph.create_execution_plan(int(engine), named)
            return graph.get_execution_plan_count() - 1
        graph.create_execution_plans(self._modes)  # the frontend has no name for one of its knobs
        return _names(graph).index(plan)

    def _lower(self, graph: ConvGraph | AttentionGraph) -> tuple[Any, range]:
        """A graph as cuDNN's own, and the numbers of its tensors in the order of pointers."""
        notes = self.cudnn.numerical_note
        if isinstance(graph, ConvGraph):
            made = self._lower_conv(graph)
            unwanted = [notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION]
            if graph.image.dtype is not DType.FLOAT32:
                unwanted += [notes.WINOGRAD, notes.FFT]  # they round sums on the way
            elif not graph.tf32:
                unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
        else:
            made, unwanted = self._lower_attention(graph), [notes.NONDETERMINISTIC]
        made.validate()
        made.build_operation_graph()
        made.deselect_numeric_notes(unwanted)
        made.deselect_workspace_greater_than(WORKSPACE)
        return made, range(1, 1 + graph.pointers)

    def _dtype(self, dtype: DType) -> Any:
        kinds = self.cudnn.data_type
        return {
            DType.FLOAT16: kinds.HALF,
            DType.BFLOAT16: kinds.BFLOAT16,
            DType.FLOAT32: kinds.FLOAT,
            DType.INT8: kinds.INT8,
        }[dtype]

    def _graph(self, dtype: DType) -> tuple[Any, Callable[[Tensor], Any]]:
        """An empty graph of cuDNN's, and what adds tensors to it, numbered from 1."""
        kinds = self.cudnn.data_type
        made = self.cudnn.pygraph(
            io_data_type=self._dtype(dtype),
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self.handle,
        )
        numbers = itertools.count(1)

        def tensor(described: Tensor) -> Any:
            return made.tensor(
                dim=list(described.shape),
                stride=list(described.strides),
                data_type=self._dtype(described.dtype),
                uid=next(numbers),
            )

        return made, tensor

    def _write(self, result: Any, described: Tensor, number: int) -> None:
        """Has a result of a graph written to a tensor of that number."""
        result.set_output(True).set_data_type(self._dtype(described.dtype)).set_uid(number)
        result.set_dim(list(described.shape)).set_stride(list(described.strides))

    def _lower_attention(self, graph: AttentionGraph) -> Any:
        made, tensor = self._graph(graph.q.dtype)
        q, k, v = tensor(graph.q), tensor(graph.k), tensor(graph.v)
        result, _ = made.sdpa(q=q, k=k, v=v, generate_stats=False, attn_scale=graph.scale)
        self._write(result, graph.result, 4)
        return made

    def _lower_conv(self, graph: ConvGraph) -> Any:
        made, tensor = self._graph(graph.image.dtype)
        image, filters = tensor(graph.image), tensor(graph.filters)
        operands = [tensor(t) for t in graph.operands]
        kinds = self.cudnn.data_type
        sums = kinds.INT32 if graph.image.dtype is DType.INT8 else kinds.FLOAT
        product = made.conv_fprop(
            image=image,
            weight=filters,
            pre_padding=list(graph.before),
            post_padding=list(graph.after),
            stride=list(graph.strides),
            dilation=list(graph.dilations),
            compute_data_type=sums,
        )
        if sums is kinds.INT32:
            product.set_data_type(sums)
        slots = [product, *operands]
        for step in graph.steps:
            more = {} if step.slope is None else {"negative_slope": step.slope}
            slots.append(getattr(made, step.operation)(*(slots[i] for i in step.args), **more))
        for number, (slot, described) in enumerate(graph.results, 3 + len(operands)):
            self._write(slots[slot], described, number)
        return made


@cache
def session(ordinal: int) -> CudnnSession | None:
    """cuDNN on a GPU of this process; None, and one line in the log, where it is not installed."""
    try:
        import cudnn

        return CudnnSession(open_gpu(ordinal), cudnn)
    except Exception as error:  # a missing package, a missing library, an old driver
        log.warning(
            "cuDNN's kernels are not offered: %s (pip install nvidia-cudnn-frontend "
            "nvidia-cudnn-cu13, or planish[cuda-libraries])",
            error,
        )
        return None


def varied(names: Sequence[str]) -> list[str]:
    """Names of plans reordered: the likely best three, the best of two other engines, the rest.

    Heuristics often rank an engine's plans one after the other, good and bad alike.
    """
    engines = {name.split("_")[0] for name in names[:3]}
    others: dict[str, str] = {}
    for name in names[3:]:
        engine = name.split("_")[0]
        if engine not in engines:
            others.setdefault(engine, name)
    return list(dict.fromkeys([*names[:3], *list(others.values())[:2], *names]))


def _names(graph: Any) -> list[str]:
    """The names of a graph's plans."""
    return [graph.get_plan_name_at_index(i) for i in range(graph.get_execution_plan_count())]


def _text(version: int) -> str:
    """A version as people write it."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
