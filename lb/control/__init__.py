"""The control process: health checks, discovery, metrics, admin API and dashboard; never on the way of a
request."""
