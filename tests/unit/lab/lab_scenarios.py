"""Small scenarios for tests, as text."""

from __future__ import annotations

from pathlib import Path

from edged.lab.chaos.scenario import Scenario, parse_scenario

HEAD = """
about = "a test"
"""
CLUSTER = """
[cluster]
nodes = [
  { name = "n1", region = "eu" }, { name = "n2", region = "us" }, { name = "n3", region = "ap" },
  { name = "n4", region = "eu" }, { name = "n5", region = "us" }, { name = "n6", region = "ap" },
]
"""
FUNCTIONS = """
[[functions]]
name = "hello"
versions = [{ label = "1", says = "hello 1" }, { label = "2", says = "hello 2", at_s = 8.0 }]
"""
PHASES = """
[[phases]]
name = "warm-up"
for_s = 5.0
errors_max = 0.0

[[phases]]
name = "faults"
for_s = 20.0
"""


def scenario_of(*faults: str, head: str = HEAD, functions: str = FUNCTIONS) -> Scenario:
    """`faults`: bodies of [[faults]] tables."""
    tables = "".join(f"\n[[faults]]\n{body}\n" for body in faults)
    text = head + CLUSTER + functions + PHASES + tables
    return parse_scenario(text.encode(), Path("dir/s.toml"))
