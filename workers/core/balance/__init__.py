"""The balancing policies, one file each, and the ring for stickiness."""

from workers.core.balance.policy import Policy, build
from workers.core.balance.ring import StickyRing, hash_key

__all__ = ["Policy", "StickyRing", "build", "hash_key"]
