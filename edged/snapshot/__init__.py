"""Snapshots: Wizer in Python. A module is initialised once, and its state written down as a module.

`edged.snapshot.api` is the way in. The phases, one file each: parse, instrument (export what is
internal), initialize (run it in the sandbox), snapshot (read its state), rewrite. They run in a
process of their own (worker, process). Nothing is imported here: the worker must start fast.
"""
