"""Guests: parse, validate, compile in a killable process, load, and run one bounded invocation.

`edged.runtime.runtime.open_runtime` is the way in. Nothing is imported here: compile workers
import this package and must start fast.
"""
