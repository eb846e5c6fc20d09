"""The handle on a peer's process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.errors import PlanishError

if TYPE_CHECKING:
    import numpy as np

_WORKER = Path(__file__).with_name("worker.py")


class PeerError(PlanishError):
    """A peer cannot be used: it is not installed, or cannot run this model."""


class PeerProcess:
    """One peer in a process of its own; a context manager that ends it.

    Parameters
    ----------
    name : str
        A key of `worker.PEERS`.
    python : str, optional
        The Python that has the peer; None: this one.
    threads : int
        Also what numerical libraries are told by environment variables.
    """

    def __init__(self, name: str, *, python: str | None = None, threads: int = 1) -> None:
        self.name, self.python = name, python or sys.executable
        self.version = ""
        self._folder = tempfile.TemporaryDirectory(prefix="planish-")
        self._errors = (Path(self._folder.name) / "stderr").open("w+b")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        if python is None:
            import planish

            here = str(Path(planish.__file__).parent.parent)
            paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            self._process = subprocess.Popen(
                [self.python, str(_WORKER), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            self._clean()
            raise PeerError(
                f"{name} cannot be started",
                where=self.python,
                why=error.strerror or str(error),
                cure=f"pass --python-for {name}=/path/to/python",
            ) from error

    def open(
        self, model: str, kind: str, inputs: Sequence[str], outputs: Sequence[str], threads: int
    ) -> None:
        """Opens a model in the peer.

        Raises
        ------
        PeerError
            The peer is not installed there, or cannot read the model.
        """
        request = {"model": model, "kind": kind, "inputs": list(inputs), "outputs": list(outputs)}
        self.version = self._ask("open", threads=threads, **request)["version"]

    def feed(self, arrays: Sequence[np.ndarray]) -> None:
        """Gives the peer its inputs, in the order in which they were named."""
        import numpy as np

        file = str(Path(self._folder.name) / "inputs.npz")
        np.savez(file, *arrays)
        self._ask("feed", file=file)

    def run(self) -> list[np.ndarray]:
        """One execution: the outputs, in the order in which they were named."""
        import numpy as np

        file = str(Path(self._folder.name) / "outputs.npz")
        self._ask("run", file=file)
        with np.load(file, allow_pickle=False) as arrays:
            return [arrays[f"arr_{i}"] for i in range(len(arrays.files))]

    def measure(self, seconds: float, least: int = 3) -> list[float]:
        """The milliseconds of executions one after the other, for so long, at least so many."""
        return self._ask("measure", seconds=seconds, least=least)["milliseconds"]

    def _ask(self, do: str, **details: Any) -> Mapping[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise PeerError(
                f"The process of {self.name} ended",
                where=self.python,
                why=self._last_words() or f"exit code {self._process.poll()}",
            )
        reply = json.loads(line)
        if "error" not in reply:
            return reply
        if reply["missing"]:
            raise PeerError(
                f"{self.name} is not installed",
                where=self.python,
                why=reply["error"],
                cure=f"pip install {reply['missing'].split('.')[0]}, or name a Python that has it: "
                f"--python-for {self.name}=/path/to/python",
            )
        raise PeerError(f"{self.name} cannot do this: {do}", where=self.python, why=reply["error"])

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-1000:]

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # OpenVINO forks processes of its own, which outlive it; they are in the peer's session
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdout:
            self._process.stdout.close()
        self._clean()

    def _clean(self) -> None:
        self._errors.close()
        self._folder.cleanup()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
