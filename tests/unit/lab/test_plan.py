"""Timelines: the same for the same scenario and seed, whoever asks; and right about who is down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_scenarios import scenario_of

from edged.cli.main import edged
from edged.errors import ConfigError
from edged.lab.chaos import plan as planning
from edged.lab.chaos.modules import module_that_says
from edged.lab.chaos.plan import RECOVERY_S, Dice, plan
from edged.lab.chaos.scenario import Scenario, parse_scenario
from edged.lab.history import Planned
from edged.lab.runfolder import encode_rows

ROLLING = (
    'action = "kill"\nat_s = 5\nevery_s = 2\njitter_s = 0.5\npick = 1\ndown_max = 2\nfor_s = 3'
)
CUT = 'action = "partition"\nat_s = 6\ngroups = [["eu"], ["*"]]'
HEAL = 'action = "heal"\nat_s = 9'
SKEW = 'action = "clock-skew"\nat_s = 7\nskew_ms = 5000\npick = 2'

seconds = st.integers(0, 24).map(float)
selectors = st.sampled_from(["*", "eu", "us", "node:n3", "origin:hello"])


@st.composite
def kills(draw: st.DrawFn) -> str:
    action = draw(st.sampled_from(["kill", "pause", "restart"]))
    text = f'action = "{action}"\nat_s = {draw(seconds)}\ntargets = ["{draw(selectors)}"]'
    text += f"\nfor_s = {draw(st.integers(1, 9))}.0\npick = {draw(st.integers(1, 6))}"
    every_s = draw(st.integers(1, 5))
    text += f"\nevery_s = {every_s}\njitter_s = {draw(st.floats(0, every_s / 2)):.3f}"
    return text + f"\ndown_max = {draw(st.integers(1, 3))}"


def nodes_of(scenario: Scenario) -> set[str]:
    return {node.name for node in scenario.cluster.nodes}


def test_five_runs_of_one_seed_are_byte_identical() -> None:
    """Whatever a process's hashes are salted with."""
    scenario = scenario_of(ROLLING, CUT, HEAL, SKEW)
    program = (
        "import sys, pathlib\n"
        "from edged.lab.chaos.plan import plan\n"
        "from edged.lab.chaos.scenario import parse_scenario\n"
        "from edged.lab.runfolder import encode_rows\n"
        "scenario = parse_scenario(sys.stdin.buffer.read(), pathlib.Path('dir/s.toml'))\n"
        "sys.stdout.buffer.write(encode_rows(plan(scenario, 7)))\n"
    )
    timelines = {encode_rows(plan(scenario, 7))}
    root = str(Path(__file__).resolve().parents[3])
    for salt in range(4):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=scenario.text,
            capture_output=True,
            check=True,
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": str(salt), "PYTHONPATH": root},
        )
        timelines.add(done.stdout)
    assert len(timelines) == 1
    assert encode_rows(plan(scenario, 8)) not in timelines


def test_the_dice_fall_as_they_always_did() -> None:
    """A new Python or a new order of draws would make every recorded seed another run."""
    dice = Dice(7, "targets", 0, 0)
    assert dice.choose(["a", "b", "c", "d"], 2) == ["b", "d"]
    assert round(dice.around(10.0, 2.0), 3) == 8.095


@settings(max_examples=40)
@given(faults=st.lists(kills(), max_size=4), seed=st.integers(0, 2**53))
def test_a_plan_is_a_function_of_scenario_and_seed(faults: list[str], seed: int) -> None:
    scenario = scenario_of(*faults)
    again = parse_scenario(scenario.text, scenario.path)
    assert encode_rows(plan(scenario, seed)) == encode_rows(plan(again, seed))


@settings(max_examples=40)
@given(faults=st.lists(kills(), min_size=1, max_size=4), seed=st.integers(0, 2**53))
def test_what_every_plan_keeps_to(faults: list[str], seed: int) -> None:
    scenario = scenario_of(*faults)
    timeline = plan(scenario, seed)
    assert [row.t_s for row in timeline] == sorted(row.t_s for row in timeline)
    assert all(0 <= row.t_s < scenario.for_s for row in timeline)
    assert len({row.id for row in timeline}) == len(timeline)
    down: dict[str, float] = {}
    for row in timeline:
        assert row.targets
        assert set(row.targets) <= nodes_of(scenario)
        assert len(set(row.targets)) == len(row.targets)
        assert all(down.get(name, 0.0) <= row.t_s for name in row.targets), "down already"
        if row.action in ("kill", "pause", "restart"):
            assert row.duration_s is not None
            down |= dict.fromkeys(row.targets, row.t_s + row.duration_s + RECOVERY_S)
            fault = scenario.faults[int(row.id.partition(".")[0]) - 1]
            assert sum(end > row.t_s for end in down.values()) <= fault.down_max  # type: ignore[attr-defined]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**53), more=kills())
def test_an_entry_more_changes_no_time_of_those_before(seed: int, more: str) -> None:
    def times(scenario: Scenario) -> list[float]:
        return [row.t_s for row in plan(scenario, seed) if row.id.startswith("1.")]

    alone = scenario_of('action = "clock-skew"\nat_s = 1\nevery_s = 2\njitter_s = 1\nskew_ms = 9')
    both = scenario_of(
        'action = "clock-skew"\nat_s = 1\nevery_s = 2\njitter_s = 1\nskew_ms = 9', more
    )
    assert times(alone)
    assert set(times(both)) <= set(times(alone))


def by_id(*faults: str, seed: int = 1) -> dict[str, Planned]:
    return {row.id: row for row in plan(scenario_of(*faults), seed)}


def test_deploys_come_first_and_their_node_is_the_origin() -> None:
    timeline = by_id('action = "kill"\nat_s = 2\ntargets = ["origin:hello"]')
    first = timeline["deploy-hello-1"]
    assert (first.t_s, first.settings["before_load"]) == (0.0, True)
    assert timeline["1"].targets == first.targets
    second = timeline["deploy-hello-2"]
    assert second.t_s == 8
    assert second.targets != first.targets, "nobody deploys at a node that is down"
    after = by_id('action = "kill"\nat_s = 9\ntargets = ["origin:hello"]')
    assert after["1"].targets == after["deploy-hello-2"].targets


def test_partitions_name_everybody() -> None:
    cut = by_id(CUT)["1"]
    assert cut.targets == ("eu", "|", "!eu")
    assert cut.settings == {"one_way": False, "cut": "drop"}
    with pytest.raises(ConfigError, match="n1 is in two groups"):
        by_id('action = "partition"\nat_s = 6\ngroups = [["eu"], ["node:n1"]]')


def test_healing_ends_what_has_no_end_of_its_own() -> None:
    link = 'action = "link"\nat_s = 4\nfrom = ["node:n1"]\nto = ["*"]\nlatency_ms = 5'
    short = 'action = "partition"\nat_s = 7\ngroups = [["us"], ["ap"]]\nfor_s = 0.5'
    timeline = by_id(CUT, link, short, HEAL, CUT.replace("6", "12"))
    assert timeline["1"].duration_s == 3
    assert timeline["2"].duration_s == 5
    assert timeline["2"].targets == ("node:n1", "→", "*")
    assert timeline["3"].duration_s == 0.5
    assert timeline["5"].duration_s is None
    assert "4" not in timeline


def test_flapping_is_one_partition_after_the_other() -> None:
    flap = (
        'action = "flap"\nat_s = 6\nfor_s = 5\ndown_s = 0.5\nup_s = 1.5\ngroups = [["eu"], ["us"]]'
    )
    cuts = [row for row in plan(scenario_of(flap), 1) if row.action == "partition"]
    assert [(row.id, row.t_s, row.duration_s) for row in cuts] == [
        ("1.1", 6.0, 0.5),
        ("1.2", 8.0, 0.5),
        ("1.3", 10.0, 0.5),
    ]


def test_regions_are_lost_as_a_whole() -> None:
    loss = by_id('action = "region-loss"\nat_s = 6\nfor_s = 2', seed=3)["1"]
    scenario = scenario_of()
    region = loss.settings["region"]
    members = [node.name for node in scenario.cluster.nodes if node.region == region]
    assert list(loss.targets) == members
    assert loss.settings["how"] == "kill"


def test_holders_are_for_the_run_to_find() -> None:
    corrupt = 'action = "corrupt"\nat_s = 6\nfunction = "hello"\ntargets = ["holder:hello"]'
    assert by_id(corrupt)["1"].targets == ("holder:hello",)
    assert by_id(corrupt)["1"].settings == {"function": "hello", "what": "module"}


def test_a_poisoned_builder_is_told_which_code_to_vouch_for() -> None:
    poison = 'action = "poison"\nat_s = 5\nfunction = "hello"\nversion = "2"\ncode_of = "1"'
    planned = by_id(poison + '\ntargets = ["node:n2"]')["1"]
    modules = [blake3(module_that_says(f"hello {label}")).hexdigest() for label in ("2", "1")]
    assert [planned.settings[key] for key in ("module", "code_of")] == modules
    assert (planned.targets, planned.settings["signed"]) == (("n2",), True)


def test_upgrades_carry_their_configuration() -> None:
    rolling = 'action = "rolling-restart"\nat_s = 6\nconfig = { runtime = { tiers = "optimised" } }'
    settings = by_id(rolling)["1"].settings
    assert msgspec.json.decode(str(settings["config"])) == {"runtime": {"tiers": "optimised"}}


def test_a_plan_without_targets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    all_dead = 'action = "kill"\nat_s = 5'
    with pytest.raises(ConfigError, match=r"faults\[1\]: none of its targets is up at 6 s"):
        by_id(all_dead, 'action = "kill"\nat_s = 6\ntargets = ["node:n1"]')
    with pytest.raises(ConfigError, match="version 2: no node with the role control is up at 8 s"):
        by_id(all_dead)
    often = 'action = "clock-skew"\nat_s = 0\nskew_ms = 1\nevery_s = 0.001'
    monkeypatch.setattr(planning, "PLANNED_MAX", 100)
    with pytest.raises(ConfigError, match="over 100 times"):
        by_id(often)


def test_the_command_shows_the_timeline(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_bytes(scenario_of(ROLLING, CUT).text)
    shown = CliRunner().invoke(edged, ["chaos", "plan", str(file), "--seed", "7"])
    timeline = plan(scenario_of(ROLLING, CUT), 7)
    assert shown.exit_code == 0
    assert len(shown.output.splitlines()) == len(timeline)
    assert "2: partition eu | !eu one_way=False" in shown.output
    as_json = CliRunner().invoke(edged, ["chaos", "plan", str(file), "--seed", "7", "--json"])
    assert msgspec.json.decode(as_json.output, type=tuple[Planned, ...]) == timeline
    wrong = CliRunner().invoke(edged, ["chaos", "plan", str(tmp_path / "none.toml")])
    assert (wrong.exit_code, "cannot read scenario" in wrong.output) == (2, True)
