"""Makes the dashboards of `grafana/dashboards`: `python -m grafana.source`."""
