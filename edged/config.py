"""Configuration: one TOML file per node, parsed once into frozen structs.

Unknown keys are refused; an error names the key, the value and the fix. Relative paths are
relative to the file. Every default is one a fresh install can live with.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.costs import PlanForm
from protocol.errors import RemoteProtocolError
from protocol.function import MOUNT_SOURCE
from protocol.ids import parse_node_name
from protocol.replicas import REPLICAS_DEFAULT, REPLICAS_MAX

from .errors import ConfigError
from .validation import explain

MEBIBYTE = 1024 * 1024
DAY_S = 86_400
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - recognised, not bound
Preset = Literal["local", "lan", "wan"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all sections."""


class NodeSection(Section, frozen=True):
    name: str
    """Unique in the cluster; 1 to 63 of a-z 0-9 . - _."""
    region: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")] = "local"
    data_dir: str = "data"
    """Owned by one running node; holds blobs, index and run.json."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class GatewaySection(Section, frozen=True):
    """The public HTTP side."""

    bind: str = "127.0.0.1:8080"
    public_url: Annotated[str, Meta(max_length=128, pattern=r"^(https?://[\x21-\x7e]+)?\Z")] = ""
    """What members and operators are told; "" is http:// and the bound address."""
    header_bytes_max: Annotated[int, Meta(ge=1024, le=MEBIBYTE)] = 16 * 1024
    """Request line and headers together (nginx: 4 x 8 KiB, Node.js: 16 KiB)."""
    header_count_max: Annotated[int, Meta(ge=8, le=1000)] = 100
    connections_max: Annotated[int, Meta(ge=1)] = 1024
    """Open at once; above it the longest idle gives way to a newcomer, else 503."""
    invocations_max: Annotated[int, Meta(ge=1, le=1024)] = 64
    """Guests running at once; the threads they run in."""
    queue_max: Annotated[int, Meta(ge=0)] = 256
    """Requests waiting for one of those threads; more is 503."""
    ready_timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    """How long a request waits while its function is fetched and compiled; then 503, and the work
    goes on."""
    forward: bool = True
    """While a function is fetched or compiled here, its requests go to the nearest peer that has it
    ready; else they wait."""
    forward_hops: Annotated[int, Meta(ge=1, le=2)] = 1
    """How often a request may be passed on, by this node or before it."""
    forwards_max: Annotated[int, Meta(ge=1, le=4096)] = 256
    """Requests at peers at once, a quarter of them at any one; more wait here."""
    header_timeout_s: Annotated[float, Meta(gt=0)] = 10.0
    """From the first byte of a request to the end of its headers."""
    body_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """For the whole body, however it trickles."""
    idle_timeout_s: Annotated[float, Meta(gt=0)] = 75.0
    """Keep-alive without a request (nginx's 75 s)."""
    write_stall_s: Annotated[float, Meta(gt=0)] = 20.0
    """A client that falls so far behind taking 4 KiB/s of its answer is cut."""
    drain_timeout_s: Annotated[float, Meta(gt=0)] = 30.0
    """SIGTERM: what is accepted may run so long."""


class ControlSection(Section, frozen=True):
    """The operator's HTTP API."""

    bind: str = "127.0.0.1:8081"
    token_file: str = "control.token"  # noqa: S105 - a file name
    """Holds the bearer token; made with mode 0600 if missing."""


class GossipSection(Section, frozen=True):
    bind: str = "127.0.0.1:7946"
    """UDP, and TCP (mutual TLS) on the same port."""
    advertise: str = ""
    """What peers dial; "" is the bound address."""
    seeds: tuple[str, ...] = ()
    """host:port of any members; may name this node itself."""
    preset: Preset = "lan"


class TrustSection(Section, frozen=True):
    directory: str = "trust"
    """ca.pem, node.pem, node.key, credential, keyring (edged cluster init makes it)."""


class RuntimeSection(Section, frozen=True):
    target: Literal["native", "pulley64"] = "native"
    tiers: Literal["auto", "optimised"] = "auto"
    """auto: where there is no artifact a fast compiler answers the first requests, and optimised
    code replaces its code in the background; optimised: requests wait for the latter."""
    compiler_standby: bool = True
    """Keeps one compile process started and idle (7 MB): 30 to 60 ms less for the next compile."""
    pool_instances: Annotated[int, Meta(ge=0, le=1000)] = 64
    """Slots of the pooling allocator; 0: on-demand allocation only."""
    pool_memory_bytes: Annotated[int, Meta(ge=MEBIBYTE, le=4096 * MEBIBYTE)] = 512 * MEBIBYTE
    """Largest memory a pooled instance may have; modules that want more go on demand."""
    compile_timeout_s: Annotated[float, Meta(gt=0)] = 120.0
    compile_memory_bytes: Annotated[int, Meta(ge=64 * MEBIBYTE)] = 2048 * MEBIBYTE
    compiles_max: Annotated[int, Meta(ge=1, le=64)] = 1
    """Compiles at once."""
    loaded_bytes_max: Annotated[int, Meta(ge=MEBIBYTE)] = 1024 * MEBIBYTE
    """Artifact bytes kept mapped; what is worth least, by uses and the time that mapping it again
    takes, is unmapped above it."""
    loaded_max: Annotated[int, Meta(ge=1, le=100_000)] = 512
    """Modules kept mapped; each holds a file descriptor, of which a process often has 1,024."""


class ArtifactsSection(Section, frozen=True):
    """Native code that other nodes compiled."""

    accept: Annotated[str, Meta(pattern=r"^(none|signed|quorum=([2-9]|1[0-6]))\Z")] = "signed"
    """none: only what this node compiled; signed: on the word of any node with the role build;
    quorum=k: when k such nodes, 2 to 16, vouch for the same bytes."""
    eager: bool = True
    """Modules placed on this node are compiled, by one node of their artifact key, or their
    artifacts fetched, before the first request."""
    audit: bool = False
    """When idle, compiles again what others compiled; a builder whose code differs is trusted no
    more on this node, and what it built is dropped."""


class StoreSection(Section, frozen=True):
    zstd_level: Annotated[int, Meta(ge=0, le=19)] = 0
    """Of wire forms; 0: the best that takes about half a second for a blob of that size. Nodes
    with different ones serve each other, but cannot make each other's wire forms anew."""
    min_free_bytes: Annotated[int, Meta(ge=0)] = 64 * MEBIBYTE
    """Writes that would leave less are refused as disk-full."""
    bytes_max: Annotated[int, Meta(ge=0)] = 0
    """Bytes of the store above which what can be had again goes, native code and snapshots, the
    least worth first; modules stay, whatever they take. 0: only the disk is the bound."""
    gc_interval_s: Annotated[float, Meta(ge=0, le=30 * DAY_S)] = 600.0
    """How often blobs that no function needs are looked for; 0: only when an operator asks."""
    gc_grace_s: Annotated[float, Meta(ge=0, le=365 * DAY_S)] = 3600.0
    """How long nothing must have needed a blob before it is removed: a module may be uploaded well
    before the deploy that names it."""
    verify_interval_days: Annotated[float, Meta(ge=0, le=3650)] = 7.0
    """How often every byte of the store is hashed again; 0: only when an operator asks."""
    verify_bytes_per_s: Annotated[int, Meta(ge=MEBIBYTE // 16)] = 8 * MEBIBYTE
    """The most that takes of the disk in the background; an operator's check is not slowed."""


class ReplicationSection(Section, frozen=True):
    replicas: Annotated[int, Meta(ge=1, le=REPLICAS_MAX)] = REPLICAS_DEFAULT
    """Nodes that have a deploy through this node on disk before it is acknowledged, and that keep
    it, where the deploy does not say."""
    repair_after_s: Annotated[float, Meta(ge=0, le=86_400)] = 30.0
    """How long a member that is down may take to come back before its copies are made elsewhere;
    for a blob with few copies left, less."""
    surplus_after_s: Annotated[float, Meta(ge=60, le=365 * DAY_S)] = 3600.0
    """How long a copy that others are to have is kept here after its last use."""


class PlannerSection(Section, frozen=True):
    """Which form of a function's code this node gets and runs (docs/PLANNER.md)."""

    form: Literal["auto", PlanForm] = "auto"
    """auto: what costs least by this node's measurements; else this form wherever it can be had."""
    horizon_s: Annotated[float, Meta(ge=1, le=30 * DAY_S)] = 3600.0
    """For which what is got is expected to serve, at most: as long as it has been called, and at
    least a quarter of an hour. The longer, the more calls pay for its bytes."""
    price_per_gib: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    """What a GiB from peers costs, in seconds that requests would rather wait than have it sent."""
    link_mbit: Annotated[float, Meta(gt=0, le=1e6)] = 100.0
    """Expected of a peer until something was fetched from it, where no links document says; taken
    for a guess that may be ten times too high, but on the same site."""


class LinksSection(Section, frozen=True):
    """What this node does to what it sends its peers, for experiments (docs/TOPOLOGIES.md)."""

    enabled: bool = False
    """Nothing is shaped, and nothing costs anything, without it."""
    file: str = ""
    """The links document that is in force from the start; "": everything is clear. Others come
    through the control API (PUT /v1/links)."""


class LabSection(Section, frozen=True):
    """Of clusters that are broken on purpose."""

    enabled: bool = False
    """Gives the control API switches for a wrong clock and a full disk (PUT /v1/lab)."""


class Config(Section, frozen=True):
    node: NodeSection
    gateway: GatewaySection = GatewaySection()
    control: ControlSection = ControlSection()
    gossip: GossipSection = GossipSection()
    trust: TrustSection = TrustSection()
    runtime: RuntimeSection = RuntimeSection()
    artifacts: ArtifactsSection = ArtifactsSection()
    store: StoreSection = StoreSection()
    replication: ReplicationSection = ReplicationSection()
    planner: PlannerSection = PlannerSection()
    links: LinksSection = LinksSection()
    lab: LabSection = LabSection()
    mounts: dict[str, str] = {}
    """Allow-list of read-only directories that policies may name: name = path."""
    base: str = "."
    """Directory that relative paths start from; set by load_config."""

    def path(self, value: str) -> Path:
        return (Path(self.base) / value).resolve()

    @property
    def data_dir(self) -> Path:
        return self.path(self.node.data_dir)


def parse_address(text: str, *, key: str) -> tuple[str, int]:
    """("127.0.0.1", 8080) of "127.0.0.1:8080", ("::1", 8080) of "[::1]:8080".

    Raises ConfigError naming `key`."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{key} = {text!r}: write host:port, e.g. 127.0.0.1:8080")
    return host, int(port)


def parse_config(data: dict[str, Any], *, base: Path) -> Config:
    """Raises ConfigError."""
    if "base" in data:
        raise ConfigError("base: not a key of the file")
    document = data | {"base": str(base)}
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(explain(error, document, Config)) from error
    try:
        parse_node_name(config.node.name)
    except RemoteProtocolError as error:
        raise ConfigError(f"node.name = {error.detail}") from error
    for key, value in (
        ("gateway.bind", config.gateway.bind),
        ("control.bind", config.control.bind),
        ("gossip.bind", config.gossip.bind),
        *(("gossip.seeds", seed) for seed in config.gossip.seeds),
        *((("gossip.advertise", config.gossip.advertise),) if config.gossip.advertise else ()),
    ):
        parse_address(value, key=key)
    host, _ = parse_address(config.gossip.bind, key="gossip.bind")
    if host in ANY_ADDRESS and not config.gossip.advertise:
        raise ConfigError(
            f"gossip.bind = {config.gossip.bind!r} is every address of this machine: set "
            "gossip.advertise to the host:port that peers dial"
        )
    slots = config.runtime.pool_instances
    if 0 < slots < config.gateway.invocations_max:
        raise ConfigError(
            f"runtime.pool_instances = {slots} is less than gateway.invocations_max = "
            f"{config.gateway.invocations_max}: raise it or lower the other; 0 means no pool"
        )
    for name, target in config.mounts.items():
        if not re.match(MOUNT_SOURCE, name):
            raise ConfigError(
                f"mounts.{name!r}: no policy can name it; write 1 to 63 of a-z 0-9 - _, the first "
                "a letter or digit"
            )
        if not config.path(target).is_dir():
            raise ConfigError(f"mounts.{name} = {target!r}: not a directory on this machine")
    return config


def load_config(path: Path) -> Config:
    """Raises ConfigError: unreadable, not TOML, unknown or wrong keys."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    try:
        return parse_config(data, base=path.parent.resolve())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
