"""The limit of open files, which the bench's processes raise as far as they may."""

from __future__ import annotations

import resource


def raise_file_limit() -> int:
    """Raises this process's limit of open files to the hard limit, which its children inherit; returns it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
