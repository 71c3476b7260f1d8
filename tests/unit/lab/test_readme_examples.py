"""What the README says of one's own scenario and topology is a scenario and a topology."""

from __future__ import annotations

import re
from pathlib import Path

from edged.lab.chaos.plan import plan
from edged.lab.chaos.scenario import load_scenario
from edged.topology import load_topology

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_examples_hold(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    (scenario_text,) = (block for block in blocks if "[[faults]]" in block)
    (topology_text,) = (block for block in blocks if "[rtt_ms." in block)
    for directory, name, text in (
        ("topologies", "mine.toml", topology_text),
        ("chaos", "own.toml", scenario_text),
    ):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / name).write_text(text, "utf-8")
    topology = load_topology(tmp_path / "topologies" / "mine.toml")
    assert topology.link("lima", "lagos").loss == 0.02
    assert topology.link("lagos", "lima").latency_s == 0.12
    scenario = load_scenario(tmp_path / "chaos" / "own.toml")
    assert scenario.topology == "mine"
    (cut,) = (row for row in plan(scenario, 1) if row.action == "partition")
    assert cut.targets == ("frankfurt", "|", "!frankfurt")
