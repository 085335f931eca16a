"""The admin API, and the dashboard that is made of it."""
