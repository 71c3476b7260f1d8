"""The laboratory: load on a cluster, faults in it, judgement of what was seen, a report.

It stands above `edged.cluster` and below `edged.cli`, and meets the daemon only as anybody else
does: over HTTP, by signals to its processes, by files on its disk. So it never imports the daemon's
parts, and what it finds cannot come from sharing a bug with them.
"""
