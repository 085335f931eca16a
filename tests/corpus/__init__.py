"""Raw requests and responses in files, and what must come of each."""
