"""What Grafana and Prometheus need to watch shardlb."""
