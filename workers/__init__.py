"""What handles the traffic: one process per worker, and a keeper beside each."""
