"""TF-TRT's conversion parameters and their checks.

Errors are of Planish's kinds and at the same time of the kinds that TF-TRT raised, so that code
that catches these goes on working.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from planish.errors import InputError, PrecisionError
from planish.precision.permissions import parse_precision, permit
from planish.targets.devices import find_target

DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES = 1 << 30

PROFILE_STRATEGY_RANGE = "Range"
PROFILE_STRATEGY_OPTIMAL = "Optimal"
PROFILE_STRATEGY_RANGE_OPTIMAL = "Range+Optimal"
PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE = "ImplicitBatchModeCompatible"


class ArgumentError(InputError, ValueError):
    """An argument of a converter is wrong."""


class OrderError(InputError, RuntimeError, AssertionError):
    """The methods of a converter were called in the wrong order."""


class TrtPrecisionMode:
    """The precisions that may be asked for; each allows the ones before it, none forces itself."""

    FP32 = "FP32"
    FP16 = "FP16"
    INT8 = "INT8"
    BF16 = "BF16"
    FP8 = "FP8"

    @staticmethod
    def supported_precision_modes() -> list[str]:
        """The names of TF-TRT, in upper and lower case."""
        modes = [TrtPrecisionMode.FP32, TrtPrecisionMode.FP16, TrtPrecisionMode.INT8]
        return modes + [m.lower() for m in modes]


_MODES = ("FP32", "FP16", "INT8", "BF16", "FP8")
_FORMER = {"rewriter_config_template": None, "is_dynamic_op": True, "max_batch_size": 1}
"""Fields of older versions; accepted and without effect: engines take any batch."""


class _Params(NamedTuple):
    max_workspace_size_bytes: int
    precision_mode: str
    minimum_segment_size: int
    maximum_cached_engines: int
    use_calibration: bool
    allow_build_at_runtime: bool


class TrtConversionParams(_Params):
    """The parameters of a conversion.

    Parameters
    ----------
    max_workspace_size_bytes : int
        Bytes of workspace that no kernel may exceed.
    precision_mode : str
        One of `TrtPrecisionMode`, in any case.
    minimum_segment_size : int
        Nodes, constants counted, that a segment must have to become an engine; -1: none does.
    maximum_cached_engines : int
        For how many input shapes an engine keeps its program at least.
    use_calibration : bool
        Ignored unless the precision is INT8.
    allow_build_at_runtime : bool
        Engines take any batch, so that nothing needs to be built at run time; accepted.
    rewriter_config_template, is_dynamic_op, max_batch_size
        Of older versions; without effect.
    """

    __slots__ = ()

    rewriter_config_template = None
    is_dynamic_op = True
    max_batch_size = 1

    def __new__(
        cls,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        allow_build_at_runtime: bool = True,
        rewriter_config_template: Any = None,
        is_dynamic_op: bool | None = True,
        max_batch_size: int | None = 1,
    ) -> TrtConversionParams:
        return super().__new__(
            cls,
            max_workspace_size_bytes,
            precision_mode,
            minimum_segment_size,
            maximum_cached_engines,
            use_calibration,
            allow_build_at_runtime,
        )

    def _replace(self, **fields: Any) -> TrtConversionParams:  # type: ignore[override]
        return super()._replace(**{n: v for n, v in fields.items() if n not in _FORMER})


DEFAULT_TRT_CONVERSION_PARAMS = TrtConversionParams()


def supported_profile_strategies() -> list[str]:
    """The names of strategies for profiles of dynamic shapes."""
    return [
        PROFILE_STRATEGY_RANGE,
        PROFILE_STRATEGY_OPTIMAL,
        PROFILE_STRATEGY_RANGE_OPTIMAL,
        PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    ]


def check_params(params: Any) -> None:
    """Checks conversion parameters.

    Raises
    ------
    ArgumentError
        One of them is wrong; it is a ValueError, too.
    """
    mode = params.precision_mode
    if not isinstance(mode, str) or mode.upper() not in _MODES:
        raise ArgumentError(
            f"precision mode {mode!r} is not supported",
            where="precision_mode=",
            cure=f"pass one of {', '.join(_MODES)}",
        )
    size = params.minimum_segment_size
    if not isinstance(size, int) or (size <= 0 and size != -1):
        raise ArgumentError(
            f"minimum segment size should be positive or -1, and is {size!r}",
            where="minimum_segment_size=",
            cure="pass a positive number, or -1 to convert nothing of the main graph",
        )
    if params.maximum_cached_engines < 1:
        raise ArgumentError(
            f"maximum_cached_engines is {params.maximum_cached_engines!r}, not positive",
            where="maximum_cached_engines=",
            cure="pass 1 or more",
        )


def check_profile_strategy(strategy: str) -> None:
    """Raises `ArgumentError` where there is no such strategy."""
    known = supported_profile_strategies()
    if strategy.lower() not in [s.lower() for s in known]:
        raise ArgumentError(
            f"profile_strategy {strategy!r} is not supported",
            where="dynamic_shape_profile_strategy=",
            cure=f"pass one of {', '.join(known)}",
        )


def needs_calibration(params: Any) -> bool:
    """Whether ranges must be measured on the user's data."""
    return params.precision_mode.upper() == TrtPrecisionMode.INT8 and bool(params.use_calibration)


def settle_precision(params: Any, device: str) -> frozenset[str]:
    """The precisions that engines may have on a device.

    A precision is a permission: where the kernels for FP16 or BF16 are missing, FP32 serves.

    Raises
    ------
    PrecisionError
        INT8 or FP8 is asked for and cannot be had: users rely on what these change.
    """
    mode = params.precision_mode.upper()
    target = find_target(device)
    missing = mode in ("INT8", "FP8") and mode.lower() not in target.precisions
    if missing or mode == TrtPrecisionMode.FP8:
        raise PrecisionError(
            f"Precision {mode} is not available",
            where="precision_mode=",
            why=f"this version has no kernels for it on {target.device}"
            if missing
            else "engines inside TensorFlow do not have it yet; planish.build has it",
            cure='pass precision_mode="FP32"',
        )
    asked = parse_precision(mode.lower(), target.device, target.precisions)
    return permit(asked, target.device, target.precisions)
