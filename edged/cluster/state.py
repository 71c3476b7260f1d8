"""What is remembered of local clusters between commands: one directory and one file for each.

`<state>/clusters/NAME/cluster.json` is written whole (temporary file, fsync, rename). A process is
known by pid *and* start time, so a reused pid is never taken for a node. Whoever changes a cluster
holds its lock; the lock dies with its holder.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from edged.errors import ClusterNotFound, ConfigError, Conflict
from edged.files import write_file
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_node_name

Target = Literal["native", "pulley64"]
Role = Literal["serve", "build", "control"]
"""As protocol.identity has them, which needs cryptography: too slow to load for `status`."""
ROLES: Final[tuple[Role, ...]] = ("serve", "build", "control")

STATE_BYTES_MAX: Final = 1024 * 1024
LOCK_POLL_S: Final = 0.02
LOCK_ATTEMPTS: Final = 100
"""Commands that tidy up the lock's directory meet one that makes it; never so often in a row."""


class NodeState(msgspec.Struct, frozen=True):
    """One node's addresses, kept for the cluster's life, and its process."""

    name: str
    region: str
    target: Target
    gateway: str
    """host:port, as the other two."""
    control: str
    gossip: str
    roles: tuple[Role, ...] = ROLES
    pid: int | None = None
    """None: not started, or stopped on purpose."""
    started_ticks: int | None = None
    """Start of that process in clock ticks since boot (/proc/PID/stat, field 22)."""
    log_start: Annotated[int, Meta(ge=0)] = 0
    """Size of its log before that process wrote to it."""

    @property
    def gateway_url(self) -> str:
        return f"http://{self.gateway}"

    @property
    def control_url(self) -> str:
        return f"http://{self.control}"

    @property
    def ports(self) -> tuple[int, ...]:
        addresses = (self.gateway, self.control, self.gossip)
        return tuple(int(address.rpartition(":")[2]) for address in addresses)


class ClusterState(msgspec.Struct, frozen=True):
    format: Literal[1]
    name: str
    created_at_s: float
    """Unix time."""
    boot_id: str
    """Of the kernel when the processes were started: start times count from a boot."""
    nodes: Annotated[tuple[NodeState, ...], Meta(min_length=1)]
    lab: bool = False
    """Its nodes shape their traffic, and can be told to misbehave."""
    config: dict[str, dict[str, Any]] = {}
    """Laid over every node's node.toml, also of those that join later."""

    def node(self, name: str) -> NodeState:
        """Raises ClusterNotFound naming the nodes there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise ClusterNotFound(
            f"cluster {self.name!r} has no node {name!r}; it has {known}", node=name
        )

    def with_node(self, changed: NodeState) -> ClusterState:
        nodes = tuple(changed if node.name == changed.name else node for node in self.nodes)
        return msgspec.structs.replace(self, nodes=nodes)


_decoder = msgspec.json.Decoder(ClusterState)


def state_root(environ: Mapping[str, str] = os.environ) -> Path:
    """$EDGED_STATE, $XDG_STATE_HOME/edged or ~/.local/state/edged, absolute."""
    if environ.get("EDGED_STATE"):
        return Path(environ["EDGED_STATE"]).absolute()
    if environ.get("XDG_STATE_HOME"):
        return Path(environ["XDG_STATE_HOME"]).absolute() / "edged"
    return Path.home() / ".local" / "state" / "edged"


def check_cluster_name(name: str) -> str:
    """Raises ConfigError with the rule it breaks."""
    try:
        return parse_node_name(name)
    except RemoteProtocolError as error:
        raise ConfigError(f"cluster name {error.detail}") from error


class Home:
    """The state directory of one user's local clusters."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, name: str) -> Path:
        return self.root / "clusters" / check_cluster_name(name)

    def node_directory(self, name: str, node: str) -> Path:
        return self.directory(name) / "nodes" / node

    def token_file(self, name: str, node: str) -> Path:
        return self.node_directory(name, node) / "control.token"

    def log_file(self, name: str, node: str) -> Path:
        return self.node_directory(name, node) / "node.log"

    def run_file(self, name: str, node: str) -> Path:
        """Written by the node when it is ready."""
        return self.node_directory(name, node) / "data" / "run.json"

    def links_file(self, name: str) -> Path:
        """What all its nodes read when they start, if they shape their traffic."""
        return self.directory(name) / "links.json"

    def token(self, name: str, node: str) -> str:
        """Raises ConfigError."""
        return read_token(self.token_file(name, node))

    def exists(self, name: str) -> bool:
        return self.directory(name).is_dir()

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.root / "clusters").iterdir())
        except FileNotFoundError:
            return []

    def load(self, name: str) -> ClusterState:
        """Raises ClusterNotFound, ConfigError (the file is damaged)."""
        path = self.directory(name) / "cluster.json"
        try:
            with path.open("rb") as file:
                data = file.read(STATE_BYTES_MAX)
        except FileNotFoundError:
            if self.exists(name):
                raise ConfigError(
                    f"{path}: missing; edged cluster down {name} ends and removes the cluster"
                ) from None
            known = ", ".join(self.names()) or "none"
            raise ClusterNotFound(
                f"no local cluster {name!r} (there are: {known}); edged cluster up makes one",
                cluster=name,
            ) from None
        try:
            return _decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path}: damaged ({error}); edged cluster down {name} removes the cluster"
            ) from error

    def load_all(self) -> list[ClusterState]:
        """Newest first; damaged ones are left out."""
        states: list[ClusterState] = []
        for name in self.names():
            try:
                states.append(self.load(name))
            except (ClusterNotFound, ConfigError):
                continue
        return sorted(states, key=lambda state: -state.created_at_s)

    def damaged(self) -> list[str]:
        """Names of clusters whose cluster.json is missing or unreadable."""
        found: list[str] = []
        for name in self.names():
            try:
                check_cluster_name(name)
            except ConfigError:
                continue  # not of our making
            try:
                self.load(name)
            except (ClusterNotFound, ConfigError):
                found.append(name)
        return found

    def save(self, state: ClusterState) -> None:
        path = self.directory(state.name) / "cluster.json"
        write_file(path, msgspec.json.format(msgspec.json.encode(state)) + b"\n", secret=True)

    @contextmanager
    def lock(self, name: str, *, patience_s: float = 0.0) -> Iterator[None]:
        """Raises Conflict if another command works on the cluster for longer than that."""
        path = self.root / "locks" / f"{check_cluster_name(name)}.lock"
        with _file_lock(path, patience_s, busy=f"another command works on cluster {name!r}"):
            yield

    def tidy(self) -> None:
        """Removes directories that hold nothing any more."""
        for name in ("clusters", "locks"):
            with suppress(OSError):
                (self.root / name).rmdir()

    @contextmanager
    def port_lock(self) -> Iterator[None]:
        """Held from choosing ports until they stand in a cluster.json; waits its turn."""
        with _file_lock(self.root / "locks" / ".ports", None, busy=""):
            yield


@contextmanager
def _file_lock(path: Path, patience_s: float | None, *, busy: str) -> Iterator[None]:
    """With no `patience_s` it waits its turn however long that takes."""
    deadline_s = time.monotonic() + (patience_s or 0.0)
    while True:
        fd = _open_lock(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if patience_s is None else fcntl.LOCK_NB))
            # The last holder removed the file while this one waited: lock the new one.
            if _same_file(fd, path):
                break
        except BlockingIOError:
            os.close(fd)
            if time.monotonic() >= deadline_s:
                raise Conflict(f"{busy}; try again when it is done") from None
            time.sleep(LOCK_POLL_S)
            continue
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _open_lock(path: Path) -> int:
    """Raises ConfigError."""
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            # Not found, where it was made a moment ago: another command has tidied up.
            if not isinstance(error, FileNotFoundError) or attempt == LOCK_ATTEMPTS:
                raise ConfigError(
                    f"{path}: cannot be made: {error.strerror}; EDGED_STATE names the directory"
                    " where local clusters are kept"
                ) from error
    raise AssertionError("unreachable")


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def read_token(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no control token can be read: {error}") from error
