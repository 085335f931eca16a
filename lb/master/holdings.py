"""What a running instance holds and another process might: pid file, addresses, command socket."""

from __future__ import annotations

import pathlib
import socket

from lb.master import command
from lb.master.deployment import DeployError, Deployment
from lb.master.failures import StartError
from lb.master.listeners import Listeners
from lb.master.pidfile import PidFile
from lb.master.plan import Plan


class Holdings:
    """Takes everything before anything is forked, or takes nothing and raises `StartError`."""

    def __init__(self, path: pathlib.Path, plan: Plan) -> None:
        """`path` is the configuration file, absolute; `plan` what it says."""
        self.listeners = Listeners()
        self._pid_file: PidFile | None = None
        pid_file = plan.config.process.pid_file
        pid_path = None if pid_file is None else plan.config.resolve(pid_file)
        try:
            if pid_path is not None:
                self._pid_file = PidFile(pid_path)
            slots = tuple(range(plan.workers))
            self.listeners.commit(self.listeners.stage(list(plan.listener_names), slots))
            self.deployment = _deploy(plan)
            self.command_path, self.command_socket = _command(path, pid_path, self.deployment)
        except StartError:
            self.release()
            raise

    def release(self) -> None:
        """Gives back what is the instance's alone; the rest ends with the process."""
        self.listeners.close()
        if self._pid_file is not None:
            self._pid_file.close()
            self._pid_file = None


def _deploy(plan: Plan) -> Deployment:
    try:
        return Deployment(plan)
    except DeployError as error:
        raise StartError(str(error)) from error


def _command(
    path: pathlib.Path, pid_path: pathlib.Path | None, deployment: Deployment
) -> tuple[pathlib.Path, socket.socket]:
    try:
        return command.open_socket(path, pid_path)
    except StartError:
        deployment.close()
        raise
