"""Scenario files: what is wrong with one is told with file, key, value and rule."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab_scenarios import CLUSTER, FUNCTIONS, HEAD, PHASES, scenario_of

from edged.cli.common import SEED
from edged.cluster.state import Home, check_cluster_name
from edged.cluster.supervisor import Supervisor
from edged.errors import ClusterFailed, ConfigError
from edged.lab.chaos import actions
from edged.lab.chaos.running import Options, cluster_name, run_scenario
from edged.lab.chaos.scenario import SEED_MAX, load_scenario, parse_scenario

KILL = 'action = "kill"\nat_s = 6'
SAYS = 'versions = [{ label = "1", says = "x" }]'
POISON = 'action = "poison"\nat_s = 6\nfunction = "hello"\nversion = '
CUT = 'action = "partition"\nat_s = 6\n'


def test_what_it_says_is_what_one_gets() -> None:
    scenario = scenario_of(
        KILL + '\ntargets = ["eu"]\npick = 1\nfor_s = 2.5',
        'action = "link"\nat_s = 7\nfrom = ["eu"]\nto = ["*"]\nloss = 0.5',
    )
    assert (scenario.name, scenario.about, scenario.seed) == ("s", "a test", 1)
    assert scenario.for_s == 25
    assert scenario.regions == ("eu", "us", "ap")
    assert scenario.faults == (
        actions.Kill(at_s=6, targets=("eu",), pick=1, for_s=2.5),
        actions.LinkChange(at_s=7, sources=("eu",), targets=("*",), loss=0.5),
    )
    assert scenario.function("hello").version("2").at_s == 8
    assert scenario.beside("x.wasm") == Path("dir/x.wasm")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("at_s = 1", r"faults\[0\]\.action missing: write one of kill, pause"),
        ('action = "kil"\nat_s = 1', r"faults\[0\]\.action = 'kil': write one of kill"),
        ("action = 3", r"faults\[0\]\.action = 3: write one of"),
        ('action = "kill"', r"faults\[0\] \(kill\): at_s: missing"),
        (KILL + "\nfor = 2", r"\(kill\): for: there is no such key"),
        (KILL + "\nfor_s = 0", r"\(kill\): for_s = 0: write a number above 0"),
        (KILL + "\npick = 0", r"\(kill\): pick = 0: write a whole number from 1 to 128"),
        (KILL + "\ntargets = []", "targets = .*0 entries"),
        (KILL + '\ntargets = ["n1"]', r"faults\[0\]\.targets = 'n1': there are eu, us, ap"),
        (KILL + '\ntargets = ["node:n9"]', r"= 'n9': there are n1, n2"),
        (KILL + '\ntargets = ["holder:nope"]', r"= 'nope': there are hello"),
        (KILL + "\njitter_s = 1", r"faults\[0\]\.jitter_s: goes with every_s"),
        (KILL + "\ndown_max = 1", r"faults\[0\]\.down_max: goes with every_s"),
        (KILL + "\nevery_s = 1\njitter_s = 0.6", "at most half of every_s"),
        ('action = "kill"\nat_s = 25', r"at_s = 25: the phases end at 25 s"),
        ('action = "pause"\nat_s = 6', r"faults\[0\]\.for_s: missing"),
        ('action = "slow-cpu"\nat_s = 6\nfor_s = 1\nshare = 1', "share = 1"),
        ('action = "clock-skew"\nat_s = 6', "skew_ms: missing"),
        ('action = "corrupt"\nat_s = 6\nfunction = "f"', r"function = 'f': there are hello"),
        (POISON + '"1"\ncode_of = "3"', r"code_of = '3': there are 1, 2"),
        (POISON + '"9"\ncode_of = "1"', r"version = '9': there are 1, 2"),
        (POISON + '"1"\ncode_of = "1"', "is the version itself"),
        ('action = "region-loss"\nat_s = 6\nregion = "x"', r"region = 'x': there are eu"),
        (CUT + 'groups = [["eu"]]', "1 entries; 2 to 16 are allowed"),
        (CUT + 'groups = [["eu"], ["holder:hello"]]', "only a fault of nodes can have it"),
        (CUT + 'groups = [["eu"], ["us"]]\ncut = "x"', "cut = 'x': write drop or reset"),
        ('action = "flap"\nat_s = 6\ngroups = [["eu"], ["us"]]\ndown_s = 1\nup_s = 1', "for_s"),
        ('action = "link"\nat_s = 6\nfrom = ["eu"]\nto = ["*"]', "write one of latency_ms"),
    ],
)
def test_wrong_faults(fault: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        scenario_of(fault)
    assert str(raised.value).startswith("dir/s.toml: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = ", "not TOML"),
        ("\xff", "not TOML"),
        (CLUSTER + FUNCTIONS + PHASES, "about: missing"),
        (HEAD + "seed = -1\n" + CLUSTER + FUNCTIONS + PHASES, "seed = -1: write a whole number"),
        (HEAD + FUNCTIONS + PHASES, "cluster"),
        (HEAD + 'cluster = "none.toml"\n' + FUNCTIONS + PHASES, "none.toml: cannot be read"),
        (HEAD + "[cluster]\nnodes = []\n" + FUNCTIONS + PHASES, "cluster: nodes"),
        (HEAD + CLUSTER + PHASES, "functions: missing"),
        (HEAD + CLUSTER + FUNCTIONS, "phases: missing"),
        (HEAD + CLUSTER + FUNCTIONS + PHASES + PHASES, "there are two of that name"),
        (HEAD + CLUSTER + FUNCTIONS + '[[phases]]\nname = "end"\nfor_s = 9.0', '"end" is what'),
        (HEAD + CLUSTER + FUNCTIONS + PHASES + "[invariants]\nx_s = 1", "invariants.x_s"),
        (
            HEAD + CLUSTER + FUNCTIONS + PHASES + "[config.gosip]\nx = 1",
            "config: gosip: there is no such key; gossip is meant",
        ),
        (
            HEAD + CLUSTER + FUNCTIONS + PHASES.replace("5.0", "nan"),
            "phases.for_s = nan: write a number above 0",
        ),
        (
            HEAD + CLUSTER + FUNCTIONS + PHASES + '[invariants]\nskip = ["eror-budget"]',
            r"invariants\.skip = 'eror-budget': .*; error-budget is meant\?",
        ),
        (HEAD + CLUSTER + FUNCTIONS + FUNCTIONS + PHASES, "there are two of that name"),
        (f'{HEAD}{CLUSTER}{PHASES}[[functions]]\nname = "A B"\n{SAYS}', r"functions\[0\]\.name"),
    ],
)
def test_wrong_files(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_scenario(text.encode("latin-1"), Path("dir/s.toml"))


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ('label = "1"', "write either says = … or module = …"),
        ('label = "1", says = "x", module = "y"', "write either says = … or module = …"),
        ('label = "1", says = "x", body = "y"', "without body"),
        ('label = "1", says = "x", node = "n9"', r"node = 'n9': there are n1"),
        ('label = "1", says = "x", at_s = 30.0', "the phases end at 25 s"),
        ('label = "1", says = "x" }, { label = "1", says = "y"', "two of that label"),
        ('label = "1", says = "x", size = 3', "there is no such key"),
    ],
)
def test_wrong_versions(version: str, words: str) -> None:
    functions = f'[[functions]]\nname = "f"\nversions = [{{ {version} }}]\n'
    with pytest.raises(ConfigError, match=words):
        scenario_of(functions=functions)


def test_bounds_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 262144 are read"):
        parse_scenario(b"#" * 300_000, Path("s.toml"))
    with pytest.raises(ConfigError, match="cannot read scenario"):
        load_scenario(tmp_path / "none.toml")


def test_a_module_file_that_there_is_not_is_told_before_the_run(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    versions = 'versions = [{ label = "1", module = "none.wasm" }]'
    file.write_text(f'{HEAD}{CLUSTER}{PHASES}[[functions]]\nname = "f"\n{versions}\n')
    with pytest.raises(ConfigError, match=r"functions\[0\]\.versions\[0\]\.module = 'none.wasm'"):
        load_scenario(file)


def test_a_run_that_could_not_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def up(*_args: object, **_options: object) -> None:
        raise ClusterFailed("no")

    monkeypatch.setattr(Supervisor, "up", up)
    out = tmp_path / "run"
    with pytest.raises(ClusterFailed):
        run_scenario(
            scenario_of(), Options(seed=1, out=out, home=Home(tmp_path)), tell=lambda _: None
        )
    assert not out.exists()


def test_seeds_of_the_command_line_have_the_file_s_bounds() -> None:
    assert (SEED.min, SEED.max) == (0, SEED_MAX)


def test_config_is_laid_over_that_of_the_cluster(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        '[[nodes]]\nname = "n1"\n'
        "[config.replication]\nrepair_after_s = 9.0\nsurplus_after_s = 80.0\n"
    )
    file = tmp_path / "s.toml"
    file.write_text(
        f'{HEAD}cluster = "c.toml"\n[config.replication]\nrepair_after_s = 2.0\n{FUNCTIONS}{PHASES}'
    )
    config = load_scenario(file).cluster.config
    assert config == {"replication": {"repair_after_s": 2.0, "surplus_after_s": 80.0}}


def test_the_topology_is_the_scenario_s_or_the_cluster_s(tmp_path: Path) -> None:
    world = "[regions]\na = 1\nb = 1\n[link]\nlatency_ms = 5.0\n"
    for name in ("small", "other"):
        (tmp_path / f"{name}.toml").write_text(world)
    (tmp_path / "c.toml").write_text('topology = "small.toml"\ncount = 4\n')
    file = tmp_path / "s.toml"
    of_cluster = f'{HEAD}cluster = "c.toml"\n'
    for head, topology in [
        (of_cluster, "small"),
        (f'{of_cluster}topology = "other.toml"\n', "other"),
        (f'{HEAD}topology = "other.toml"\n[cluster]\ncount = 4\n', "other"),
        (f"{HEAD}[cluster]\ncount = 4\n", ""),
    ]:
        file.write_text(head + FUNCTIONS + PHASES)
        scenario = load_scenario(file)
        assert scenario.topology == topology
        assert scenario.cluster.lab
        assert scenario.regions == (("a", "b") if topology else ("local",))


@pytest.mark.parametrize("stem", ["rolling-kill", "My Scenario (2)", "é", "x" * 200])
def test_any_file_gives_its_cluster_a_name(stem: str) -> None:
    scenario = parse_scenario(scenario_of().text, Path(f"{stem}.toml"))
    assert check_cluster_name(cluster_name(scenario)).startswith("chaos-")
    assert cluster_name(scenario) != cluster_name(scenario)
