"""Machine code in plans: what kernels of GPUs were compiled to, so that running needs no compiler.

It stands behind the weights, and the header's entry ``device_code`` says what it is:

    {"for": "cuda sm_90 …", "count": 2, "bytes": 410, "sha256": …, "kernels": [["rows_…", 200], …

It is run only where `planish.load` is told ``allow_device_code=True``, and fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from planish.errors import PlanError, PlanishError
from planish.plan.codec import Json, expect
from planish.plan.plan import Plan
from planish.profile import tuning_points
from planish.targets.base import Kernel
from planish.targets.target import Target


@dataclass(frozen=True)
class PlanCode:
    """The code in a plan.

    Attributes
    ----------
    key : str
        Of the target that runs it, see `Target.code_key`.
    kernels : mapping of str to bytes
        By names that the target has chosen.
    """

    key: str
    kernels: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all kernels."""
        return sum(map(len, self.kernels.values()))

    def __str__(self) -> str:
        return f"{len(self.kernels)} kernel(s), {self.size:,} bytes, for {self.key}"


def code_of(plan: Plan, target: Target) -> PlanCode | None:
    """The code of a plan's kernels at the sizes it was tuned at; None where plans hold none."""
    if not target.code_key:
        return None
    kernels: dict[str, Kernel] = {}
    for sizes in tuning_points(plan.graph):
        for step in plan.steps:
            try:
                binding = plan.binding(sizes, step.task)
                launches = step.tactic(binding, target).launches(binding)
            except PlanishError:  # guessed sizes of data may not go together
                continue
            kernels.update(
                (launch.kernel.symbol, launch.kernel)
                for launch in launches
                if isinstance(launch.kernel, Kernel)
            )
    code = target.device_code(kernels[symbol] for symbol in sorted(kernels))
    return PlanCode(target.code_key, dict(sorted(code.items()))) if code else None


def described(code: PlanCode) -> Json:
    """The header's entry."""
    return {
        "for": code.key,
        "count": len(code.kernels),
        "bytes": code.size,
        "sha256": _digest(code.kernels),
        "kernels": [[name, len(data)] for name, data in code.kernels.items()],
    }


def read(entry: Json, blob: memoryview) -> PlanCode:
    """The code that stands in a part of the file.

    Raises
    ------
    PlanError
        It is not what the header says.
    """
    key, digest = expect(entry, "for", str), expect(entry, "sha256", str)
    kernels: dict[str, bytes] = {}
    start = 0
    for item in expect(entry, "kernels", list):
        pair = isinstance(item, list) and list(map(type, item)) == [str, int]
        if not pair or item[1] < 0 or item[0] in kernels:
            raise PlanError("The device code of the plan is described wrongly", why=str(item)[:99])
        kernels[item[0]] = bytes(blob[start : start + item[1]])
        start += item[1]
    if start != len(blob) or _digest(kernels) != digest:
        raise PlanError("The plan file is damaged", why="the device code does not fit its checksum")
    return PlanCode(key, kernels)


def _digest(kernels: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for data in kernels.values():
        digest.update(data)
    return digest.hexdigest()
