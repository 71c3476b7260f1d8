"""What a node has on disk: `edged blobs`, `pin`, `unpin`, `gc`, `verify`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from .common import EXIT_FAILED, EdgedCommand, print_json, progress_console, target_options

if TYPE_CHECKING:
    from edged.interfaces import BlobsView, BlobView, GcView, PinsView, VerifyView

    from .client import Client

KINDS: Final = ("module", "snapshot", "artifact", "manifest")
PAGE: Final = 1000
POLL_S: Final = 0.2
GRACE_S_MAX: Final = 366 * 86_400
REASONS: Final = {
    "wanted": "that live versions of functions need",
    "recent": "stored or used in the last half minute",
    "in grace": "unneeded but in grace",
}
"""For people."""


@click.command(cls=EdgedCommand)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Only these; default: all but manifests, which are small and follow their blobs.",
)
@target_options
def blobs(kind: str | None, as_json: bool, **where: Any) -> None:
    """List the blobs on a node's disk.

    What they are, which versions of functions need them, and how many nodes hold them."""
    from .target import find_target

    client = find_target(**where).control()
    rows = [
        blob
        for page in _pages(client)
        for blob in page.blobs
        if (blob.kind == kind if kind else as_json or blob.kind != "manifest")
    ]
    if as_json:
        print_json({"blobs": rows})
        return
    _show_blobs(sorted(rows, key=lambda b: (KINDS.index(b.kind), b.functions, -b.size_bytes)))


def _pages(client: Client) -> Iterator[BlobsView]:
    import msgspec

    from edged.interfaces import BlobsView

    after = ""
    while True:
        path = f"/v1/blobs?limit={PAGE}" + (f"&after={after}" if after else "")
        page = msgspec.json.decode(client.call("GET", path), type=BlobsView)
        yield page
        if page.next_after is None:
            return
        after = page.next_after


def _show_blobs(rows: list[BlobView]) -> None:
    from .render import NONE, ago, short, size, table

    table(
        (
            "digest",
            "kind",
            "size",
            "wire",
            "of",
            "needed by",
            "holders",
            "pinned",
            "mapped",
            "stored",
        ),
        (
            (
                short(b.digest),
                b.kind,
                size(b.size_bytes),
                size(b.wire_bytes),
                _origin(b),
                _needed_by(b),
                NONE if b.holders is None else b.holders,
                "yes" if b.pinned else "",
                "yes" if b.mapped else "",
                ago(b.created_at_s),
            )
            for b in rows
        ),
        empty="no blobs on this node",
    )
    if rows:
        total = sum(b.size_bytes + (b.wire_bytes or 0) for b in rows)
        unneeded = [b for b in rows if not b.functions and not b.pinned]
        click.echo(f"{len(rows)} blobs, {size(total)} with wire forms")
        if unneeded:
            click.echo(f"hint: edged gc removes what no function needs ({len(unneeded)})", err=True)


def _origin(blob: BlobView) -> str:
    from .render import NONE, short

    if blob.module is None:
        return NONE
    by = f" by {', '.join(blob.made_by)}" if blob.made_by else ""
    return short(blob.module) + by


def _needed_by(blob: BlobView) -> str:
    names = " ".join(blob.functions) or "nothing"
    return names + (f" +{blob.functions_more}" if blob.functions_more else "")


# ---------------------------------------------------------------- pins
@click.command(cls=EdgedCommand)
@click.argument("target", required=False, metavar="[DIGEST|FUNCTION]")
@target_options
def pin(target: str | None, as_json: bool, **where: Any) -> None:
    """Keep a blob or a function on a node.

    Of a function, all versions. What is pinned is neither collected nor evicted. 8 digits of a
    digest are enough. Without an argument: list what is pinned."""
    _pin("PUT", target, as_json=as_json, **where)


@click.command(cls=EdgedCommand)
@click.argument("target", metavar="DIGEST|FUNCTION")
@target_options
def unpin(target: str, as_json: bool, **where: Any) -> None:
    """Let a blob or a function go again."""
    _pin("DELETE", target, as_json=as_json, **where)


def _pin(method: str, target: str | None, *, as_json: bool, **where: Any) -> None:
    import msgspec

    from edged.interfaces import PinChange, PinsView

    from .target import find_target

    client = find_target(**where).control()
    path = "/v1/pins" if target is None else f"/v1/pins/{quote(target, safe='')}"
    data = client.call("GET" if target is None else method, path)
    if as_json:
        print_json(msgspec.Raw(data))
    elif target is None:
        _show_pins(msgspec.json.decode(data, type=PinsView))
    else:
        change = msgspec.json.decode(data, type=PinChange)
        if method == "PUT":
            done = "is pinned" if change.changed else "is pinned already"
        else:
            done = "is not pinned any more" if change.changed else "was not pinned"
        click.echo(f"{change.kind} {change.target} {done}")
        if change.needed_by and change.changed:
            click.echo(f"it stays for {' '.join(change.needed_by)}")


def _show_pins(view: PinsView) -> None:
    from .render import table

    rows = [("function", name) for name in view.functions]
    rows += [("digest", digest) for digest in view.digests]
    table(("kind", "pinned"), rows, empty="nothing is pinned on this node")


# ---------------------------------------------------------------- collecting
class _Seconds(click.IntRange):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(
                f"{value!r} is not a whole number of seconds from {self.min} to {self.max};"
                " an hour is 3600",
                param,
                ctx,
            )


@click.command(cls=EdgedCommand)
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what would go.")
@click.option(
    "--grace",
    "grace_s",
    type=_Seconds(0, GRACE_S_MAX),
    metavar="SECONDS",
    help="Take what nothing has needed for so long; default: the node's store.gc_grace_s.",
)
@target_options
def gc(dry_run: bool, grace_s: int | None, as_json: bool, **where: Any) -> None:
    """Remove blobs that no function needs.

    Nodes do it by themselves now and then. What is pinned, in use, or was stored in the last half
    minute stays, also with --grace 0."""
    import msgspec

    from edged.interfaces import GcView

    from .target import find_target

    client = find_target(**where).control()
    grace = "" if grace_s is None else f"&grace_s={grace_s}"
    data = client.call("POST", f"/v1/gc?dry_run={int(dry_run)}{grace}")
    if as_json:
        print_json(msgspec.Raw(data))
    else:
        _show_collection(msgspec.json.decode(data, type=GcView))


def _show_collection(view: GcView) -> None:
    from .render import duration, short, size, table

    if view.collected:
        table(
            ("digest", "kind", "size", "why"),
            ((short(r.digest), r.kind, size(r.bytes_freed), r.why) for r in view.collected),
            empty="",
        )
    verb = "would remove" if view.dry_run else "removed"
    click.echo(f"{verb} {len(view.collected)} blobs, {size(view.bytes_freed)}")
    kept = ", ".join(f"{count} {REASONS.get(why, why)}" for why, count in view.kept.items())
    if kept:
        click.echo(f"kept: {kept}")
    if view.due_in_s is not None:
        grace = duration(view.grace_s)
        click.echo(
            f"hint: the grace is {grace}; the first of them goes in"
            f" {duration(max(0.0, view.due_in_s))}, or with a shorter --grace",
            err=True,
        )


# ---------------------------------------------------------------- verifying
@click.command(cls=EdgedCommand)
@click.option("--status", "only_look", is_flag=True, help="Only tell how the newest check went.")
@target_options
def verify(only_look: bool, as_json: bool, **where: Any) -> None:
    """Check every byte on a node's disk.

    What is damaged is repaired, from peers where it must; what belongs on the node and is not there
    is fetched. Nodes do it by themselves, slowly, each week. Exit code 1 if something could not be
    repaired.
    Ctrl-C stops waiting, not the check."""
    import msgspec

    from edged.interfaces import VerifyView

    from .target import find_target

    client = find_target(**where).control()

    def look(method: str) -> VerifyView:
        return msgspec.json.decode(client.call(method, "/v1/verify"), type=VerifyView)

    view = look("GET" if only_look else "POST")
    if not only_look:
        view = _wait_verified(view, lambda: look("GET"))
    if as_json:
        print_json(view)
    else:
        _show_verification(view)
    if any(not finding.repaired for finding in view.findings) or view.state == "stopped":
        raise SystemExit(EXIT_FAILED)


def _wait_verified(view: VerifyView, look: Any) -> VerifyView:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    started_at_s = view.started_at_s
    with Progress(*columns, console=progress_console(), transient=True) as shown:
        task = shown.add_task("verifying", total=view.bytes)
        while view.state == "running" and view.started_at_s == started_at_s:
            shown.update(task, completed=view.bytes_checked, total=view.bytes)
            time.sleep(POLL_S)
            view = look()
    return view


def _show_verification(view: VerifyView) -> None:
    from .render import ago, duration, short, size, table

    if view.findings:
        table(
            ("digest", "kind", "found", "repaired", "how"),
            (
                (short(f.digest), f.kind, f.found, "yes" if f.repaired else "no", f.outcome)
                for f in view.findings
            ),
            empty="",
        )
    if view.findings_more:
        click.echo(f"and {view.findings_more} more")
    if view.state == "never":
        click.echo("no check since the node started")
    else:
        took = (view.finished_at_s or time.time()) - (view.started_at_s or 0.0)
        absent = sum(finding.found == "absent" for finding in view.findings)
        damaged = len(view.findings) + view.findings_more - absent
        click.echo(
            f"{view.state}: {view.blobs_checked} of {view.blobs} blobs,"
            f" {size(view.bytes_checked)} in {duration(took)}, {damaged or 'none'} damaged"
            + (f"; {absent} that belong here were not" if absent else "")
        )
    if view.stopped_by is not None:
        click.echo(f"the check stopped: {view.stopped_by}")
    if view.quarantine_files:
        click.echo(
            f"quarantine/ keeps {view.quarantine_files} damaged files,"
            f" {size(view.quarantine_bytes)}, for a look at them"
        )
    if view.last_complete_at_s is not None and view.state != "done":
        click.echo(f"the last complete check was {ago(view.last_complete_at_s)}")
