"""A CPU with tiles (AMX) on any machine: Bochs 3, which models Intel's Sapphire Rapids.

Each call of a kernel starts the emulated machine with an image of memory, and reads the image
back; that takes a second. `tests/amx/boot.S` is all that runs there besides. `PACKAGES` are those
of Debian 13, which has Bochs 3.0; Debian 12's knows no tiles. The environment variable
PLANISH_BOCHS names another program, and Bochs' own BXSHARE where its BIOS lies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from planish.targets.cpu.machine import Machine

PACKAGES = ("bochs", "bochsbios", "vgabios", "binutils")
BOOT = Path(__file__).parents[1] / "amx" / "boot.S"

IMAGE_AT, IMAGE_SIZE = 0x1000000, 4 << 20
HEADER = 64
FLOPPY = 1440 << 10
ATTEMPTS, SECONDS = 3, 30

CONFIGURATION = """
cpu: model=sapphire_rapids, ips=100000000, reset_on_triple_fault=0
romimage: file=$BXSHARE/BIOS-bochs-latest
vgaromimage: file=$BXSHARE/VGABIOS-lgpl-latest
memory: guest=64, host=64
display_library: rfb, options="timeout=0"
floppya: 1_44={folder}/floppy, status=inserted
boot: floppy
optramimage1: file={folder}/image, address={address:#x}
port_e9_hack: enabled=1
clock: sync=none
sound: waveoutdrv=dummy
panic: action=fatal
log: {folder}/log
"""

SCRIPT = """
memset = {memset:#x};
SECTIONS {{
  . = {address:#x};
  .all : {{ *(.text* .ltext* .rodata* .lrodata*) }}
  /DISCARD/ : {{ *(.eh_frame* .comment* .note*) }}
}}
"""


PROGRAM = os.environ.get("PLANISH_BOCHS", "bochs")


@cache
def missing() -> str:
    """Why nothing can be emulated here; empty where it can."""
    lacking = [tool for tool in (PROGRAM, "as", "ld", "nm", "objcopy") if not shutil.which(tool)]
    if lacking:
        return f"no {', '.join(lacking)}: Debian 13's packages {' '.join(PACKAGES)}"
    models = subprocess.run([PROGRAM, "--help", "cpu"], capture_output=True, text=True)
    known = "sapphire_rapids" in models.stdout + models.stderr
    return "" if known else "this Bochs is older than 3.0 and knows no tiles"


class Bochs:
    """Where kernels for AMX run; see `planish.targets.cpu.run.Processor`."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="planish-amx-")
        self._path = Path(self._folder.name)
        self._image = np.zeros(IMAGE_SIZE, np.uint8)
        self._used = HEADER
        boot, floppy = self._path / "boot.o", self._path / "floppy"
        _run("as", str(BOOT), "-o", str(boot))
        _run("ld", "-Ttext=0x7c00", "-e", "start", str(boot), "-o", str(self._path / "boot"))
        _run("objcopy", "-O", "binary", str(self._path / "boot"), str(floppy))
        with floppy.open("r+b") as file:
            file.truncate(FLOPPY)
        self._memset = _symbols(self._path / "boot")["memset"]
        settings = CONFIGURATION.format(folder=self._path, address=IMAGE_AT)
        (self._path / "bochsrc").write_text(settings)
        (self._path / "start").write_text("continue\n")

    def memory(self, size: int) -> tuple[np.ndarray, int]:
        """Bytes of the image, where code and data of one tactic find room."""
        start = self._used
        self._used += -(-max(size, 1) // 64) * 64 + 64
        assert self._used <= IMAGE_SIZE, "more memory than there is"
        return self._image[start : start + size], IMAGE_AT + start

    def load(self, objects: dict[str, bytes], _machine: Machine) -> dict[str, int]:
        """Links object files where there is room."""
        paths = []
        for i, code in enumerate(objects.values()):
            paths.append(self._path / f"object{i}.o")
            paths[-1].write_bytes(code)
        _, address = self.memory(0)
        linked, flat = self._path / "linked", self._path / "flat"
        script = self._path / "script"
        script.write_text(SCRIPT.format(address=address, memset=self._memset))
        options = ["--no-warn-rwx-segments", "-e", "0", "-T", str(script)]
        _run("ld", *options, *map(str, paths), "-o", str(linked))
        _run("objcopy", "-O", "binary", str(linked), str(flat))
        code = np.fromfile(flat, np.uint8)
        self.memory(len(code))
        start = address - IMAGE_AT
        self._image[start : start + len(code)] = code
        symbols = _symbols(linked)
        return {name: symbols[name] for name in objects}

    def forget(self) -> None:
        """Makes room: nothing of before is there any more."""
        self._used = HEADER

    def call(
        self,
        function: int,
        pointers: Sequence[int],
        params: Sequence[int],
        begin: int,
        end: int,
        scratch: int,
    ) -> None:
        """Starts the machine, which calls a kernel and ends."""
        tables = []
        for numbers in (pointers, params):
            array, address = self.memory(8 * len(numbers))
            array.view(np.int64)[...] = np.array(numbers, np.int64)
            tables.append(address)
        header = [function, *tables, begin, end, scratch, self._used]
        self._image.view(np.int64)[: len(header)] = header
        self._image[: self._used].tofile(self._path / "image")
        options = ["-q", "-f", str(self._path / "bochsrc"), "-rc", str(self._path / "start")]
        written = _started([PROGRAM, *options])
        found = written.find(self._image[:HEADER].tobytes())
        result = np.frombuffer(written, np.uint8)[found : found + self._used]
        if found < 0 or len(result) < self._used:
            log = (self._path / "log").read_text(errors="replace")
            raise AssertionError(f"the kernel did not return:\n{log[-4000:]}")
        self._image[: self._used] = result


def _started(command: Sequence[str]) -> bytes:
    """What Bochs writes; seldom it hangs before it has begun."""
    environment = {"BXSHARE": "/usr/share/bochs", **os.environ}
    for _ in range(ATTEMPTS):
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                env=environment,
            ).stdout
    raise AssertionError(f"{ATTEMPTS} times Bochs did not end within {SECONDS} seconds")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def _symbols(linked: Path) -> dict[str, int]:
    lines = map(str.split, _run("nm", str(linked)).splitlines())
    return {name: int(address, 16) for address, _, name in lines}
