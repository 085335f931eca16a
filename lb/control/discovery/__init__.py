"""Servers that are found while the load balancer runs: host names by their TTL, SRV records, files.

`Discoverer` holds one `Source` for every name and file (`source`), which asks again and again; `hosts`,
`services` and `files` know how to ask, `picture` puts the answers together.
"""

from lb.control.discovery.discoverer import Discoverer

__all__ = ["Discoverer"]
