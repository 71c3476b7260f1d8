"""Three nodes beside a flood of datagrams that mean nothing: nobody is suspected. SPEC §4.8."""

from __future__ import annotations

import sys

import pytest
import trio
from network_support import GossipNode, gossiping, until

from edged.telemetry import Log
from protocol.events import MemberSuspect

FLOOD_S = 4.0
RATE_PER_S_MIN = 10_000
"""What the test insists on; a free core sends several times that."""

# Spoken by another process, as fast as one core can: (host, port) ..., prefix in hex.
FLOODER = """
import os, socket, sys, time
prefix = bytes.fromhex(sys.argv[1])
targets = [(host, int(port)) for host, port in (arg.split(":") for arg in sys.argv[3:])]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
noise = [prefix + os.urandom(size) for size in (40, 80, 200, 1100)]
sent, until = 0, time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    for data in noise:
        for target in targets:
            try:
                sock.sendto(data, target)
            except OSError:
                pass
            sent += 1
print(sent)
"""


def joined(nodes: list[GossipNode]) -> bool:
    return all(list(node.states().values()) == ["alive"] * 3 for node in nodes)


@pytest.mark.slow
@pytest.mark.parametrize("forged", [False, True], ids=["noise", "past-the-filter"])
async def test_a_flood_makes_nobody_suspect(forged: bool, make_trust: object, log: Log) -> None:
    trusts = [make_trust(name) for name in "abc"]  # type: ignore[operator]
    async with gossiping(log, *trusts) as nodes:
        for node in nodes:
            node.service.join([other.seed for other in nodes])
        await until(lambda: joined(nodes))
        prefix = "656701" + "02" + nodes[0].gossip.keyring_ids[0] if forged else ""
        done = await trio.run_process(
            [sys.executable, "-c", FLOODER, prefix, str(FLOOD_S), *(n.seed for n in nodes)],
            capture_stdout=True,
        )
        sent = int(done.stdout)
        dropped = {}
        for node in nodes:
            for reason, count in node.dropped().items():
                dropped[reason] = dropped.get(reason, 0) + count
        print(f"{sent / FLOOD_S:.0f} datagrams/s; {dropped}")
        assert sent / FLOOD_S > RATE_PER_S_MIN
        await trio.sleep(2)
        for node in nodes:
            assert not any(isinstance(event, MemberSuspect) for event in node.events)
            assert node.gossip.statistics().sources_blocked <= 1
        assert joined(nodes)
