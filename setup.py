"""Compiles what every connection, request and message passes, where a C compiler is there.

mypyc makes machine code of the very modules that run without it, too (`HOT`). The innermost steps are
written in C besides (`NATIVE`); each has a twin in Python, which is what runs without it. Either all of it
is compiled or nothing. An editable install stays interpreted, so that what is edited is what runs (`make
compiled` is for developers).

`LB_COMPILED=0` leaves it out; `LB_COMPILED=1` makes the build fail where it can't be done.
"""

import os
import pathlib
import shutil
import sys
import sysconfig
import tempfile

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, CompileError, ExecError

from distutils.ccompiler import new_compiler  # isort: skip  (setuptools' own, once setuptools is imported)
from distutils.sysconfig import customize_compiler  # isort: skip

BUILDS = {"bdist_wheel", "build", "build_ext", "install"}  # not: editable_wheel, and questions about this
HOT = (
    "workers/contract/scoreboard.py",
    "workers/contract/series.py",
    "workers/core/forwarded.py",
    "workers/core/frames.py",
    "workers/core/framing.py",
    "workers/core/heads.py",
    "workers/core/responses.py",
    "workers/core/rewrite.py",
    "workers/core/routing.py",
    "workers/core/sticky.py",
    "workers/core/upgrade.py",
    "workers/core/wheel.py",
    "workers/io/downstream.py",
    "workers/io/endpoint.py",
    "workers/io/exchange.py",
    "workers/io/listening.py",
    "workers/io/pipe.py",
    "workers/io/plan.py",
    "workers/io/pool.py",
    "workers/io/reactor.py",
    "workers/io/request_side.py",
    "workers/io/response_side.py",
    "workers/io/server.py",
    "workers/io/tls.py",
    "workers/io/tls_client.py",
    "workers/io/tunnel.py",
    "workers/io/upstream.py",
    "workers/io/worker.py",
)
# The innermost steps (docs/performance.md says which, and why). Who changes one changes its twin in Python as
# well, which says what is right (CONTRIBUTING.md). MANIFEST.in names the file for source distributions.
NATIVE = Extension(
    "workers.contract._native",
    ["workers/contract/_native.c"],
    extra_compile_args=["-std=gnu11", "-O2", "-D_GNU_SOURCE"],
)
WANTED = os.environ.get("LB_COMPILED", "")


def can_compile() -> bool:
    """Whether there is a C compiler, with Python's headers."""
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "probe.c")
        source.write_text("#include <Python.h>\n")
        try:
            compiler.compile([str(source)], folder, include_dirs=[sysconfig.get_path("include")])
        except (CompileError, ExecError):
            return False
    return True


def extensions() -> list[Extension]:
    """The C module and the hot modules as extensions; none where all stays interpreted."""
    if not BUILDS & {*sys.argv}:
        return []
    # What an earlier build has left would be installed, and its modules come before the sources of now.
    for former in pathlib.Path("build").glob("lib*"):
        shutil.rmtree(former)
    if WANTED == "0":
        return []
    if WANTED != "1" and not can_compile():
        _stays_interpreted("there is no C compiler with Python's headers")
        return []
    from mypyc.build import mypycify

    try:
        modules = mypycify(list(HOT), opt_level="3", group_name="workers.hot")
    except SystemExit:  # which has said why
        if WANTED == "1":
            raise
        _stays_interpreted("mypyc can't translate it")
        return []
    for module in modules:
        # What another compiler warns of is no reason to do without.
        module.extra_compile_args = [option for option in module.extra_compile_args if option != "-Werror"]
    return [NATIVE, *modules]  # what takes seconds before what takes a minute


class BuildExtensions(build_ext):
    """Compiles all of the modules, or leaves all of them interpreted."""

    def run(self) -> None:
        try:
            super().run()
        except CCompilerError as error:
            if WANTED == "1":
                raise
            for module in self.extensions:
                pathlib.Path(self.get_ext_fullpath(module.name)).unlink(missing_ok=True)
            self.extensions.clear()
            _stays_interpreted(str(error))


def _stays_interpreted(reason: str) -> None:
    print(f"lb will be interpreted, and take more CPU time: {reason}", file=sys.stderr)


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
