"""Loads a plan in a fresh process and calls it: `gpu_one.py` starts it.

    python benchmarks/gpu_load.py PLAN INPUTS.npz DEVICE

Prints one line of JSON: seconds of the import, of opening the device, of loading, of the first and
a later call, and megabytes of device memory.
"""

import json
import sys
import time

start = time.perf_counter()

import numpy as np  # noqa: E402

import planish  # noqa: E402


def free(engine_device: str) -> float:
    """Megabytes of free device memory; 0 on the CPU. Makes the device ready where it is not."""
    from planish.targets.devices import find_target

    gpu = getattr(find_target(engine_device), "gpu", None)
    return 0.0 if gpu is None else gpu.memory_info()[0] / 1e6


def main() -> None:
    """Loads, calls, prints."""
    imported = time.perf_counter()
    plan, inputs, device = sys.argv[1:]
    arrays = dict(np.load(inputs))
    begin = time.perf_counter()
    before = free(device)
    ready = time.perf_counter()
    engine = planish.load(plan, device=device)
    loaded = time.perf_counter()
    engine(arrays)
    first = time.perf_counter()
    engine(arrays)
    second = time.perf_counter()
    known = {
        "import_seconds": imported - start,
        "device_seconds": ready - begin,
        "load_seconds": loaded - ready,
        "first_call_seconds": first - loaded,
        "second_call_seconds": second - first,
        "megabytes": before - free(device),
    }
    print(json.dumps(known))


main()
