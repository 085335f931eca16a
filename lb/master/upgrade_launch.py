"""How this process was started, so that it can be started again: the interpreter and the script are looked
for anew each time, and symbolic links are left to the kernel, so what is installed by then is what runs."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Final, Literal, NamedTuple, NoReturn

# Tells a process that it is a trial or a successor. It is set for one execve alone, and taken out of the
# environment before anything else is started.
VARIABLE: Final = "LB_UPGRADE"


class LaunchError(Exception):
    """What was started can't be found any more, or can't be executed; `str()` says what and why."""


class Order(NamedTuple):
    """What `VARIABLE` says: be a trial, or take over. `state` is the descriptor of the packed state, `report`
    that of the pipe that a trial writes its report to."""

    kind: Literal["trial", "resume"]
    state: int
    report: int = -1

    def __str__(self) -> str:
        return f"{self.kind}:{self.state}:{self.report}"


def take_order(environment: MutableMapping[str, str]) -> Order | None:
    """The order in `environment`, which has it no longer then; `None` for a plain start.

    Raises `LaunchError` where it is no order.
    """
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    kind, _, numbers = text.partition(":")
    state, _, report = numbers.partition(":")
    try:
        if kind == "trial":
            return Order("trial", int(state), int(report))
        if kind == "resume":
            return Order("resume", int(state))
    except ValueError:
        pass
    raise LaunchError(f"${VARIABLE} is set to {text!r}: it is lb's own, unset it")


class Launch(NamedTuple):
    """A command line, and where it was given."""

    program: tuple[str, ...]  # the interpreter, its options, and the rest
    script: str  # as it was given; empty where a module was
    arguments: tuple[str, ...]
    folder: str  # as the shell calls it: a link on the way to it may have another target by now

    @classmethod
    def of_this_process(cls) -> Launch:
        """How this process was started; to be called before it changes its folder."""
        return cls(
            program=tuple(sys.orig_argv),
            script=sys.argv[0] if sys.argv[0] in sys.orig_argv else "",
            arguments=tuple(sys.argv[1:]),
            folder=_folder(),
        )

    def command(self) -> tuple[str, list[str]]:
        """The file to execute now, and its arguments. Raises `LaunchError`."""
        script = os.path.join(self.folder, self.script)
        if self.script and _runs_itself(script):
            return script, [script, *self.arguments]
        if self.script and not os.path.exists(script):
            raise LaunchError(f"{script} is not there any more")
        name = self.program[0]
        if os.sep in name:
            return os.path.join(self.folder, name), list(self.program)
        found = shutil.which(name)
        if found is None:
            raise LaunchError(f"{name} is not in $PATH any more")
        return found, list(self.program)

    def execute(self, order: Order, descriptors: Iterable[int]) -> NoReturn:
        """Becomes what is installed now, with `order` and `descriptors`, which are closed with everything
        else otherwise. Raises `LaunchError`; everything is as it was then."""
        path, arguments = self.command()
        environment = {**os.environ, VARIABLE: str(order)}
        try:
            with _inherited(descriptors), _in_folder(self.folder):
                os.execve(path, arguments, environment)
        except OSError as error:
            raise LaunchError(f"{path} can't be executed: {_why(path, error)}") from error


def _folder() -> str:
    """The current folder, by the name that the shell has for it, where that is true."""
    actual = os.getcwd()
    named = os.environ.get("PWD", "")
    try:
        return named if os.path.isabs(named) and os.path.samefile(named, actual) else actual
    except OSError:
        return actual


def _why(path: str, error: OSError) -> str:
    """The reason, with the file that is meant where that is not `path`."""
    if error.filename != path:
        return f"{error.filename}, where lb was started: {error.strerror or error}"
    if error.errno == errno.ENOENT and _runs_itself(path):
        return "the interpreter that its first line names is not there"
    return error.strerror or str(error)


def _runs_itself(script: str) -> bool:
    """Whether the kernel can run `script`, which says by what (execve(2), interpreter scripts)."""
    try:
        with open(script, "rb") as file:
            return file.read(2) == b"#!" and os.access(script, os.X_OK)
    except OSError:
        return False


@contextmanager
def _inherited(descriptors: Iterable[int]) -> Iterator[None]:
    changed: list[int] = []
    try:
        for fd in descriptors:
            os.set_inheritable(fd, True)
            changed.append(fd)
        yield
    finally:
        for fd in changed:
            os.set_inheritable(fd, False)


@contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # it may have no name any more
    try:
        os.chdir(folder)
        try:
            yield
        finally:
            os.fchdir(before)
    finally:
        os.close(before)
