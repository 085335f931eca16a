"""What a running instance holds and another process might: pid file, addresses, command socket,
and the control process's."""

from __future__ import annotations

import pathlib
import socket

from lb.master import command, places
from lb.master.deployment import DeployError, Deployment
from lb.master.failures import StartError
from lb.master.listeners import Listeners
from lb.master.pidfile import PidFile
from lb.master.plan import Plan
from lb.master.services import Services, open_services


class Holdings:
    """Takes everything before anything is forked, or takes nothing and raises `StartError`."""

    def __init__(self, path: pathlib.Path, plan: Plan) -> None:
        """`path` is the configuration file, absolute; `plan` what it says."""
        self.listeners = Listeners()
        self.services = Services(None, None)
        self._pid_file: PidFile | None = None
        pid_file = plan.config.process.pid_file
        pid_path = None if pid_file is None else plan.config.resolve(pid_file)
        try:
            if pid_path is not None:
                self._pid_file = PidFile(pid_path)
            slots = tuple(range(plan.workers))
            self.listeners.commit(self.listeners.stage(list(plan.listener_names), slots))
            self.command_path, self.command_socket = command.open_socket(path, pid_path)
            self._open_rest(plan)
        except StartError:
            self.release()
            raise

    @classmethod
    def inherited(
        cls,
        listeners: Listeners,
        services: Services,
        pid_file: PidFile | None,
        command: tuple[pathlib.Path, socket.socket],
        deployment: Deployment,
    ) -> Holdings:
        """What this very process held before it executed itself anew."""
        holdings = cls.__new__(cls)
        holdings.listeners = listeners
        holdings.services = services
        holdings._pid_file = pid_file
        holdings.command_path, holdings.command_socket = command
        holdings.deployment = deployment
        return holdings

    @property
    def pid_file(self) -> PidFile | None:
        """Where the configuration asks for one."""
        return self._pid_file

    def _open_rest(self, plan: Plan) -> None:
        try:
            admin = plan.config.admin_address(f"unix:{places.admin_beside(self.command_path)}")
            self.services = open_services(plan.control.metrics, admin)
            self.deployment = _deploy(plan.with_admin(admin))
        except StartError:
            self.command_socket.close()
            self.command_path.unlink(missing_ok=True)
            raise

    def release(self) -> None:
        """Gives back what is the instance's alone; the rest ends with the process."""
        self.listeners.close()
        self.services.close()
        self.services = Services(None, None)
        if self._pid_file is not None:
            self._pid_file.close()
            self._pid_file = None


def _deploy(plan: Plan) -> Deployment:
    try:
        return Deployment(plan)
    except DeployError as error:
        raise StartError(str(error)) from error
