"""cuBLASLt on a GPU: products handed to it, and the algorithms that it knows for them.

An algorithm is named by its settings, which is what plan files hold; from them cuBLASLt makes the
same algorithm again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from planish.errors import TuningError
from planish.graph.types import DType
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.cuda.libraries.product import Matrix, Product
from planish.targets.cuda.libraries.session import Session, aligned

log = logging.getLogger("planish")

OFFERED = 6
"""At most so many algorithms for a product are offered."""

WORKSPACE = 32 << 20
"""Most bytes of workspace that an algorithm may ask for; NVIDIA advises so many for Hopper."""

SETTINGS = (
    "ID",
    "TILE_ID",
    "SPLITK_NUM",
    "REDUCTION_SCHEME",
    "CTA_SWIZZLING",
    "CUSTOM_OPTION",
    "STAGES_ID",
    "INNER_SHAPE_ID",
    "CLUSTER_SHAPE_ID",
)
"""What an algorithm is made of, as cuBLASLt calls it."""

_TYPES = {DType.FLOAT32: 0, DType.FLOAT16: 2, DType.BFLOAT16: 14}  # cudaDataType
_IN_FLOAT32, _IN_TF32 = 68, 77  # cublasComputeType_t
_SUMS_IN_FLOAT32 = 2  # cublasLtReductionScheme_t: parts of a sum are never rounded to halves


@dataclass(frozen=True)
class ProductKernel(LibraryKernel):
    """An algorithm of cuBLASLt for a product.

    Its pointers: the factors (the result's rows' first), residual, bias, result, workspace.

    Attributes
    ----------
    product : Product
    version : int
        Of cuBLASLt.
    settings : tuple of int
        In the order of `SETTINGS`.
    """

    family = "cublaslt"

    product: Product
    version: int
    settings: tuple[int, ...]

    def load(self, gpu: Gpu) -> ProductCall:
        own = session(gpu.ordinal)
        if own is None or own.version != self.version:
            raise TuningError(
                f"A kernel of cuBLASLt {self.version} is missing",
                where=f"cuda:{gpu.ordinal}",
                why=f"cuBLASLt {own.version} is here" if own else "it is not installed",
                cure="install that version, or tune again (retune=True)",
            )
        return own.call(self, lambda: own.make(self))


class ProductCall:
    """An algorithm that is ready."""

    def __init__(
        self, own: CublasLtSession, described: _Described, settings: Sequence[int]
    ) -> None:
        self._session, self._described = own, described
        product = described.product
        self._algorithm, self.workspace = described.algorithm(settings)
        self._scale = np.array([product.scale], np.float32)
        self._more = np.array([product.residual is not None], np.float32)

    def queue(self, addresses: Sequence[int], params: Sequence[int], stream: Any) -> None:
        """Queues it; see `LibraryCall`."""
        left, right, *more, result, workspace = addresses
        own, described = self._session, self._described
        residual = more.pop(0) if described.product.residual else result
        with own.calling():
            if more:
                described.set("BIAS_POINTER", more[0], np.uint64)
            own.library.matmul(
                own.handle,
                described.operation,
                self._scale.ctypes.data,
                left,
                described.left,
                right,
                described.right,
                self._more.ctypes.data,
                residual,
                described.residual,
                result,
                described.result,
                self._algorithm.ctypes.data,
                aligned(workspace),
                self.workspace,
                int(stream.handle),
            )


class CublasLtSession(Session):
    """cuBLASLt on a GPU; see `session`."""

    def __init__(self, gpu: Gpu, library: Any) -> None:
        super().__init__("cuBLASLt", int(library.get_version()), gpu)
        gpu.enter()
        self.library = library
        self.handle = library.create()

    def kernels(self, product: Product) -> list[ProductKernel]:
        """The kernels that cuBLASLt's heuristics recommend, the likely best first."""
        unnamed = ProductKernel(product, self.version, ())

        def kernel(settings: Any) -> ProductKernel:
            return replace(unnamed, settings=tuple(settings))

        return self.recommended(
            unnamed.symbol, lambda: _Described(self, product).recommended(), kernel
        )

    def make(self, kernel: ProductKernel) -> ProductCall:
        """A kernel made ready."""
        return ProductCall(self, _Described(self, kernel.product), kernel.settings)


class _Described:
    """A product as cuBLASLt is told of it: descriptors, destroyed with this object."""

    def __init__(self, own: CublasLtSession, product: Product) -> None:
        self.product = product
        self._own, self._lt = own, own.library
        self._destroy: list[tuple[Callable[[int], None], int]] = []
        lt = self._lt
        self._compute = _IN_TF32 if product.tf32 else _IN_FLOAT32
        self.operation = self._made(
            lt.matmul_desc_create(self._compute, _TYPES[DType.FLOAT32]), lt.matmul_desc_destroy
        )
        self.left, self.right = self._layout(product.left), self._layout(product.right)
        self.result = self._layout(product.result)
        self.residual = self._layout(product.residual) if product.residual else self.result
        self.set("TRANSA", product.left.transposed, np.int32)
        self.set("TRANSB", product.right.transposed, np.int32)
        parts = [product.activation.upper(), "BIAS" if product.bias else ""]
        self.set("EPILOGUE", lt.Epilogue["_".join(filter(None, parts)) or "DEFAULT"], np.int32)
        if product.bias:
            self.set("BIAS_DATA_TYPE", _TYPES[product.result.dtype], np.int32)
            self.set("BIAS_POINTER", 256, np.uint64)  # any aligned one, until there is a real one

    def _made(self, handle: int, destroy: Callable[[int], None]) -> int:
        self._destroy.append((destroy, handle))
        return handle

    def __del__(self) -> None:
        for destroy, handle in self._destroy:
            destroy(handle)

    def set(self, attribute: str, value: int, dtype: Any) -> None:
        """Sets an attribute of the operation."""
        lt = self._lt
        number = lt.MatmulDescAttribute[attribute]
        _set(lt.matmul_desc_set_attribute, self.operation, number, value, dtype)

    def _layout(self, matrix: Matrix) -> int:
        lt = self._lt
        kind = _TYPES[matrix.dtype]
        layout = lt.matrix_layout_create(kind, matrix.rows, matrix.columns, matrix.step)
        self._made(layout, lt.matrix_layout_destroy)
        names = lt.MatrixLayoutAttribute
        put = lt.matrix_layout_set_attribute
        if self.product.batch > 1:
            _set(put, layout, names.BATCH_COUNT, self.product.batch, np.int32)
            _set(put, layout, names.STRIDED_BATCH_OFFSET, matrix.apart, np.int64)
        return layout

    def recommended(self) -> list[list[int]]:
        """The settings of the algorithms that the heuristics recommend."""
        lt, product = self._lt, self.product
        preference = lt.matmul_preference_create()
        self._made(preference, lt.matmul_preference_destroy)
        residual = product.residual or product.result
        wanted = {
            "MAX_WORKSPACE_BYTES": (WORKSPACE, np.uint64),
            "REDUCTION_SCHEME_MASK": (_SUMS_IN_FLOAT32, np.uint32),
            "MIN_ALIGNMENT_A_BYTES": (product.left.alignment, np.uint32),
            "MIN_ALIGNMENT_B_BYTES": (product.right.alignment, np.uint32),
            "MIN_ALIGNMENT_C_BYTES": (residual.alignment, np.uint32),
            "MIN_ALIGNMENT_D_BYTES": (product.result.alignment, np.uint32),
        }
        for name, (value, dtype) in wanted.items():
            number = lt.MatmulPreferenceAttribute[name]
            _set(lt.matmul_preference_set_attribute, preference, number, value, dtype)
        results = lt.MatmulHeuristicResult(OFFERED)
        count = np.zeros(1, np.int32)
        lt.matmul_algo_get_heuristic(
            self._own.handle,
            self.operation,
            self.left,
            self.right,
            self.residual,
            self.result,
            preference,
            OFFERED,
            results.ptr,
            count.ctypes.data,
        )
        found: list[list[int]] = []
        for index in range(int(count[0])):
            algorithm = np.array(results[index].algo, copy=True).view(np.uint64).reshape(-1)
            settings = [self._setting(algorithm, name) for name in SETTINGS]
            if settings not in found:
                found.append(settings)
        return found

    def _setting(self, algorithm: np.ndarray, name: str) -> int:
        lt = self._lt
        number = int(lt.MatmulAlgoConfigAttribute[name])
        value = np.zeros(1, lt.get_matmul_algo_config_attribute_dtype(number))
        written = np.zeros(1, np.uint64)
        lt.matmul_algo_config_get_attribute(
            algorithm.ctypes.data, number, value.ctypes.data, value.nbytes, written.ctypes.data
        )
        return int(value[0])

    def algorithm(self, settings: Sequence[int]) -> tuple[np.ndarray, int]:
        """The algorithm with these settings, and the bytes of workspace it needs here.

        Raises
        ------
        Exception
            cuBLASLt's own: it does not have it, or not for this product.
        """
        lt, product = self._lt, self.product
        made = np.zeros(8, np.uint64)
        matrices = (product.left, product.right, product.residual or product.result, product.result)
        types = [_TYPES[m.dtype] for m in matrices]
        scale = _TYPES[DType.FLOAT32]
        handle = self._own.handle
        lt.matmul_algo_init(handle, self._compute, scale, *types, settings[0], made.ctypes.data)
        for name, value in zip(SETTINGS[1:], settings[1:], strict=True):
            number = int(lt.MatmulAlgoConfigAttribute[name])
            dtype = lt.get_matmul_algo_config_attribute_dtype(number)
            _set(lt.matmul_algo_config_set_attribute, made.ctypes.data, number, value, dtype)
        for name, matrix in zip("ABCD", matrices, strict=True):
            needed = np.zeros(1, np.uint32)
            written = np.zeros(1, np.uint64)
            lt.matmul_algo_cap_get_attribute(
                made.ctypes.data,
                int(lt.MatmulAlgoCapAttribute[f"MIN_ALIGNMENT_{name}_BYTES"]),
                needed.ctypes.data,
                needed.nbytes,
                written.ctypes.data,
            )
            if matrix.alignment % max(int(needed[0]), 1):
                raise ValueError(f"{name} lies at multiples of {matrix.alignment} bytes only")
        checked = lt.MatmulHeuristicResult(1)
        lt.matmul_algo_check(
            handle,
            self.operation,
            self.left,
            self.right,
            self.residual,
            self.result,
            made.ctypes.data,
            checked.ptr,
        )
        workspace = int(checked.workspace_size)
        if int(checked.state) != 0 or workspace > WORKSPACE:
            raise ValueError(f"status {int(checked.state)}, {workspace:,} bytes of workspace")
        return made, workspace


@cache
def session(ordinal: int) -> CublasLtSession | None:
    """cuBLASLt on a GPU of this process; None, and one line in the log, where it is missing."""
    from planish.targets.cuda.driver import gpu

    try:
        from nvmath.bindings import cublasLt

        return CublasLtSession(gpu(ordinal), cublasLt)
    except Exception as error:  # a missing package, a missing library, an old driver
        log.warning(
            "cuBLASLt's kernels are not offered: %s (pip install nvmath-python[cu13], or "
            "planish[cuda-libraries])",
            error,
        )
        return None


def _set(put: Callable[..., None], target: int, attribute: int, value: int, dtype: Any) -> None:
    """Sets an attribute by cuBLASLt's way: address and size of the value."""
    held = np.array([value], dtype)
    put(target, int(attribute), held.ctypes.data, held.nbytes)
