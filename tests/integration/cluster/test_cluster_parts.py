"""The supervisor's parts: specs, ports, files, locks, processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.cluster import layout, ports, process
from edged.cluster.layout import dump_toml
from edged.cluster.spec import load_spec, parse_spec, spec_of
from edged.cluster.state import ClusterState, Home, NodeState, state_root
from edged.config import load_config
from edged.errors import ClusterNotFound, ConfigError, Conflict
from edged.trust import load_trust


# ---------------------------------------------------------------- spec
def test_spec_of_flags() -> None:
    spec = spec_of(4, pulley=1, regions=("eu", "us"))
    assert [(n.name, n.region, n.target) for n in spec.nodes] == [
        ("n1", "eu", "native"),
        ("n2", "us", "native"),
        ("n3", "eu", "native"),
        ("n4", "us", "pulley64"),
    ]


@pytest.mark.parametrize(
    ("count", "pulley", "regions", "named"),
    [
        (0, 0, (), "1 to 100"),
        (101, 0, (), "1 to 100"),
        (2, 3, (), "pulley64"),
        (2, -1, (), "pulley64"),
        (1, 0, ("EU",), "region"),
    ],
)
def test_wrong_flags(count: int, pulley: int, regions: tuple[str, ...], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        spec_of(count, pulley=pulley, regions=regions)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "nodes"),
        ("nodes = []", "nodes"),
        ("[[nodes]]", "name"),
        ("[[nodes]]\nname = '../n1'", "node name"),
        ("[[nodes]]\nname = 'n1'\n[[nodes]]\nname = 'n1'", "two nodes"),
        ("[[nodes]]\nname = 'n1'\ntarget = 'aarch64'", "target"),
        ("[[nodes]]\nname = 'n1'\ncolour = 1", "colour"),
        ("[[nodes]]\nname = 'n1'\n[config.node]\nname = 'x'", "config.node.name is set"),
        ("[[nodes]]\nname = 'n1'\n[config.gossip]\nseeds = []", "config.gossip.seeds is set"),
        ("config = 3\n[[nodes]]\nname = 'n1'", "config"),
        ("[[nodes", "not TOML"),
    ],
)
def test_wrong_cluster_files(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)


def test_missing_cluster_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec(tmp_path / "none.toml")


# ---------------------------------------------------------------- ports
def test_ports_are_free_different_and_not_ephemeral() -> None:
    found = ports.free_ports(30, taken=())
    assert len(set(found)) == 30
    assert not set(found) & set(ports.ephemeral_range())


def test_taken_ports_are_left_alone() -> None:
    allowed = set(range(ports.LOWEST, ports.LOWEST + 40))
    taken = set(range(ports.LOWEST, ports.HIGHEST + 1)) - allowed
    assert set(ports.free_ports(3, taken=taken)) <= allowed
    with pytest.raises(ConfigError, match="ports are free"):
        ports.free_ports(41, taken=taken)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_bound_port_is_not_free(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        assert not ports.is_free(other.getsockname()[1])


def test_held_ports_are_free_again_for_their_node() -> None:
    first, second = ports.free_ports(2, taken=())
    held, other = ports.Held(), ports.Held()
    assert held.hold([first, second]) is None
    assert not ports.is_free(first)
    assert other.hold([second]) == second
    held.release([first])
    assert (ports.is_free(first), ports.is_free(second)) == (True, False)
    held.close()
    assert ports.is_free(second)


def test_a_port_whose_connections_have_just_ended_can_be_held() -> None:
    (port,) = ports.free_ports(1, taken=())
    with socket.create_server((ports.HOST, port)) as server:
        client = socket.create_connection((ports.HOST, port))
        server.accept()[0].close()  # closing first, it waits
        client.close()
        held = ports.Held()
        assert held.hold([port]) == port  # somebody listens
    assert held.hold([port]) is None
    held.close()


def test_unreadable_port_range(tmp_path: Path) -> None:
    assert ports.ephemeral_range(tmp_path / "none") == range(32_768, 61_000)


# ---------------------------------------------------------------- files
def a_state(name: str = "c", nodes: int = 2) -> ClusterState:
    return ClusterState(
        1,
        name,
        1e9,
        process.boot_id(),
        tuple(
            NodeState(
                f"n{i}", "local", "native", f"127.0.0.1:{i}", f"127.0.0.1:{i}1", f"127.0.0.1:{i}2"
            )
            for i in range(1, nodes + 1)
        ),
    )


def test_written_files(home: Home) -> None:
    spec = parse_spec(
        {
            "nodes": [{"name": "n1"}, {"name": "n2"}],
            "config": {"gateway": {"queue_max": 7}, "node": {"log_level": "debug"}},
        },
        source="test",
    )
    state = msgspec.structs.replace(a_state(), config=spec.config)
    layout.write_cluster(home, state, spec)
    config = load_config(home.node_directory("c", "n2") / "node.toml")
    assert (config.node.name, config.node.log_level) == ("n2", "debug")
    assert (config.gateway.queue_max, config.gateway.drain_timeout_s) == (7, 10.0)
    assert config.gossip.seeds == ("127.0.0.1:12", "127.0.0.1:22")
    assert load_trust(config.path(config.trust.directory)).name == "n2"
    for path in home.directory("c").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        secret = path.name in ("control.token", "node.toml", "ca.key", "node.key", "keyring")
        assert not secret or mode == 0o600, path
    tokens = {home.token_file("c", n).read_text() for n in ("n1", "n2")}
    assert len(tokens) == 2


def test_a_mistake_in_config_shows_before_anything_starts(home: Home) -> None:
    spec = parse_spec({"nodes": [{"name": "n1"}], "config": {"gateway": {"colour": 1}}}, source="t")
    state = msgspec.structs.replace(a_state(nodes=1), config=spec.config)
    with pytest.raises(ConfigError, match="colour"):
        layout.write_cluster(home, state, spec)


SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)


@given(
    st.dictionaries(
        st.text(), st.dictionaries(st.text(), SCALARS | st.lists(SCALARS, max_size=3)), max_size=3
    )
)
def test_toml_round_trip(sections: dict) -> None:
    assert tomllib.loads(dump_toml(sections)) == sections


@pytest.mark.parametrize("value", [None, float("nan"), {"a": 1}, b"x"])
def test_what_toml_is_not_made_of(value: object) -> None:
    with pytest.raises(ConfigError):
        dump_toml({"a": {"b": value}})


def test_state_survives_and_says_what_is_wrong(home: Home) -> None:
    with pytest.raises(ClusterNotFound, match="none"):
        home.load("c")
    home.directory("c").mkdir(parents=True)
    home.save(a_state())
    assert home.load("c") == a_state()
    path = home.directory("c") / "cluster.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for damage in (b"", b"{", b"[]", path.read_bytes()[:-30], b"\xff", b'{"format": 2}'):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match="edged cluster down c"):
            home.load("c")
    assert home.load_all() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-x", "a" * 64, "\x00"])
def test_names_that_are_no_directory(home: Home, name: str) -> None:
    with pytest.raises(ConfigError, match="cluster name"):
        home.directory(name)


def test_unknown_node() -> None:
    with pytest.raises(ClusterNotFound, match="it has n1, n2"):
        a_state().node("n3")


def test_state_root() -> None:
    assert state_root({"EDGED_STATE": "/a", "XDG_STATE_HOME": "/b"}) == Path("/a")
    assert state_root({"XDG_STATE_HOME": "/b"}) == Path("/b/edged")
    assert state_root({}).parts[-3:] == (".local", "state", "edged")


# ---------------------------------------------------------------- locks
def test_one_command_at_a_time(home: Home) -> None:
    with (
        home.lock("c"),
        home.lock("d"),
        pytest.raises(Conflict, match="another command"),
        home.lock("c"),
    ):
        pass
    with home.lock("c"):
        pass
    assert not list((home.root / "locks").iterdir())


def test_a_lock_dies_with_its_holder(home: Home) -> None:
    code = (
        "import sys, time; from pathlib import Path; from edged.cluster.state import Home\n"
        "with Home(Path(sys.argv[1])).lock('c'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, home.root], stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.read(4) == b"held"
        with pytest.raises(Conflict), home.lock("c"):
            pass
        holder.kill()
        holder.wait(10)
        with home.lock("c"):
            pass


def test_port_lock_waits_its_turn(home: Home) -> None:
    order: list[str] = []
    begun = threading.Event()

    def second() -> None:
        begun.set()
        with home.port_lock():
            order.append("second")

    with home.port_lock():
        thread = threading.Thread(target=second)
        thread.start()
        begun.wait(5)
        time.sleep(0.05)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


# ---------------------------------------------------------------- processes
def spawn(marker: Path | None = None, code: str = "import time; time.sleep(60)") -> process.Process:
    env = dict(os.environ) | ({process.MARKER: str(marker)} if marker else {})
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], env)
    return process.Process(pid, process.started_ticks(pid) or 0)


def test_running_and_gone() -> None:
    child = spawn()
    assert process.is_running(child)
    assert not process.is_running(process.Process(child.pid, child.started_ticks - 1))
    assert process.send_signal(child, signal.SIGTERM)
    assert process.wait_gone([child], timeout_s=10) == []
    assert not process.send_signal(child, signal.SIGKILL)
    assert not Path(f"/proc/{child.pid}").exists()  # reaped


def test_it_runs_until_its_last_thread_has_ended() -> None:
    code = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    child = spawn(code=code)
    stat = Path(f"/proc/{child.pid}/stat")
    deadline = time.monotonic() + 10
    while ") Z " not in stat.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ") Z " in stat.read_text()
    assert process.is_running(child)
    assert process.kill_all([child], timeout_s=10) == []
    assert not stat.exists()  # reaped


def test_one_that_will_not_go() -> None:
    code = "import os, signal, time; signal.signal(15, 1); os.write(1, b'.'); time.sleep(60)"
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    child = process.Process(pid, process.started_ticks(pid) or 0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    process.send_signal(child, signal.SIGTERM)
    assert process.wait_gone([child], timeout_s=0.1) == [child]
    assert process.kill_all([child], timeout_s=10) == []


def test_strays_are_found_by_their_directory(tmp_path: Path) -> None:
    mine, below = spawn(tmp_path / "c"), spawn(tmp_path / "c" / "nodes" / "n1")
    other, plain = spawn(tmp_path / "cc"), spawn()
    try:
        deadline = time.monotonic() + 10
        while len(process.strays(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert set(process.strays(tmp_path / "c")) == {mine, below}
        assert process.strays(tmp_path / "c" / "nodes" / "n1") == [below]
    finally:
        assert process.kill_all([mine, below, other, plain], timeout_s=10) == []


def test_strays_are_found_by_their_session(tmp_path: Path) -> None:
    """As compilers are: without an environment, and outliving the node that was killed."""
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
        "os.write(1, b'%d' % child.pid); time.sleep(60)"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", code],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
        setsid=True,
    )
    os.close(write)
    leader = process.Process(pid, process.started_ticks(pid) or 0)
    child = int(os.read(read, 20))
    os.close(read)
    assert process.kill_all([leader], timeout_s=10) == []
    left = process.strays(tmp_path, [leader])
    assert [stray.pid for stray in left] == [child]
    stranger = process.Process(os.getpid(), 1)  # a reused pid: its session is not ours
    assert process.strays(tmp_path, [stranger]) == []
    assert process.kill_all(left, timeout_s=10) == []


def test_state_encodes_what_it_decodes() -> None:
    state = a_state()
    assert msgspec.json.decode(msgspec.json.encode(state), type=ClusterState) == state
