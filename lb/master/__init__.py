"""The master: the process that binds, forks, supervises and reloads.

Nothing is imported here: commands that only talk to a master shall not load what it runs.
"""
