"""`python -m grafana.source` writes the dashboards, one JSON file each."""

from grafana.source.files import write

write()
