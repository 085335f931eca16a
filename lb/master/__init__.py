"""The master: the process that binds, forks, supervises and reloads."""

from lb.master.master import Master

__all__ = ["Master"]
