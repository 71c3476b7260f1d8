"""Commands that only look: functions, describe, versions, status."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import click

from .common import EdgedCommand, print_json, target_options

if TYPE_CHECKING:
    from edged.interfaces import (
        GossipView,
        HolderView,
        ReplicationView,
        SnapshotView,
        VersionView,
    )
    from protocol.function import InitSpec

STATES: Final = {
    "mapped": "native code in memory",
    "artifact": "native code on disk, not in memory",
    "module": "module on disk, no native code",
    "remote": "nothing",
}
"""`state` of a FunctionSummary, for people."""

T = TypeVar("T")
Where = str | None


def _get(path: str, show: Callable[[bytes], None], *, as_json: bool, **where: Where) -> None:
    import msgspec

    from .target import find_target

    data = find_target(**where).control().call("GET", path)
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        show(data)


def _decode(data: bytes, kind: type[T]) -> T:
    import msgspec

    return msgspec.json.decode(data, type=kind)


def function_path(name: str, rest: str = "") -> str:
    return f"/v1/functions/{quote(name, safe='')}{rest}"


@click.command(cls=EdgedCommand)
@target_options
def functions(as_json: bool, **where: Any) -> None:
    """List the functions of the cluster, as one node knows them."""
    _get("/v1/functions", _show_functions, as_json=as_json, **where)


def _show_functions(data: bytes) -> None:
    from edged.interfaces import FunctionSummary

    from .render import ago, short, size, table

    rows = _decode(data, dict[str, list[FunctionSummary]])["functions"]
    table(
        ("name", "abi", "version", "versions", "module", "size", "here", "deployed", "by"),
        (
            (
                f.name,
                f.abi,
                short(f.version),
                f.versions,
                short(f.module),
                size(f.module_bytes),
                f.state,
                ago(f.deployed_at_s),
                f.deployed_by,
            )
            for f in rows
        ),
        empty="no functions yet: edged deploy FILE",
    )


@click.command(cls=EdgedCommand)
@click.argument("name")
@target_options
def describe(name: str, as_json: bool, **where: Any) -> None:
    """Show a function's current version: its module, calling convention and policy."""
    from .target import names_all

    _get(function_path(name), _show_function, as_json=as_json, **where)
    if not as_json and names_all(**where):
        _show_forms(name, where["cluster"])


def _show_forms(name: str, cluster: str | None) -> None:
    """Which each node of the cluster has chosen."""
    from edged.interfaces import FunctionDetail

    from .target import ask_all

    told = []
    for node, answer in ask_all(cluster, function_path(name)):
        if isinstance(answer, bytes):
            form = _decode(answer, FunctionDetail).summary.form
            told.append(f"{node.name} {form or 'none yet'}")
    click.echo(f"forms chosen: {', '.join(told)} (edged explain {name})")


def _show_function(data: bytes) -> None:
    from edged.interfaces import FunctionDetail
    from protocol.function import GUEST_TMP

    from .render import NONE, ago, fields, size

    detail = _decode(data, FunctionDetail)
    summary, spec, policy = detail.summary, detail.spec, detail.spec.policy
    fields(
        (
            ("name", summary.name),
            ("version", f"{summary.version} (of {summary.versions})"),
            ("deployed", f"{ago(summary.deployed_at_s)} by {summary.deployed_by}"),
            ("module", f"{spec.module} ({size(spec.module_bytes)})"),
            (
                "on this node",
                STATES[summary.state] + (f" ({summary.tier})" if summary.tier else ""),
            ),
            ("form chosen", summary.form or f"{NONE}, nobody has asked this node"),
            ("abi", spec.abi),
            ("entrypoint", spec.entrypoint or ("_start" if spec.abi != "export" else NONE)),
            ("args", " ".join(spec.args) or NONE),
            ("methods", " ".join(spec.methods) or "as the abi has them"),
            ("timeout", f"{policy.timeout_ms} ms"),
            ("memory", size(policy.memory_bytes)),
            ("table", f"{policy.table_elements} elements"),
            ("body", size(policy.body_bytes)),
            ("stdout, stderr", f"{size(policy.stdout_bytes)}, {size(policy.stderr_bytes)}"),
            ("concurrency", policy.concurrency),
            (GUEST_TMP, size(policy.tmp_bytes) if policy.tmp_bytes else NONE),
            ("env", " ".join(f"{k}={v}" for k, v in policy.env.items()) or NONE),
            ("mounts", " ".join(f"{m.source}:{m.guest_path}" for m in policy.mounts) or NONE),
            *((("init", _init(spec.init)),) if spec.init else ()),
            *((("snapshot", _snapshot(detail.snapshot)),) if spec.init else ()),
        )
    )
    placed, lacking = detail.replicas, detail.replicas.under_replicated
    if placed.wanted > spec.replicas:
        click.echo(
            f"this version asks for {spec.replicas} replicas; {placed.asked_by}, with the same"
            f" module, for {placed.wanted}: that counts"
        )
    click.echo(
        f"replicas: {placed.wanted} wanted, to be on {', '.join(placed.placed) or NONE}"
        + (f"; missing on {', '.join(placed.missing)}" if placed.missing else "")
        + (f"; UNDER-REPLICATED: {placed.holders} of {placed.wanted}" if lacking else "")
    )
    show_holders(detail.holders)
    if detail.snapshot is not None:
        click.echo("of its snapshot:")
        show_holders(detail.snapshot_holders)


def _init(init: InitSpec) -> str:
    from protocol.function import INIT_NAMES

    calls = ", ".join(
        f"{call.export}({', '.join(json.dumps(one) for one in call.args)})" for call in init.calls
    )
    stubs = f"; stubs: {', '.join(init.stubs)}" if init.stubs else ""
    return (calls or "whichever there is of " + ", ".join(INIT_NAMES)) + stubs


def _snapshot(found: SnapshotView | None) -> str:
    from .render import NONE, size

    if found is None:
        return f"{NONE}, init runs at each invocation"
    delta = f", {size(found.delta_wire_bytes)} as a delta" if found.delta_wire_bytes else ""
    return (
        f"{found.digest} ({size(found.size_bytes)}, {size(found.wire_bytes)} on the wire{delta};"
        f" init {found.init_s:.3g} s; made by {found.made_by})"
        + (f"; REFUSED here: {found.refused}" if found.refused else "")
    )


def show_holders(holders: tuple[HolderView, ...]) -> None:
    from .render import milliseconds, table

    table(
        ("holder", "region", "state", "form", "rtt"),
        (
            (
                h.node + (" (this node)" if h.is_self else ""),
                h.region,
                h.state,
                h.form,
                milliseconds(h.rtt_ms),
            )
            for h in holders
        ),
        empty="no known holder",
    )


def _snapshot_cell(version: VersionView) -> str:
    from .render import NONE, short, size

    found = version.snapshot
    if found is None:
        return NONE if version.init is None else "none: init per call"
    delta = f" ({size(found.delta_wire_bytes)} as delta)" if found.delta_wire_bytes else ""
    return f"{short(found.digest)} {size(found.size_bytes)}{delta} by {found.made_by}"


@click.command(cls=EdgedCommand)
@click.argument("name")
@target_options
def versions(name: str, as_json: bool, **where: Any) -> None:
    """List a function's versions, newest first."""
    _get(function_path(name, "/versions"), _show_versions, as_json=as_json, **where)


def _show_versions(data: bytes) -> None:
    from edged.interfaces import VersionView

    from .render import ago, short, size, table

    rows = _decode(data, dict[str, list[VersionView]])["versions"]
    table(
        ("", "version", "abi", "module", "size", "snapshot", "deployed", "by"),
        (
            (
                "*" if v.current else "",
                short(v.version),
                v.abi,
                short(v.module),
                size(v.module_bytes),
                _snapshot_cell(v),
                ago(v.deployed_at_s),
                v.deployed_by,
            )
            for v in rows
        ),
        empty="no versions",
    )


@click.command(cls=EdgedCommand)
@target_options
def status(as_json: bool, **where: Any) -> None:
    """Show one node: its addresses, members, holdings and load."""
    _get("/v1/status", _show_status, as_json=as_json, **where)


def _show_status(data: bytes) -> None:
    from edged.interfaces import StatusView

    from .render import duration, fields, percent, short, size

    view = _decode(data, StatusView)
    gossip = view.gossip
    found = view.repair
    repaired = (
        f"{found.temps_removed} temps removed, {len(found.missing)} missing,"
        f" {len(found.corrupt)} corrupt, {len(found.orphans_adopted)} adopted"
        + (", index rebuilt" if found.index_rebuilt else "")
    )
    fields(
        (
            ("node", f"{view.node} ({view.node_id})"),
            ("state", view.state),
            ("edged", f"{view.edged}, up {duration(view.uptime_s)}"),
            ("region", view.region),
            ("gateway", view.gateway_url),
            ("gossip", view.gossip_address),
            ("target", f"{view.target} (artifact key {short(view.artifact_key)})"),
            ("members", ", ".join(f"{n} {state}" for state, n in view.members.items())),
            ("functions", f"{view.functions} (catalog {short(view.catalog)})"),
            ("blobs", f"{view.blobs}, {size(view.blob_bytes)}"),
            ("certificate", _expiry(view.trust_expires_s)),
            ("replicas", _replicas(view.replication)),
            ("running now", f"{view.running}, load {percent(gossip.load)}"),
            ("health", "well" if not gossip.health else f"{gossip.health} of 8 (0 is well)"),
            ("probes", _probes(gossip.probing)),
            ("suspicions", _suspicions(gossip.probing)),
            ("datagrams", _traffic(gossip)),
            ("bytes sent", _by_size(gossip.message_bytes["out"])),
            ("bytes received", _by_size(gossip.message_bytes["in"])),
            ("queues", _counts(gossip.queues)),
            ("lost to overflow", _counts(gossip.lost)),
            ("refused", _counts(gossip.refused)),
            ("syncs", _counts(gossip.syncs)),
            ("repair at start", repaired),
        )
    )


def _expiry(expires_s: float) -> str:
    import time

    left_days = (expires_s - time.time()) / 86_400
    if left_days <= 0:
        return "has ended: peers refuse this node; edged cluster issue renews, then restart"
    soon = "; edged cluster issue renews, then restart" if left_days <= 30 else ""
    return f"valid for {left_days:.0f} days{soon}"


def _replicas(found: ReplicationView) -> str:
    lacking = f"{found.under_replicated} of {found.modules} modules under-replicated"
    return f"{lacking}; {found.repairing} being fetched here, {found.waiting} waiting"


def _probes(found: dict[str, int]) -> str:
    return (
        f"{found['probes']}: answered {found['acks_direct']} directly,"
        f" {found['acks_indirect']} through helpers, {found['acks_stream']} by stream;"
        f" {found['probes_failed']} failed, {found['nacks']} nacks"
    )


def _suspicions(found: dict[str, int]) -> str:
    return (
        f"{found['suspicions']} ({found['suspicions_raised']} raised here,"
        f" {found['suspicions_refuted']} refuted); {found['deaths']} deaths,"
        f" {found['false_deaths']} of them false; {found['refutations']} refutations of its own"
    )


def _traffic(gossip: GossipView) -> str:
    from .render import size

    return ", ".join(
        f"{count} {direction} ({size(gossip.datagram_bytes[direction])})"
        for direction, count in gossip.datagrams.items()
    )


def _by_size(found: dict[str, int]) -> str:
    from .render import NONE, size

    ordered = sorted(found.items(), key=lambda row: -row[1])
    return ", ".join(f"{kind} {size(count)}" for kind, count in ordered if count) or NONE


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items() if count) or "none"
