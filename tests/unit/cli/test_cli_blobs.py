"""`edged blobs`, `transfers`, `gc`, `verify`, `pin` and `unpin` against one node."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import pytest

from edged.cli import blobs as blobs_module
from edged.cli import transfers as transfers_module
from edged.interfaces import Finding, GcRow, TransferView
from protocol.ids import Digest
from tests.unit.cli.node_thread import NodeThread

A, B = Digest("aa" * 32), Digest("bb" * 32)
FETCH = TransferView(
    *("fetch", A, ("hello@00112233",), "running", True, 512_000, 1_024_000, 256_000.0),
    *(2.0, ("n2", "n3"), 1e9),
)
QUEUED = TransferView("fetch", B, (), "queued", False, 0, None, 0.0, None, (), 1e9)
UPLOAD = TransferView("upload", A, (), "running", False, 2048, 1024, 0.0, None, ("n4",), 1e9)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "POLL_S", 0.0)
    monkeypatch.setattr(blobs_module, "PAGE", 2)


def test_blobs(cli: Any, as_json: Any, node: NodeThread) -> None:
    assert "no blobs on this node" in cli("blobs").stdout
    digests = sorted(node.upkeep.add(b"%d" % number) for number in range(5))
    assert [row["digest"] for row in as_json("blobs")["blobs"]] == digests  # three pages
    shown = cli("blobs").stdout
    assert all(digest[:12] in shown for digest in digests)
    assert "hello@00112233 +3" in shown
    assert "5 blobs, 5 B" in shown
    assert "no blobs" in cli("blobs", "--kind", "artifact").stdout
    assert cli("blobs", "--kind", "nothing").exit_code == 2


def test_pins(cli: Any, as_json: Any, node: NodeThread) -> None:
    digest = node.upkeep.add(b"x")
    assert f"digest {digest} is pinned\n" in cli("pin", digest).stdout
    assert "is pinned already" in cli("pin", digest).stdout
    listed = cli("pin").stdout
    assert digest in listed
    assert "hello" in listed
    node.upkeep.needed_by = ("f", "g")
    assert "is not pinned any more\nit stays for f g\n" in cli("unpin", digest).stdout
    assert cli("unpin", digest).stdout.endswith("was not pinned\n")
    node.upkeep.needed_by = ()
    assert not as_json("unpin", digest)["changed"]
    refused = cli("pin", "no/such thing")
    assert refused.exit_code == 4
    assert "edged blobs lists" in refused.stderr
    assert cli("unpin").exit_code == 2


def test_gc(cli: Any, as_json: Any, node: NodeThread) -> None:
    done = cli("gc")
    assert "removed 0 blobs, 0 B" in done.stdout
    assert "1 unneeded but in grace" in done.stdout
    assert "the grace is 60 min; the first of them goes in 12 s" in done.stderr
    node.upkeep.unneeded = (GcRow(A, "module", 2048, "nothing names it"),)
    shown = cli("gc", "-n", "--grace", 0)
    assert "would remove 1 blobs, 2 KiB" in shown.stdout
    assert "nothing names it" in shown.stdout
    assert node.upkeep.collections == [(False, None), (True, 0)]
    assert as_json("gc")["bytes_freed"] == 2048
    for wrong in ("-1", "x", "1.5"):
        assert cli("gc", "--grace", wrong).exit_code == 2
    assert "an hour is 3600" in cli("gc", "--grace", "1h").stderr
    node.upkeep.collecting = True
    assert cli("gc").exit_code == 1


def test_verify(cli: Any, node: NodeThread) -> None:
    assert "no check since the node started" in cli("verify", "--status").stdout
    running = msgspec.structs.replace(
        node.upkeep.check, state="running", started_at_s=1e9, blobs=3, bytes=3000
    )
    done = msgspec.structs.replace(
        *(running,),
        state="done",
        blobs_checked=3,
        bytes_checked=3000,
        finished_at_s=1e9 + 2,
        last_complete_at_s=1e9,
    )
    node.upkeep.steps = [running, running, done]
    clean = cli("verify")
    assert clean.exit_code == 0
    assert "done: 3 of 3 blobs, 2.93 KiB in 2 s, none damaged" in clean.stdout
    mended = Finding(A, "module", "corrupt", True, "fetched from peers")
    node.upkeep.steps = [msgspec.structs.replace(done, findings=(mended,))]
    assert "fetched from peers" in cli("verify").stdout
    lost = Finding(B, "module", "missing", False, "no reachable peer holds it")
    node.upkeep.steps = [msgspec.structs.replace(done, findings=(mended, lost))]
    found = cli("verify", "--json")
    assert found.exit_code == 1
    assert [row["repaired"] for row in json.loads(found.stdout)["findings"]] == [True, False]
    node.upkeep.steps = [msgspec.structs.replace(running, state="stopped", finished_at_s=1e9 + 1)]
    assert cli("verify").exit_code == 1


def test_transfers(cli: Any, as_json: Any, node: NodeThread) -> None:
    assert "n1 neither fetches nor sends anything now" in cli("transfers").stdout
    node.upkeep.moving = (FETCH, QUEUED, UPLOAD)
    shown = cli("transfers").stdout
    assert "500 KiB of 1000 KiB" in shown
    assert "250 KiB/s" in shown
    assert "n2 n3" in shown
    assert "queued" in shown
    assert len(as_json("transfers")["transfers"]) == 3
    assert cli("transfers", "--interval", "0").exit_code == 2


class _Enough(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("how", ["plain", "json", "terminal"])
def test_watching_transfers(
    cli: Any, node: NodeThread, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    node.upkeep.moving = (FETCH, QUEUED)
    monkeypatch.setattr(transfers_module, "is_terminal", lambda: how == "terminal")
    looks = threading.Semaphore(2)

    def sleep(_seconds: float) -> None:
        if not looks.acquire(blocking=False):
            raise _Enough

    monkeypatch.setattr(transfers_module.time, "sleep", sleep)
    done = cli("transfers", "--watch", *(["--json"] if how == "json" else []))
    assert done.exit_code == 0
    if how == "json":
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [len(line["transfers"]) for line in lines] == [2, 2, 2]
    elif how == "plain":
        assert done.stdout.count("from n2 n3") == 3
        assert done.stdout.count("queued, from nobody yet") == 3
        node.upkeep.moving = ()
        looks.release(2)
        idle = cli("transfers", "--watch").stdout
        assert (
            idle.count("n1 neither fetches nor sends anything now") == len(idle.splitlines()) == 1
        )
    else:
        assert A[:8] in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80
