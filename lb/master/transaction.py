"""What a reload has built and nobody serves yet."""

from __future__ import annotations

from lb.master.deployment import Deployment
from lb.master.listeners import Listeners, Staged
from lb.master.plan import Plan


class Transaction:
    """The descriptors of the next configuration, its sockets (bound, the new ones not listened on), the
    slots that shall serve it, and what it changes, one line each."""

    __slots__ = ("active", "changes", "deployment", "staged")

    def __init__(
        self, deployment: Deployment, staged: Staged, active: tuple[int, ...], changes: tuple[str, ...]
    ) -> None:
        self.deployment = deployment
        self.staged = staged
        self.active = active
        self.changes = changes

    @classmethod
    def stage(
        cls, plan: Plan, active: tuple[int, ...], changes: tuple[str, ...], listeners: Listeners
    ) -> Transaction:
        """Binds and opens everything for `plan`. Raises `BindError` or `DeployError`; nothing is left
        bound or open then."""
        staged = listeners.stage(list(plan.listener_names), active)
        try:
            deployment = Deployment(plan)
        except BaseException:
            listeners.abort(staged)
            raise
        return cls(deployment, staged, active, changes)

    def drop(self, listeners: Listeners) -> None:
        """Gives everything back: it is not committed."""
        listeners.abort(self.staged)
        self.deployment.close()
