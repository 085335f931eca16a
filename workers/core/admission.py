"""How many handshakes a worker may let through: a token bucket, and a worker's share of a total.

The total is divided without anybody who divides: each worker publishes how many wait with it and reads what
the others published, all once a tick. Whoever has more waiting gets more of the rate.

All shares together never exceed the whole, though no two workers read at the same time. A worker's own
demand is the *lower* of its last two published figures, while it counts the others by what it reads; and
what it reads of another one, at any time since that one's last tick but one, is at least what that one goes
by itself. So every worker divides by a sum that is no smaller than that of the demands in force.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

MAX_RETRY_AFTER: Final = 300  # seconds
# The queue is to be empty when the last one's patience ends; so much longer it may take, in seconds.
MARGIN: Final = 2.0


class Bucket:
    """A token bucket on a clock that the caller reads (monotonic seconds). It starts empty."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, now: float) -> None:
        self._rate = 0.0
        self._burst = 0.0
        self._tokens = 0.0
        self._at = now

    def fit(self, rate: float, burst: float, now: float) -> None:
        """Goes on with `rate` tokens a second and at most `burst` of them; those beyond are gone."""
        self._fill(now)
        self._rate = rate
        self._burst = burst
        self._tokens = min(self._tokens, burst)

    def run_dry(self, now: float) -> None:
        """No more tokens come until the next `fit`; those that are there may be taken."""
        self._fill(now)
        self._rate = 0.0

    def fill_up(self) -> None:
        """Gives it all tokens that it holds: what a start may let through at once."""
        self._tokens = self._burst

    def take(self, now: float) -> bool:
        """Takes a token; `False` where there is none."""
        self._fill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def wait(self) -> float:
        """Seconds from the last call with a time until there is a token."""
        if self._tokens >= 1.0:
            return 0.0
        return (1.0 - self._tokens) / self._rate if self._rate else math.inf

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now


class Share:
    """A worker's share of totals that hold for all. `look` once a tick, and publish `waiting` before it."""

    __slots__ = ("_leaving", "_others", "_published", "_waiting", "part")

    def __init__(self) -> None:
        self._leaving = False
        self._published = 0
        self._waiting = 0  # the lower of the last two that were published
        self._others: tuple[int, ...] = ()
        self.part = 1.0  # of the rate and the burst; above 0, but for one that leaves

    def look(self, waiting: int, others: Collection[int]) -> None:
        """Takes in how many wait here (as published now) and with each of the other workers."""
        self._waiting = min(waiting, self._published)
        self._published = waiting
        self._others = tuple(others)
        self._divide()

    def leave(self) -> None:
        """This worker is leaving. The others count it for as long as it publishes that some wait, so without
        them it has no part."""
        self._leaving = True
        self._divide()

    def _divide(self) -> None:
        if self._leaving and not self._waiting:
            self.part = 0.0
            return
        own = self._waiting + 1
        self.part = own / (own + sum(self._others) + len(self._others))

    @property
    def workers(self) -> int:
        """Workers that share, this one included."""
        return len(self._others) + 1

    @property
    def elsewhere(self) -> int:
        """How many wait with other workers."""
        return sum(self._others)

    def room(self, places: int) -> int:
        """How many may wait here until the next `look`, if `places` is the total: those that have waited for
        two looks, and an equal part of the places that are free but for them. (What came since the last look
        but one the others have not seen yet, so it is taken from this worker's part.) Rounded up, so that a
        queue shorter than the number of workers has a place with each."""
        free = max(0, places - self._waiting - self.elsewhere)
        return self._waiting + -(-free // self.workers)

    def keep(self, waiting: int, places: int) -> int:
        """How many of those that wait here may stay where `places` is the total from now on."""
        total = waiting + self.elsewhere
        return waiting if total <= places else -(-places * waiting // total)


def burst_share(burst: int, part: float) -> float:
    """The tokens that a worker may hold. At least one: with less it could never let anybody through, so a
    burst below the number of workers is that number."""
    return max(1.0, burst * part)


def patience(rate: float, queue: int) -> float:
    """Seconds that a handshake may wait: until even the last place of a full queue had its turn."""
    return queue / rate + MARGIN


def retry_after(waiting: int, rate: float, chance: float) -> int:
    """Seconds for Retry-After (RFC 9110 section 10.2.3): until those who wait will be through, and up to half
    as long again by `chance` (0 to below 1), so that those who were refused together do not return
    together."""
    drained = min(MAX_RETRY_AFTER, max(1, math.ceil(waiting / rate)))
    return drained + int(max(2.0, drained / 2) * chance)
