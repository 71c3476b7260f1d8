"""One node, whole: its life from start to graceful stop. Nobody imports this but `cli`.

Start: identity, data directory, runtime, sockets, peers, operator API, gateway; the gateway comes
last, so that whoever is answered is answered by a whole node. Stop is the reverse: the gateway
drains to a deadline, the operator API ends, peers are told, the store closes.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio
from starlette.types import ASGIApp

from .assembly import Parts
from .clock import Clock
from .config import Config, GatewaySection, RuntimeSection
from .control import make_control_app
from .errors import ConfigError, IdentityTaken
from .files import read_file, write_file
from .gateway import REFUSED
from .http import HttpHooks, HttpLimits, HttpServer, serve
from .interfaces import NodeState, SnapshotLimits
from .listening import Addresses, Sockets, bind_all
from .logfile import own_log_file
from .resident import drop_code
from .runtime.runtime import WasmtimeRuntime, open_runtime
from .snapshot.api import Snapshotter
from .store import BlobStore, no_step, open_store
from .switches import Switches
from .telemetry import Log, Metrics, make_log
from .trust import load_trust

__all__ = ["Addresses", "Node", "run_node"]

GENERATION: Final = "generation"
RUN_FILE: Final = "run.json"
CONTROL_DRAIN_S: Final = 2.0
CATCH_UP_S: Final = 2.0
"""Before the gateway opens: what was deployed while this node was away should not be 404 here. Its
port is bound, so whoever connects waits."""
LEAVE_TIMEOUT_S: Final = 2.0
UPLOAD_TIMEOUT_S: Final = 600.0
"""256 MiB at 3.5 Mbit/s: an operator on a slow link may still deploy."""
PEER_HEADER_BYTES: Final = 2048
PEER_HEADERS: Final = 16
"""What forwarding adds to a request, at most (SPEC §12.2)."""
PEER_CONNECTIONS_MAX: Final = 256
PEER_IDLE_S: Final = 120.0
"""Twice what a peer keeps a connection without a request (GatewayPoolLimits.idle_s), also one that
has never carried any."""
SNAPSHOT_NICENESS: Final = 5
"""A third of a normal process's share, while there is one: an operator waits for the deploy."""
TOKEN_BYTES: Final = 32
TOKEN_CHARACTERS_MIN: Final = 16


def make_snapshotter(section: RuntimeSection) -> Snapshotter:
    """Bounded as compiling is, and behind whatever answers requests. Raises ConfigError."""
    limits = SnapshotLimits(
        compile_timeout_s=section.compile_timeout_s,
        memory_bytes=section.compile_memory_bytes,
        niceness=SNAPSHOT_NICENESS,
    )
    return Snapshotter(target=section.target, limits=limits)


class Node:
    """Many may live in one process; each owns its data directory."""

    def __init__(self, config: Config, *, log: Log | None = None) -> None:
        self._config = config
        self._log = log or make_log(config.node.name, level=config.node.log_level)
        self._metrics = Metrics()
        self._stop = trio.Event()
        self._identity_taken: IdentityTaken | None = None
        self._state: NodeState = "starting"
        self._switches = Switches(self._log) if config.lab.enabled else None
        self._clock = Clock() if self._switches is None else self._switches.clock

    def stop(self) -> None:
        """Begins the graceful stop; `run` returns when it is done. Idempotent."""
        self._stop.set()

    def _end_shunned(self, error: IdentityTaken) -> None:
        """Alone it would take deploys for a cluster of one."""
        self._identity_taken = error
        self.stop()

    def state(self) -> NodeState:
        return self._state

    async def run(
        self, *, task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until `stop` or cancellation.

        Raises ConfigError, DataDirLocked, StoreError before it has started; IdentityTaken when it
        has stopped."""
        config, log = self._config, self._log
        trust = load_trust(config.path(config.trust.directory))
        if trust.credential.name != config.node.name:
            raise ConfigError(
                f"node.name = {config.node.name!r}, but its credential was issued to "
                f"{trust.credential.name!r}: use that name, or issue the node again"
            )
        store = await open_store(
            config.data_dir,
            zstd_level=config.store.zstd_level,
            min_free_bytes=config.store.min_free_bytes,
            log=log,
            step=no_step if self._switches is None else self._switches.disk.step,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            runtime = open_runtime(
                config.runtime,
                mounts={name: config.path(path) for name, path in config.mounts.items()},
                scratch_dir=config.data_dir / "scratch",
                log=log,
            )
            stack.callback(runtime.close)
            sockets = await bind_all(config, serve="serve" in trust.credential.roles)
            stack.callback(sockets.close)
            parts = Parts(
                config=config,
                trust=trust,
                store=store,
                runtime=runtime,
                snapshotter=make_snapshotter(config.runtime),
                sockets=sockets,
                generation=await next_generation(store, log, self._clock),
                state=self.state,
                shunned=self._end_shunned,
                clock=self._clock,
                metrics=self._metrics,
                log=log,
            )
            stack.callback(parts.functions.close)
            if self._switches is not None:
                self._switches.note = parts.events.add
            await parts.recall()
            await self._serve(parts, runtime, sockets, task_status)
        if self._identity_taken is not None:
            raise self._identity_taken

    async def _serve(
        self,
        parts: Parts,
        runtime: WasmtimeRuntime,
        sockets: Sockets,
        task_status: trio.TaskStatus[Addresses],
    ) -> None:
        config, log = self._config, self._log
        control_app = self._control_app(parts)
        hooks = HttpHooks(
            rejected=lambda reason: self._metrics.http_rejected.labels(reason).inc(),
            headers=((b"x-edged-node", config.node.name.encode()),),
            wall_s=self._clock.now_s,
        )
        listen = partial(serve, log=log, hooks=hooks)
        async with trio.open_nursery() as nursery:
            if parts.shaper is not None:
                await nursery.start(parts.shaper.run)
            await nursery.start(runtime.run)
            await nursery.start(parts.activation.run)
            await nursery.start(parts.choices.run)
            await nursery.start(parts.planning.run)
            await nursery.start(parts.making.run)
            await nursery.start(parts.snapshots.run)
            await nursery.start(parts.load.run)
            if parts.auditor is not None:
                await nursery.start(parts.auditor.run)
            await nursery.start(parts.expiry.run)
            await nursery.start(parts.exchange.run)
            await nursery.start(parts.forwarding.pool.run)
            peers: HttpServer | None = None
            if sockets.gateway is not None:
                limits, unserved = peer_limits(config.gateway), ((REFUSED, b"unserved"),)
                told = msgspec.structs.replace(hooks, unserved_headers=unserved)
                peers = await nursery.start(
                    partial(serve, parts.gateway, [], limits, log=log, hooks=told)
                )
            streams = partial(parts.streams.run, sockets.gossip.listeners, gateway=peers)
            await nursery.start(streams)
            await nursery.start(parts.gossip_service.run)
            await nursery.start(parts.acquaintances.run)
            await nursery.start(parts.replication.run)
            await nursery.start(parts.housekeeping.run)
            await nursery.start(parts.evictor.run)
            known = parts.acquaintances.recall()
            parts.gossip_service.join(config.gossip.seeds, known)
            control: HttpServer = await nursery.start(
                listen, control_app, [sockets.control], CONTROL_LIMITS
            )
            gateway: HttpServer | None = None
            if known or set(config.gossip.seeds) - {sockets.addresses.gossip_address}:
                with trio.move_on_after(CATCH_UP_S):
                    await parts.gossip_service.caught_up.wait()
            if sockets.gateway is not None:
                gateway = await nursery.start(
                    listen, parts.gateway, [sockets.gateway], gateway_limits(config.gateway)
                )
            write_run_file(config.data_dir / RUN_FILE, sockets.addresses)
            self._state = "ready"
            drop_code()
            parts.events.add("node-ready", config.node.name)
            log.info("ready", **msgspec.structs.asdict(sockets.addresses))
            task_status.started(sockets.addresses)
            await self._stop.wait()
            await self._drain(parts, [each for each in (gateway, peers) if each], control)
            nursery.cancel_scope.cancel()

    def _control_app(self, parts: Parts) -> ASGIApp:
        """Raises ConfigError."""
        config = self._config
        return make_control_app(
            parts.operations,
            explainer=parts.explaining,
            events=parts.events,
            keys=parts.keys,
            upkeep=parts.housekeeping.upkeep,
            builders=parts.builders,
            lab=self._switches,
            links=parts.shaper,
            token=read_token(config.path(config.control.token_file)),
            log=self._log,
            metrics=self._metrics,
        )

    async def _drain(
        self, parts: Parts, gateways: Sequence[HttpServer], control: HttpServer
    ) -> None:
        self._state = "draining"
        self._log.info("draining", running=parts.functions.running)
        parts.events.add("node-draining", self._config.node.name)
        parts.events.close()
        parts.journal.end_followers()
        parts.activation.drain()
        parts.making.drain()
        cut = 0
        deadline = trio.current_time() + self._config.gateway.drain_timeout_s

        async def drain(server: HttpServer) -> None:
            nonlocal cut
            cut += await server.drain(deadline)

        async with trio.open_nursery() as nursery:
            for server in gateways:
                nursery.start_soon(drain, server)
        await control.drain(trio.current_time() + CONTROL_DRAIN_S)
        parts.streams.stop()
        await parts.acquaintances.save()
        with trio.move_on_after(LEAVE_TIMEOUT_S):
            await parts.gossip_service.leave()
        await parts.streams.drained()
        (self._config.data_dir / RUN_FILE).unlink(missing_ok=True)
        self._log.info("stopped", requests_cut=cut)


CONTROL_LIMITS: Final = HttpLimits(
    header_count_max=64, connections_max=64, body_timeout_s=UPLOAD_TIMEOUT_S
)


def gateway_limits(section: GatewaySection) -> HttpLimits:
    return HttpLimits(
        header_bytes_max=section.header_bytes_max,
        request_line_bytes_max=min(section.header_bytes_max, HttpLimits().request_line_bytes_max),
        header_count_max=section.header_count_max,
        connections_max=section.connections_max,
        header_timeout_s=section.header_timeout_s,
        body_timeout_s=section.body_timeout_s,
        idle_timeout_s=section.idle_timeout_s,
        write_stall_s=section.write_stall_s,
    )


def peer_limits(section: GatewaySection) -> HttpLimits:
    """Of what peers pass on: a client's request with some fields more, on connections that stay."""
    public = gateway_limits(section)
    return msgspec.structs.replace(
        public,
        header_bytes_max=public.header_bytes_max + PEER_HEADER_BYTES,
        header_count_max=public.header_count_max + PEER_HEADERS,
        connections_max=PEER_CONNECTIONS_MAX,
        header_timeout_s=PEER_IDLE_S,
        idle_timeout_s=PEER_IDLE_S,
        says_farewell=True,
    )


async def next_generation(store: BlobStore, log: Log, clock: Clock) -> int:
    """A boot epoch above every one before, durable before it is used: nonces of the seal must
    never repeat. Unix milliseconds, so that a lost data directory does not turn it back."""
    before = int.from_bytes(store.get_meta(GENERATION) or b"")
    now_ms = clock.now_ms()
    if before >= now_ms:
        log.warning(
            "the clock was set back since the last start", behind_s=(before - now_ms) / 1000
        )
    generation = max(before + 1, now_ms)
    await store.set_meta(GENERATION, generation.to_bytes(8))
    return generation


def read_token(path: Path) -> str:
    """The operator's bearer token; made, readable by the owner only, if there is none.

    Raises ConfigError."""
    if not path.exists():
        write_file(path, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n", secret=True)
    try:
        token = read_file(path, secret=True).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"control.token_file = {str(path)!r}: not ASCII text") from error
    if len(token) < TOKEN_CHARACTERS_MIN:
        raise ConfigError(
            f"control.token_file = {str(path)!r}: shorter than {TOKEN_CHARACTERS_MIN} characters; "
            "remove the file and start again to have one made"
        )
    return token


def write_run_file(path: Path, addresses: Addresses) -> None:
    """Tells scripts where the node listens; whole or absent."""
    document = {"pid": os.getpid()} | msgspec.structs.asdict(addresses)
    write_file(path, msgspec.json.encode(document), secret=False)


def _raise_descriptor_limit() -> None:
    """Connections, mapped modules and compiles take descriptors; the usual soft limit of 1,024 is
    for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run_node(config: Config) -> None:
    """Runs a node until SIGTERM or SIGINT, then stops it gracefully; a second signal stops it at
    once."""
    _raise_descriptor_limit()
    stream = own_log_file(os.environ)
    node = Node(config, log=make_log(config.node.name, level=config.node.log_level, stream=stream))
    async with trio.open_nursery() as nursery:

        async def watch(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                task_status.started()
                async for _ in signals:
                    if node.state() == "draining":
                        nursery.cancel_scope.cancel()
                    node.stop()

        await nursery.start(watch)
        await node.run()
        nursery.cancel_scope.cancel()
