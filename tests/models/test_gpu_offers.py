"""Real models for a described GPU: what a build may take has kernels, and can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest

import planish

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted_target import InterpretedTarget
from planish.fusion.task import Task
from planish.targets.base import Binding, Tactic
from planish.targets.cuda.kernel import PtxKernel, TritonKernel

pytestmark = pytest.mark.data

SMALL = 300_000
"""Constants of a task that are packed here, too."""

MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "mlperf_tiny_resnet8_cifar10.h5": {"input_1": (6, 32, 32, 3)},
    "mlperf_tiny_vww_mobilenet_v1_0.25_96.h5": {"input_1": (6, 96, 96, 3)},
    "mobilenet_v2_1.0_224_frozen.pb": {"input": (2, 224, 224, 3)},
    "nanodet_m_320_coco.onnx": {"image": (1, 3, 320, 320)},
    "resnet20_cifar10.onnx": {"input": (6, 3, 32, 32)},
    "squeezenet1.1.onnx": {"data": (4, 3, 224, 224)},
    "ssd_mobilenet_v1_0.75_300_coco_frozen.pb": {"image_tensor": (1, 300, 300, 3)},
}
"""With the shapes of their inputs."""


class Watched(InterpretedTarget):
    """Looks at the first tactics of every family that are offered for a task."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        offered = super().tactics(task, binding)
        first: dict[tuple[str, int], Tactic] = {}
        for tactic in offered:
            first.setdefault((tactic.family, getattr(tactic, "pixels", 0)), tactic)
        for tactic in first.values():
            self._look_at(tactic, binding)
        return offered

    def _look_at(self, tactic: Tactic, binding: Binding) -> None:
        task = tactic.task
        assert str(self.restore(task, tactic.family, tactic.parameters)) == str(tactic)
        if sum(v.data.size for v in task.inputs if v.data is not None) < SMALL:
            tactic.constants()
        for launch in tactic.launches(binding):
            if isinstance(launch.kernel, TritonKernel):
                assert launch.kernel.symbol in launch.kernel.source()
            elif isinstance(launch.kernel, PtxKernel):
                assert launch.kernel.symbol in launch.kernel.text()
        self.seen[tactic.family] = self.seen.get(tactic.family, 0) + 1


@pytest.mark.parametrize("name", MODELS)
def test_kernels_are_written(name: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Watched()
    monkeypatch.setattr("planish.targets.cuda.target.cuda", lambda _: target)
    planish.build(
        data_dir / name,
        device="cuda:0",
        precision={"int8", "fp16"},
        calibration="dummy",
        inputs=MODELS[name],
        tuning_seconds=0,
        progress=False,
    )
    assert len(target.seen) >= 5, target.seen
