"""cuDNN on a GPU: graphs handed to it, and the plans that it makes of them.

A plan is named by an engine and its knobs, which is what plan files hold: cuDNN makes the same one
of them again without its heuristics. What it made it can also write down, which is kept in the
user's kernel cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from planish.errors import TuningError
from planish.graph.types import DType
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.cuda.libraries.cudnn_graph import ConvGraph, Tensor
from planish.targets.cuda.libraries.session import WORKSPACE, Session, aligned

log = logging.getLogger("planish")

OFFERED = 6
"""At most so many plans of a graph are offered."""


@dataclass(frozen=True)
class ConvKernel(LibraryKernel):
    """A plan of cuDNN's for a graph.

    Its pointers: the image, the filters, the graph's operands, its results, workspace.

    Attributes
    ----------
    graph : ConvGraph
    version : int
        Of cuDNN.
    engine : int
    knobs : tuple
        The engine's settings, by name.
    """

    family = "cudnn"

    graph: ConvGraph
    version: int
    engine: int
    knobs: tuple[tuple[str, int], ...]

    def load(self, gpu: Gpu) -> ConvCall:
        own = session(gpu.ordinal)
        if own is None or own.version != self.version:
            raise TuningError(
                f"A kernel of cuDNN {_text(self.version)} is missing",
                where=f"cuda:{gpu.ordinal}",
                why=f"cuDNN {_text(own.version)} is here" if own else "cuDNN is not installed",
                cure="install that version, or tune again (retune=True)",
            )
        return own.call(self, lambda: own.make(self))


class ConvCall:
    """A plan that is ready."""

    def __init__(self, own: CudnnSession, graph: Any, uids: Sequence[int], workspace: int) -> None:
        self.workspace = workspace
        self._session, self._graph, self._uids = own, graph, tuple(uids)

    def queue(self, addresses: Sequence[int], params: Sequence[int], stream: Any) -> None:
        """Queues it; see `LibraryCall`."""
        *tensors, workspace = addresses
        own = self._session
        with own.lock:
            own.cudnn.set_stream(handle=own.handle, stream=int(stream.handle))
            pack = dict(zip(self._uids, tensors, strict=True))
            self._graph.execute(pack, aligned(workspace), handle=own.handle)


class CudnnSession(Session):
    """cuDNN on a GPU; see `session`."""

    def __init__(self, gpu: Gpu, cudnn: Any) -> None:
        super().__init__("cuDNN", int(cudnn.backend_version()), gpu)
        gpu.enter()
        self.cudnn = cudnn
        self.handle = cudnn.create_handle()

    def kernels(self, graph: ConvGraph) -> list[ConvKernel]:
        """The kernels that cuDNN's heuristics recommend for a graph, the likely best first."""
        unnamed = ConvKernel(graph, self.version, -1, ())

        def kernel(answer: Any) -> ConvKernel:
            engine, knobs = answer
            return replace(unnamed, engine=engine, knobs=tuple(sorted(knobs.items())))

        return self.recommended(unnamed.symbol, lambda: self._ask(graph), kernel)

    def _ask(self, graph: ConvGraph) -> list[tuple[int, dict[str, int]]]:
        """Engines and knobs by cuDNN's heuristics."""
        made, _ = self._lower(graph)
        modes = self.cudnn.heur_mode
        made.create_execution_plans([modes.A, modes.B, modes.FALLBACK])
        # only building tells which plans are barred, and most for float32 are: they round to TF32
        tried = graph.image.dtype is DType.FLOAT32 and not graph.tf32
        found: list[tuple[int, dict[str, int]]] = []
        for index in range(made.get_execution_plan_count()):
            try:
                engine, knobs = made.get_engine_and_knobs_at_index(index)
                if tried:
                    made.build_plan_at_index(index)
            except Exception as error:  # of several classes
                log.debug("cuDNN does not build plan %d: %s", index, error)
                continue
            named = (int(engine), {k.name: int(v) for k, v in knobs.items()})
            if named not in found:
                found.append(named)
            if len(found) == OFFERED:
                break
        return found

    def make(self, kernel: ConvKernel) -> ConvCall:
        """A kernel made ready: as cuDNN wrote it before, or planned now."""
        code = self.code(kernel.symbol)
        if code is not None:
            graph = self.cudnn.pygraph(handle=self.handle)
            graph.deserialize(self.handle, code)
            uids = range(1, 3 + len(kernel.graph.operands) + len(kernel.graph.results))
        else:
            graph, uids = self._lower(kernel.graph)
            names = self.cudnn.knob_type
            knobs = {getattr(names, name): value for name, value in kernel.knobs}
            graph.create_execution_plan(kernel.engine, knobs)
            graph.build_plan_at_index(graph.get_execution_plan_count() - 1)
        workspace = int(graph.get_workspace_size())
        if workspace > WORKSPACE:
            raise ValueError(f"it needs {workspace:,} bytes of workspace")
        if code is None:
            self.keep(kernel.symbol, graph.serialize(as_bytes=True))
        return ConvCall(self, graph, uids, workspace)

    def _lower(self, graph: ConvGraph) -> tuple[Any, range]:
        """A graph as cuDNN's own, and the numbers of its tensors in the order of pointers."""
        kinds = self.cudnn.data_type
        dtypes = {
            DType.FLOAT16: kinds.HALF,
            DType.BFLOAT16: kinds.BFLOAT16,
            DType.FLOAT32: kinds.FLOAT,
        }
        made = self.cudnn.pygraph(
            io_data_type=dtypes[graph.image.dtype],
            intermediate_data_type=kinds.FLOAT,
            compute_data_type=kinds.FLOAT,
            handle=self.handle,
        )
        count = 0

        def tensor(described: Tensor) -> Any:
            nonlocal count
            count += 1
            return made.tensor(
                dim=list(described.shape),
                stride=list(described.strides),
                data_type=dtypes[described.dtype],
                uid=count,
            )

        image, filters = tensor(graph.image), tensor(graph.filters)
        operands = [tensor(t) for t in graph.operands]
        slots = [
            made.conv_fprop(
                image=image,
                weight=filters,
                pre_padding=list(graph.before),
                post_padding=list(graph.after),
                stride=list(graph.strides),
                dilation=list(graph.dilations),
                compute_data_type=kinds.FLOAT,
            ),
            *operands,
        ]
        for step in graph.steps:
            more = {} if step.slope is None else {"negative_slope": step.slope}
            slots.append(getattr(made, step.operation)(*(slots[i] for i in step.args), **more))
        for slot, described in graph.results:
            count += 1
            result = slots[slot]
            result.set_output(True).set_data_type(dtypes[described.dtype]).set_uid(count)
            result.set_dim(list(described.shape)).set_stride(list(described.strides))
        made.validate()
        made.build_operation_graph()
        notes = self.cudnn.numerical_note
        unwanted = [notes.NONDETERMINISTIC, notes.REDUCED_PRECISION_REDUCTION]
        if graph.image.dtype is not DType.FLOAT32:
            unwanted += [notes.WINOGRAD, notes.FFT]  # they round sums on the way
        elif not graph.tf32:
            unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS]
        made.deselect_numeric_notes(unwanted)
        made.deselect_workspace_greater_than(WORKSPACE)
        return made, range(1, count + 1)


@cache
def session(ordinal: int) -> CudnnSession | None:
    """cuDNN on a GPU of this process; None, and one line in the log, where it is not installed."""
    from planish.targets.cuda.driver import gpu

    try:
        import cudnn

        return CudnnSession(gpu(ordinal), cudnn)
    except Exception as error:  # a missing package, a missing library, an old driver
        log.warning(
            "cuDNN's kernels are not offered: %s (pip install nvidia-cudnn-frontend "
            "nvidia-cudnn-cu13, or planish[cuda])",
            error,
        )
        return None


def _text(version: int) -> str:
    """A version as people write it."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
