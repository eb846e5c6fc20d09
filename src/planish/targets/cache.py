"""The user's cache of machine code: a folder of object files, made by this user for this machine.

Code in it is run, so the folder must belong to the user and be closed to others; one that is not
is left alone. Its name holds everything that code depends on: the machine, the compiler's version
and the sources of the generators.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from functools import cache
from pathlib import Path

import planish.targets

log = logging.getLogger("planish")


def cache_root() -> Path:
    """The user's cache folder for Planish; ``PLANISH_CACHE`` overrides it."""
    chosen = os.environ.get("PLANISH_CACHE")
    if chosen:
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("planish"))


class KernelCache:
    """Object code by symbol, on disk where that is possible, always in memory.

    Parameters
    ----------
    version : str
        Everything that code depends on beside the kernel: the machine, and `generator_version`.
    """

    def __init__(self, version: str) -> None:
        self._memory: dict[str, bytes] = {}
        self._warned = False
        self._folder = self._open(cache_root() / "kernels" / _folder_name(version))

    @staticmethod
    def _open(folder: Path) -> Path | None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            info = folder.stat()
            if info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o022:
                log.warning("kernel cache %s can be written by others and is not used", folder)
                return None
        except OSError as error:
            log.warning("kernel cache %s is not used: %s", folder, error.strerror or error)
            return None
        return folder

    def get(self, symbol: str) -> bytes | None:
        """The object code of a kernel, if it was compiled before."""
        code = self._memory.get(symbol)
        if code is None and self._folder:
            try:
                code = _checked((self._folder / f"{symbol}.o").read_bytes())
            except OSError:
                return None
            if code is not None:
                self._memory[symbol] = code
        return code

    def put(self, symbol: str, code: bytes) -> None:
        """Remembers object code; a full or read-only disk costs only the next process time."""
        self._memory[symbol] = code
        if not self._folder:
            return
        try:
            self._write(self._folder, f"{symbol}.o", code)
        except OSError as error:
            if not self._warned:  # one is enough
                log.warning(
                    "kernel cache %s cannot be written (%s): the next process compiles again what "
                    "this one has compiled",
                    self._folder,
                    error.strerror or error,
                )
                self._warned = True

    @staticmethod
    def _write(folder: Path, name: str, code: bytes) -> None:
        """Writes a file as a whole or not at all."""
        handle, temporary = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, folder / name)
        except BaseException:
            os.unlink(temporary)
            raise


def _checked(data: bytes) -> bytes | None:
    """The code behind its checksum; None if the file was cut short or damaged."""
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


@cache
def generator_version(target: str, compiler: str) -> str:
    """A digest of the sources of a target's kernel generators and of its compiler's version."""
    digest = hashlib.sha256(compiler.encode())
    folder = Path(planish.targets.__path__[0])
    for path in (*sorted(folder.glob("*.py")), *sorted((folder / target).rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _folder_name(version: str) -> str:
    return hashlib.sha256(version.encode()).hexdigest()[:24]
