"""Metrics and probes for monitoring."""

from lb.metrics.app import metrics_app

__all__ = ["metrics_app"]
