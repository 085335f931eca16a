"""When a row of checks changes the mind about a server: a state machine without clock or sockets."""

from __future__ import annotations

from workers.contract.cells import CheckResult, Health


class Verdict:
    """What the checks of one server say so far.

    A server that was not checked yet is judged by its first check, whichever way that goes: HAProxy starts a
    server as one that falls at its first failure, and Envoy takes the first answer of a new host as it is.
    Whoever waited for `fall` checks would send requests to a dead server all that time, and whoever waited
    for `rise` would leave a good one idle. From then on `fall` failures in a row take it down, and `rise`
    good checks in a row bring it back; a check that says what is known already starts the row anew, so that
    a server which flaps stays where it is.
    """

    __slots__ = ("_against", "_fall", "_rise", "health")

    def __init__(self, fall: int, rise: int, health: Health = Health.UNKNOWN) -> None:
        """`health` is what was known before: of a server whose checks a reload changed, or the former
        control process made."""
        self.health = health
        self._fall = fall
        self._rise = rise
        self._against = 0  # checks in a row that speak against `health`

    def observe(self, result: CheckResult) -> Health | None:
        """Takes the next check. The new health where this flips the server, else `None`."""
        seen = Health.UP if result is CheckResult.OK else Health.DOWN
        if seen is self.health:
            self._against = 0
            return None
        self._against += 1
        if self._against < self._needed():
            return None
        self._against = 0
        self.health = seen
        return seen

    def _needed(self) -> int:
        match self.health:
            case Health.UP:
                return self._fall
            case Health.DOWN:
                return self._rise
        return 1
