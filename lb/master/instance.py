"""A running load balancer, as far as its status and its upgrade go."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

from lb.master.command import CommandServer
from lb.master.control_process import ControlKeeper
from lb.master.desk import Desk
from lb.master.fleet import Fleet
from lb.master.ground import Ground
from lb.master.notify import Notifier
from lb.master.reload import Reloader


class Instance(NamedTuple):
    """Its parts."""

    path: pathlib.Path  # of the configuration file
    version: str
    ground: Ground
    fleet: Fleet
    control: ControlKeeper
    reloader: Reloader
    desk: Desk
    command: CommandServer
    notifier: Notifier
