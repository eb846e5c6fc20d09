"""What both of TF-TRT's converters have in common: arguments, their checks, and the order of steps.

Messages begin as TF-TRT's did, so that code that looks for their words goes on working.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from planish.errors import PlanError
from planish.frontends.tensorflow.model import tensorflow
from planish.tensorflow.converted import Converted
from planish.tensorflow.parameters import OrderError, check_params
from planish.tensorflow.settings import Settings

SERVING_TAG = "serve"
DEFAULT_SIGNATURE = "serving_default"


class ConverterBase:
    """Holds the arguments of a conversion, and its result once there is one.

    Parameters
    ----------
    params : TrtConversionParams
    folder : path, optional
        A SavedModel.
    tags : list of str, optional
        Default ``["serve"]``.
    signature : str, optional
        Default ``"serving_default"``.
    device : str
        Where engines run.

    Raises
    ------
    ArgumentError
        A parameter is wrong; it is a ValueError, too.
    """

    def __init__(
        self,
        params: Any,
        folder: str | os.PathLike[str] | None,
        tags: Iterable[str] | None,
        signature: str | None,
        device: str,
    ) -> None:
        check_params(params)
        self._device = device
        self._precisions = frozenset({"fp32"})
        self._params = params
        self._folder = folder
        self._tags = list(tags or [SERVING_TAG])
        self._signature = signature or DEFAULT_SIGNATURE
        self._result: Converted | None = None

    @property
    def converted(self) -> Converted:
        """The graphs before and after, the engines, and the reasons of what was not converted.

        Raises
        ------
        OrderError
            Before `convert`.
        """
        return self._after_convert("converted")

    def _after_convert(
        self, step: str, what: str = "Need to call convert() before {}"
    ) -> Converted:
        """The result, which a step needs."""
        if self._result is None:
            raise OrderError(
                what.format(step),
                where=step,
                why="there is nothing converted yet",
                cure="call convert() first",
            )
        return self._result

    def _before_convert(self, begun: bool = False) -> None:
        """Refuses a second conversion."""
        if begun or self._result is not None:
            raise OrderError(
                "convert() was called already",
                where="convert()",
                why="a converter converts one model, once",
                cure="make another converter for another model",
            )

    def _settings(self, **more: Any) -> Settings:
        """The settings of the conversion: the parameters, and what the environment says."""
        return Settings.from_environment(
            minimum_segment_size=self._params.minimum_segment_size,
            maximum_cached_engines=self._params.maximum_cached_engines,
            max_workspace_size=self._params.max_workspace_size_bytes,
            device=self._device,
            precisions=self._precisions,
            **more,
        )


@contextmanager
def whole_folder(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Where to write a SavedModel so that it is there as a whole or not at all.

    What is written becomes the folder at the end. A folder that holds something already, and one
    that is no file system's (``gs://``), is written to directly.

    Raises
    ------
    PlanError
        It cannot be written.
    """
    target = os.fspath(folder)
    try:
        direct = "://" in target or bool(os.path.isdir(target) and os.listdir(target))
        place = target if direct else f"{target.rstrip('/')}.{secrets.token_hex(6)}.part"
        try:
            yield place
            if not direct:
                if os.path.isdir(target):
                    os.rmdir(target)
                os.rename(place, target)
        finally:
            if not direct:
                shutil.rmtree(place, ignore_errors=True)
    except (OSError, tensorflow().errors.OpError) as error:
        raise PlanError(
            "The converted model cannot be written",
            where=target,
            why=getattr(error, "strerror", None) or str(error),
            cure="choose a folder that can be written, on a disk with space left",
        ) from error
