"""kill -9 at random instants: whatever the store acknowledged is there afterwards and verifies.

Run as a script, this file is the victim's launcher: for each line on stdin it forks a child that
works on the store and reports each acknowledged call on stdout. The test kills the child.
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from edged.interfaces import ArtifactRow
from edged.store import BlobStore, open_store
from edged.telemetry import make_log
from protocol.ids import ArtifactKey, Digest, digest_of
from protocol.manifest import Manifest

ROOT = Path(__file__).parents[2]
KILLS = 40
BUDGET_S = 8.0
"""On a slow machine fewer kills, but at least KILLS_MIN."""
KILLS_MIN = 10
KEY = ArtifactKey("k" * 64)


async def opened(data_dir: Path) -> BlobStore:
    log = make_log("x", stream=io.StringIO())
    return await open_store(data_dir, zstd_level=1, min_free_bytes=0, log=log)


def content(number: int) -> bytes:
    """Same bytes for the same number, 1 to 200,000 of them."""
    rng = random.Random(number)
    return rng.randbytes(rng.choice((1, 900, 40_000, 200_000)))


def say(*words: object) -> None:
    """One atomic line: shorter than PIPE_BUF."""
    os.write(1, (" ".join(str(word) for word in words) + "\n").encode())


# ------------------------------------------------------------ the victim
async def victim(data_dir: Path, seed: int) -> None:
    store = await opened(data_dir)
    say("ready")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(work_on_blobs, store, seed)
        nursery.start_soon(work_on_records, store, seed)
        nursery.start_soon(work_on_fetches, store, seed)


async def work_on_blobs(store: BlobStore, seed: int) -> None:
    for number in range(seed * 1000, seed * 1000 + 1000):
        if number % 3:
            info = await store.put(content(number), kind="module")
        else:
            temp = store.temp_path()
            temp.write_bytes(content(number))
            info = await store.put_file(temp, kind="artifact")
            row = ArtifactRow(info.digest, KEY, info.digest, info.size_bytes, 0.0, b"word")
            await store.put_artifact(row)
            say("artifact", info.digest)
        say("blob", info.digest)
        if number % 4 == 0:
            await store.make_manifest(info.digest)
            say("wire", info.digest)
        if number % 5 == 0:
            say("deleting", info.digest)
            await store.delete(info.digest)
            say("deleted", info.digest)


async def work_on_records(store: BlobStore, seed: int) -> None:
    for number in range(1000):
        await store.save_records([(f"r{number % 50}", b"%d %d" % (seed, number))])
        say("record", f"r{number % 50}", seed, number)
        await store.set_meta("generation", b"%d %d" % (seed, number))
        say("meta", seed, number)


async def work_on_fetches(store: BlobStore, seed: int) -> None:
    for number in range(1000):
        raw = random.Random(-seed * 1000 - number - 1).randbytes(150_000)
        info = await store.put(raw, kind="module")
        manifest = await store.make_manifest(info.digest)
        segments = [await store.wire_segment(info.digest, i) for i in range(manifest.segments)]
        await store.delete(info.digest)
        fetch = await store.begin_partial(manifest)
        for index, segment in enumerate(segments):
            await fetch.write([(index, segment)])
        await fetch.finish()
        say("blob", info.digest)
        say("wire", info.digest)


def launcher() -> None:
    for line in sys.stdin:
        data_dir, seed = line.split()
        child = os.fork()
        if child == 0:
            try:
                trio.run(victim, Path(data_dir), int(seed))
            finally:
                os._exit(1)
        say("pid", child)
        _, status = os.waitpid(child, 0)
        say("died", os.waitstatus_to_exitcode(status))


# ------------------------------------------------------------ the test
class Promises:
    """What was acknowledged over all lives."""

    def __init__(self) -> None:
        self.blobs: set[str] = set()
        self.wires: set[str] = set()
        self.artifacts: set[str] = set()
        self.deleting: set[str] = set()
        self.records: dict[str, tuple[int, int]] = {}
        self.meta = (0, -1)
        self.lines = 0

    def note(self, words: list[str]) -> None:
        self.lines += 1
        match words:
            case ["blob", digest]:
                self.blobs.add(digest)
            case ["wire", digest]:
                self.wires.add(digest)
            case ["artifact", digest]:
                self.artifacts.add(digest)
            case ["deleting", digest]:
                for promised in (self.blobs, self.wires, self.artifacts):
                    promised.discard(digest)
                self.deleting.add(digest)
            case ["deleted", digest]:
                self.deleting.discard(digest)
            case ["record", key, seed, number]:
                self.records[key] = (int(seed), int(number))
            case ["meta", seed, number]:
                self.meta = (int(seed), int(number))
            case _:
                raise AssertionError(words)


def one_life(
    launched: subprocess.Popen[str], data_dir: Path, seed: int, delay_s: float
) -> list[str]:
    """Lets a child work for `delay_s` after it opened the store, kills it; what it said."""
    assert launched.stdin is not None
    assert launched.stdout is not None
    launched.stdin.write(f"{data_dir} {seed}\n")
    launched.stdin.flush()
    said: list[str] = []
    pid = 0
    while True:
        line = launched.stdout.readline()
        assert line, "the launcher died"
        words = line.split()
        if words[0] == "pid":
            pid = int(words[1])
        elif words[0] == "ready":
            time.sleep(delay_s)
            while not pid:
                words = launched.stdout.readline().split()
                if words[0] == "pid":
                    pid = int(words[1])
                else:
                    said.append(" ".join(words))
            os.kill(pid, signal.SIGKILL)
        elif words[0] == "died":
            assert int(words[1]) == -signal.SIGKILL
            return said
        else:
            said.append(line)


async def check(data_dir: Path, promises: Promises) -> None:
    store = await opened(data_dir)
    repair = store.repair
    assert repair.missing == ()
    assert repair.corrupt == ()
    assert not repair.index_rebuilt
    held = {info.digest: info for info in store.blobs()}
    assert promises.blobs <= set(held)
    for digest in promises.wires:
        info = held[Digest(digest)]
        assert info.manifest in held
    for digest in promises.artifacts:
        row = store.artifact(Digest(digest), KEY)
        assert row is not None
        assert row.digest in held
    records = {key: tuple(map(int, value.split())) for key, value in store.load_records()}
    for key, promised in promises.records.items():
        assert records[key] >= promised
    generation = store.get_meta("generation")
    if promises.meta != (0, -1):
        assert generation is not None
        assert tuple(map(int, generation.split())) >= promises.meta
    assert list((data_dir / "tmp").iterdir()) == []
    assert list((data_dir / "quarantine").iterdir()) == []
    files = {path.name.split(".")[0] for path in (data_dir / "blobs").rglob("*.*")}
    assert files == set(held)
    await store.close()


async def check_bytes(data_dir: Path) -> None:
    """Every byte of every blob and wire form, once at the end."""
    store = await opened(data_dir)
    report = await store.scrub()
    assert report.corrupt == report.wire_lost == ()
    assert report.blobs == len(store.blobs()) > 0
    # What survived half-fetched can be taken up again, and then is whole.
    manifests = [await manifest_of(store, info.digest) for info in store.blobs() if info.manifest]
    for manifest in manifests[:3]:
        segments = [await store.wire_segment(manifest.blob, i) for i in range(manifest.segments)]
        await store.delete(manifest.blob)
        fetch = await store.begin_partial(manifest)
        for index, segment in enumerate(segments):
            await fetch.write([(index, segment)])
        await fetch.finish()
        assert digest_of(await store.read(manifest.blob)) == manifest.blob
    await store.close()


async def manifest_of(store: BlobStore, digest: Digest) -> Manifest:
    return await store.manifest(digest)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_kill_at_random_instants(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    seed = random.SystemRandom().randrange(1, 2**31)
    print("seed", seed)
    rng = random.Random(seed)
    promises = Promises()
    until_s = time.monotonic() + BUDGET_S
    launched = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        for life in range(1, KILLS + 1):
            for line in one_life(launched, data_dir, life, rng.uniform(0.0, 0.15)):
                promises.note(line.split())
            trio.run(check, data_dir, promises)
            if time.monotonic() > until_s and life >= KILLS_MIN:
                break
    finally:
        launched.kill()
        launched.communicate()
    assert promises.lines > 50, "the victims did work"
    trio.run(check_bytes, data_dir)


if __name__ == "__main__":
    launcher()
