"""The command line: thin clients of the control API, the gateway and the cluster supervisor.

Imports are lazy throughout: `edged --help` loads click and nothing else, and client commands never
load the daemon.
"""
