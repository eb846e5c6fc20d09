"""Times all tactics of attention on a GPU, each checked: Triton's, cuDNN's and those in PTX.

    python benchmarks/gpu_attention.py [--rounds 3] [--json FILE] [--only NAME] [--list]

q, k and v have the strides of parts of one projection, as in BERT. ``--list`` says what would be
run, without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers.attentions import Form, attention, attention_task
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding, Layout
from planish.targets.cuda.kernels import cudnn_attention
from planish.targets.cuda.kernels.attention import AttentionFamily
from planish.targets.cuda.kernels.ptx.attention.tactics import ShortAttentionFamily
from planish.targets.cuda.machine import H200

F16, BF16 = DType.FLOAT16, DType.BFLOAT16
BERT = dict(batch=128, heads=12, queries=128, keys=128, size=64)
CASES: dict[str, tuple[Form, DType, dict[str, int]]] = {
    "BERT-base, 128, no mask": (Form(), F16, BERT),
    "BERT-base, 128, mask of keys in float32": (Form(mask="keys", wide=True), F16, BERT),
    "BERT-base, 128, BF16": (Form(), BF16, BERT),
    "BERT-base, 8": (Form(), F16, {**BERT, "batch": 8}),
    "BERT-base, 1": (Form(), F16, {**BERT, "batch": 1}),
    "ViT-B/16, 128": (Form(), F16, {**BERT, "queries": 197, "keys": 197}),
    "MiniLM, 128": (Form(), F16, {**BERT, "size": 32}),
}


def case(form: Form, dtype: DType, sizes: dict[str, int]) -> tuple[Task, Binding]:
    """The task, with q, k and v as parts of one projection."""
    task = attention_task(attention(form, dtype=dtype, **sizes))
    layouts = {}
    for value in task.inputs:
        shape = value.type.bind({})
        if value.name in ("q", "k", "v"):
            _, length, heads, size = shape
            width = 3 * heads * size
            layouts[value] = Layout(shape, (length * width, width, size, 1))
    return task, Binding({}, layouts)


def main() -> None:
    """Measures all cases, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    options = parser.parse_args()
    machine, target = H200, None
    if not options.list:
        from planish.targets.devices import find_target

        target = find_target("cuda:0")
        machine = target.machine
    families = [AttentionFamily(machine), ShortAttentionFamily(machine)]
    families += [f.on(machine) for f in cudnn_attention.FAMILIES]
    known: dict[str, dict[str, list[Any]]] = {}
    for name, (form, dtype, sizes) in CASES.items():
        if not name.startswith(options.only):
            continue
        task, binding = case(form, dtype, sizes)
        tactics = [t for f in families for t in f.tactics(task, binding) if t.accepts(binding)]
        rows = sizes["batch"] * sizes["heads"] * (sizes["queries"] + sizes["keys"])
        moved = 2 * 2 * rows * sizes["size"]
        print(f"\n{name}: {moved / 1e6:.1f} MB, {moved / 4.3e6:.1f} us at 4.3 TB/s", flush=True)
        times = known[name] = {}
        if target is None:
            print("\n".join(f"  {t.family} {t.parameters}" for t in tactics))
            continue
        from planish.tuning.measure import Bench

        launches = [launch for t in tactics for launch in t.launches(binding)]
        target.prepare([launch.kernel for launch in launches])
        bench = Bench(task, binding, target, 1)
        for _ in range(options.rounds):  # in turns
            for tactic in tactics:
                label = f"{tactic.family} {tactic.parameters}"
                try:
                    found = bench.measure(tactic)
                    result = found.wrong or 1e6 * found.seconds
                except Exception as error:  # the next one is measured nevertheless
                    result = f"{type(error).__name__}: {str(error)[:200]}"
                times.setdefault(label, []).append(result)
        for label, results in sorted(times.items(), key=lambda item: best(item[1])):
            least = best(results)
            words = [r for r in results if isinstance(r, str)]
            speed = f"{moved / least / 1e6:.2f} TB/s" if least < 1e9 else ""
            print(f"  {least:9.2f} us  {speed:10}  {label}  {words[:1] or ''}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(known, file, indent=1)


def best(results: list[float | str]) -> float:
    """The least of the times; what went wrong is text."""
    return min((r for r in results if not isinstance(r, str)), default=1e9)


if __name__ == "__main__":
    main()
