"""One node of the swarm benchmark: run in its namespace, told by lines of JSON on stdin.

`{"do": "seed", "path": …}`, `{"do": "get", "what": …, "path": …}` and `{"do": "drop"}`, each
answered by one line. What `seed` answers is what `get` is given; `drop` removes what came of
either. Kinds: edged, libtorrent, libtorrent-tuned, aria2, http.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PATIENCE_S = 40.0


def counters() -> dict[str, int]:
    root = Path("/sys/class/net/eth0/statistics")
    return {name: int((root / name).read_text()) for name in ("tx_bytes", "tx_packets")}


def spent() -> dict[str, float]:
    """CPU seconds of this process."""
    times = os.times()
    return {"cpu_s": times.user + times.system, "kernel_s": times.system}


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


# ------------------------------------------------------------ edged
def edged(options: dict[str, Any]) -> None:
    import trio

    trio.run(edged_node, options)


async def edged_node(options: dict[str, Any]) -> None:
    import trio

    from edged.interfaces import Peer
    from edged.network import ExchangeService
    from edged.network.server import StreamServer
    from edged.store import open_store
    from edged.telemetry import Metrics, make_log
    from edged.trust import load_trust
    from protocol.ids import Digest, NodeId
    from protocol.manifest import manifest_digest

    class NoSync:
        async def answer_sync(self, peer: NodeId, body: bytes) -> bytes:
            del peer
            return body

    root = Path(options["root"])
    log = make_log(options["name"], level="error")
    trust = load_trust(root / options["name"])
    store = await open_store(
        root / f"{options['name']}-data", zstd_level=1, min_free_bytes=0, log=log
    )
    metrics = Metrics()
    peers: dict[NodeId, Peer] = {}
    for name, address in options["nodes"].items():
        node_id = load_trust(root / name).node_id
        if name != options["name"]:
            at = (address, options["port"])
            peers[node_id] = Peer(node_id, name, "local", at, at, "", rtt_s=None)
    seed = next((peer for peer in peers.values() if peer.name == "n0"), None)
    exchange = ExchangeService(
        trust=trust, store=store, holders=lambda _: [seed] if seed else [],
        find_peer=peers.get, metrics=metrics, log=log,
    )  # fmt: skip
    server = StreamServer(
        trust=trust, source=store, fetching=exchange, sync=NoSync(), metrics=metrics, log=log
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(exchange.run)
        address = options["nodes"][options["name"]]
        await nursery.start(
            server.run, await trio.open_tcp_listeners(options["port"], host=address)
        )
        say(ready=True)
        async for line in trio.wrap_file(sys.stdin):
            order = json.loads(line)
            if order["do"] == "count":
                say(**counters(), **spent())
            elif order["do"] == "seed":
                data = await trio.Path(order["path"]).read_bytes()
                info = await store.put(data, kind="module")
                blob = info.digest
                manifest = await store.make_manifest(info.digest)
                say(what=[info.digest, manifest_digest(manifest)])
            elif order["do"] == "drop":
                await store.delete(blob)
                say()
            else:
                blob, manifest_name = (Digest(text) for text in order["what"])
                await exchange.fetch(blob, manifest_name, progress=lambda _d, _t: None)
                say(done=time.monotonic())
        nursery.cancel_scope.cancel()
    await store.close()


# ------------------------------------------------------------ libtorrent
def libtorrent(options: dict[str, Any], *, tuned: bool) -> None:
    sys.path.insert(0, options["packages"])
    import libtorrent as lt

    own = options["nodes"][options["name"]]
    settings: dict[str, Any] = {
        "listen_interfaces": f"{own}:{options['port']}",
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "allow_multiple_connections_per_ip": True,
    }
    if tuned:
        settings |= {
            "enable_outgoing_utp": False,
            "enable_incoming_utp": False,
            "unchoke_slots_limit": -1,
            "connection_speed": 200,
            "request_queue_time": 1,
            "peer_turnover_interval": 3600,
        }
    session = lt.session(settings)
    say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "count":
            say(**counters(), **spent())
        elif order["do"] == "seed":
            path = Path(order["path"])
            encoded = make_torrent(lt, path, 64 * 1024 if tuned else 0)
            handle = add(lt, session, encoded, path.parent, seed=True)
            say(what=encoded.hex())
        elif order["do"] == "drop":
            session.remove_torrent(handle, lt.session.delete_files)
            say()
        else:
            place = Path(order["path"])
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            handle = add(lt, session, bytes.fromhex(order["what"]), place, seed=False)
            for name, address in options["nodes"].items():
                if name != options["name"]:
                    handle.connect_peer((address, options["port"]), 0, 0 if tuned else 0xD)
            patience = time.monotonic() + PATIENCE_S
            while not handle.status().is_seeding and time.monotonic() < patience:
                time.sleep(0.01)
            say(done=time.monotonic() if handle.status().is_seeding else None)


def make_torrent(lt: Any, path: Path, piece_bytes: int, tracker: str = "") -> bytes:
    files = lt.file_storage()
    lt.add_files(files, str(path))
    torrent = lt.create_torrent(files, piece_bytes)
    if tracker:
        torrent.add_tracker(tracker)
    lt.set_piece_hashes(torrent, str(path.parent))
    return bytes(lt.bencode(torrent.generate()))


def add(lt: Any, session: Any, encoded: bytes, place: Path, *, seed: bool) -> Any:
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(lt.bdecode(encoded))
    parameters.save_path = str(place)
    if seed:
        parameters.flags |= lt.torrent_flags.seed_mode
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    return session.add_torrent(parameters)


# ------------------------------------------------------------ aria2
class Tracker(http.server.BaseHTTPRequestHandler):
    """Names all nodes to whoever asks (BEP 3, BEP 23)."""

    peers = b""

    def do_GET(self) -> None:
        body = b"d8:intervali5e5:peers%d:%be" % (len(self.peers), self.peers)
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Aria:
    """One aria2c at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._spent = {"cpu_s": 0.0, "kernel_s": 0.0}

    def start(self, torrent: Path, place: Path, *extra: str) -> None:
        self.end()
        command = [
            "aria2c", "-q", "--no-conf", "--enable-dht=false", "--enable-dht6=false",
            "--bt-enable-lpd=false", "--enable-peer-exchange=true", "--seed-ratio=0.0",
            "--file-allocation=none", "--bt-tracker-interval=1", "--bt-max-peers=0",
            "--follow-torrent=mem", f"--listen-port={self._port}", f"--dir={place}",
            *extra, str(torrent),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def spent(self) -> dict[str, float]:
        """CPU seconds of it and of those before."""
        return {name: self._spent[name] + second for name, second in self._running().items()}

    def _running(self) -> dict[str, float]:
        if self._process is None:
            return {"cpu_s": 0.0, "kernel_s": 0.0}
        stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        user_s, kernel_s = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:13])
        return {"cpu_s": user_s + kernel_s, "kernel_s": kernel_s}

    def end(self) -> None:
        if self._process is not None:
            self._spent = self.spent()
            self._process.kill()
            self._process.wait()
            self._process = None


def aria2(options: dict[str, Any]) -> None:
    sys.path.insert(0, options["packages"])
    import libtorrent as lt

    own, port = options["nodes"][options["name"]], options["port"]
    Tracker.peers = b"".join(
        socket.inet_aton(address) + port.to_bytes(2) for address in options["nodes"].values()
    )
    aria = Aria(port)
    tracker: http.server.ThreadingHTTPServer | None = None
    torrent = Path(options["root"]) / f"{options['name']}.torrent"
    say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "count":
            say(**counters(), **aria.spent())
        elif order["do"] == "seed":
            path = Path(order["path"])
            if tracker is None:
                tracker = http.server.ThreadingHTTPServer((own, 0), Tracker)
                threading.Thread(target=tracker.serve_forever, daemon=True).start()
            url = f"http://{own}:{tracker.server_address[1]}/announce"
            encoded = make_torrent(lt, path, 0, url)
            torrent.write_bytes(encoded)
            aria.start(torrent, path.parent, "--bt-seed-unverified=true")
            time.sleep(1.0)  # it listens by then
            say(what=encoded.hex())
        elif order["do"] == "drop":
            aria.end()
            path.unlink()
            say()
        else:
            path = Path(order["path"])
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir(parents=True)
            torrent.write_bytes(bytes.fromhex(order["what"]))
            hook, done = path.parent / "hook", path.parent / "done"
            hook.write_text(f"#!/bin/sh\ntouch '{done}'\n")
            hook.chmod(0o755)
            aria.start(torrent, path.parent, f"--on-bt-download-complete={hook}")
            patience = time.monotonic() + PATIENCE_S
            while not done.exists() and time.monotonic() < patience:
                time.sleep(0.01)
            say(done=time.monotonic() if done.exists() else None)
    aria.end()


# ------------------------------------------------------------ http
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def from_origin(options: dict[str, Any]) -> None:
    say(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "count":
            say(**counters(), **spent())
        elif order["do"] == "seed":
            path = Path(order["path"])
            own = options["nodes"][options["name"]]
            handler = partial(Quiet, directory=str(path.parent))
            server = http.server.ThreadingHTTPServer((own, 0), handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            say(what=f"http://{own}:{server.server_address[1]}/{path.name}")
        elif order["do"] == "drop":
            path.unlink()
            say()
        else:
            path = Path(order["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(order["what"]) as answer, path.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            say(done=time.monotonic())


def main() -> None:
    options = json.loads(sys.argv[1])
    warnings.simplefilter("ignore", DeprecationWarning)  # libtorrent's way to make a torrent
    kind = options["kind"]
    if kind == "edged":
        edged(options)
    elif kind == "http":
        from_origin(options)
    elif kind == "aria2":
        aria2(options)
    else:
        libtorrent(options, tuned=kind.endswith("tuned"))


if __name__ == "__main__":
    main()
