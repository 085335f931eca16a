"""`lb demo`: the load balancer over two servers of its own, to look at and to try things out on."""

from lb.demo.runner import run

__all__ = ["run"]
