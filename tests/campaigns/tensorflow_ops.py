"""Many random cases of each TensorFlow op by TensorFlow and by Planish: tells what differs.

    python tests/campaigns/tensorflow_ops.py --seeds 20
    python tests/campaigns/tensorflow_ops.py --ops StridedSlice,Roll --seeds 200
    python tests/campaigns/tensorflow_ops.py --ops Einsum --first 17 --seeds 1   # that case again

Each line of the result names the op, the seed and the case, so that it can be repeated.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def main() -> int:
    """Runs the campaign that the command line asks for; 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="cases of each op")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--ops", default="", help="comma list; default: all")
    parser.add_argument("--traceback", action="store_true", help="show where errors come from")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PLANISH_CACHE", folder)
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from helpers.tensorflow_ops.run import Refused, run_case
    from helpers.tensorflow_ops.table import TABLE, case_of

    wanted = [op for op in arguments.ops.split(",") if op] or sorted(TABLE)
    failures: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    total, start = 0, time.monotonic()
    for op in wanted:
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            case, total = None, total + 1
            try:
                case = case_of(op, seed)
                run_case(case)
            except Refused as error:
                refused[op] += 1
                if arguments.traceback:
                    said = getattr(error.__cause__, "message", str(error.__cause__))
                    print(f"{op} seed {seed}: {case}\n    refused: ...{said[-250:]}")
            except Exception as error:
                failures[op] += 1
                message = " | ".join(str(error).strip().splitlines()[:4])[:400]
                print(
                    f"{op} seed {seed}: {case}\n    {type(error).__name__}: {message}", flush=True
                )
                if arguments.traceback:
                    traceback.print_exc()
    print(f"{total} cases of {len(wanted)} ops in {time.monotonic() - start:.0f} s")
    for op, count in failures.most_common():
        print(f"  {op}: {count} of {arguments.seeds} failed")
    for op, count in refused.most_common():
        print(f"  {op}: TensorFlow refuses {count} of {arguments.seeds}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
