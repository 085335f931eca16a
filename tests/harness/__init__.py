"""What the scenario and interop tests stand on: the real `lb`, raw clients and scriptable servers."""

from tests.harness.balancer import LoadBalancer
from tests.harness.client import RawClient, Response, fetch, open_clients
from tests.harness.upstream import Connection, Upstream, reply
from tests.harness.waiting import eventually

__all__ = [
    "Connection",
    "LoadBalancer",
    "RawClient",
    "Response",
    "Upstream",
    "eventually",
    "fetch",
    "open_clients",
    "reply",
]
