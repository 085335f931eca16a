"""Weights as short whole numbers, for the policies that spread them over a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

# A table never has more entries than this, or four per server where that is more.
TABLE_ENTRIES: Final = 2048


def shares(weights: Sequence[int]) -> list[int]:
    """`weights` (all positive) by their greatest common divisor, scaled down where their sum would still
    be over the bound of a table.

    Scaling rounds: with the bound of 2,048 entries a server's part of the traffic is off by at most
    1/4096 of the whole, and every server keeps at least one entry.
    """
    divisor = math.gcd(*weights)
    reduced = [weight // divisor for weight in weights]
    bound = max(TABLE_ENTRIES, 4 * len(weights))
    total = sum(reduced)
    if total <= bound:
        return reduced
    scaled = [max(1, round(weight * bound / total)) for weight in reduced]
    divisor = math.gcd(*scaled)
    return [weight // divisor for weight in scaled]
