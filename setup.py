"""Builds the two C libraries of Planish; everything else about the package is in pyproject.toml."""

import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread"]
SOURCES = ("module", "program", "executor", "pool", "counting", "engine")
# Free-threaded Pythons have no stable ABI to restrict ourselves to.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")
PLAIN_LIBRARIES = {"planish._tf_engine"}

EXTENSIONS = [
    Extension(
        "planish._native",
        [f"native/{name}.c" for name in SOURCES],
        depends=["native/planish.h", "native/internal.h"],
        define_macros=[("Py_LIMITED_API", "0x030A0000")] if STABLE_ABI else [],
        py_limited_api=STABLE_ABI,
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
    ),
    # TensorFlow's symbols stay undefined until tensorflow.load_op_library loads the file.
    Extension(
        "planish._tf_engine",
        ["native/tensorflow_op.c"],
        depends=["native/planish.h"],
        extra_compile_args=FLAGS,
    ),
]


class BuildNative(build_ext):
    """Builds the libraries, or says in one sentence why they cannot be built."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname in PLAIN_LIBRARIES or f"planish.{fullname}" in PLAIN_LIBRARIES:
            return fullname.replace(".", "/") + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        if not sys.platform.startswith("linux"):
            raise SystemExit("Planish runs on Linux only: its thread pool is built on futexes.")
        super().run()

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            raise SystemExit(
                f"Planish needs a working C compiler and Python's headers to build {ext.name}: "
                f"install gcc (Debian: apt install build-essential python3-dev) and try again "
                f"({error})."
            ) from None


setup(
    ext_modules=EXTENSIONS,
    cmdclass={"build_ext": BuildNative},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if STABLE_ABI else {},
)
