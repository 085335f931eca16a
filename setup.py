"""Compiles what every connection, request and message passes, where a C compiler is there.

mypyc makes machine code of the very modules that run without it, too: there is no second source. An editable
install stays interpreted, so that what is edited is what runs (`make compiled` is for developers).

`LB_COMPILED=0` leaves it out; `LB_COMPILED=1` makes the build fail where it can't be done.
"""

import os
import pathlib
import sys
import sysconfig
import tempfile

from setuptools import Extension, setup
from setuptools.errors import CompileError, ExecError

from distutils.ccompiler import new_compiler  # isort: skip  (setuptools' own, once setuptools is imported)
from distutils.sysconfig import customize_compiler  # isort: skip

BUILDS = {"bdist_wheel", "build", "build_ext", "install"}  # not: editable_wheel, and questions about this
HOT = (
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
)


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
    """The hot modules as extensions; none where they stay interpreted."""
    wanted = os.environ.get("LB_COMPILED", "")
    if wanted == "0" or not BUILDS & {*sys.argv}:
        return []
    if wanted != "1" and not can_compile():
        print("no C compiler with Python's headers: lb will be interpreted", file=sys.stderr)
        return []
    from mypyc.build import mypycify

    return mypycify(list(HOT), opt_level="3")


setup(ext_modules=extensions())
