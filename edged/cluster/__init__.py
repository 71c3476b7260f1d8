"""Clusters of real node processes on this machine: start, watch, kill, restart, stop.

Nothing here runs in the background: each command reads the state on disk, acts and leaves. The
modules are imported one by one, as most commands need few of them and should start fast.
"""
